"""Soft volumes of regions: the truth of volumes made of known shares, small changes, places of the template."""

from __future__ import annotations

import numpy as np
import pytest

from neuroray.platform.evaluate.brain_regions import find_centres, map_regions, share_tissues
from neuroray.storage.simulate.regions import load_regions
from neuroray.storage.simulate.template import load_template

FLUID, GREY, WHITE = -0.8, 0.2, 0.7


def draw(radius: float, size: int = 31) -> tuple[np.ndarray, np.ndarray]:
    """A ball of fluid of this radius with soft borders, in grey matter, in white matter; and the brain."""
    axes = np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3, indexing="ij")
    away = np.sqrt(sum(axis**2 for axis in axes))
    fluid = np.clip(radius + 0.5 - away, 0, 1)
    white = np.clip(away - 9.5, 0, 1)
    volume = FLUID * fluid + WHITE * white + GREY * (1 - fluid - white)
    brain = away < 14
    return np.where(brain, volume, -1).astype(np.float32), brain


def test_centres_are_those_of_three_classes() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.normal(mean, 0.03, number) for mean, number in
                             ((FLUID, 700), (GREY, 3000), (WHITE, 5000))])  # fmt: skip
    assert find_centres(values) == pytest.approx([FLUID, GREY, WHITE], abs=0.005)  # bins are 0.005 wide


def test_volumes_are_those_that_were_drawn() -> None:
    volume, brain = draw(6.0)
    found = map_regions((31, 31, 31), tuple(np.eye(4).ravel()), in_template=False).measure(volume, brain, voxel_ml=0.5)
    # Soft borders have an integral that is the ball's; centres lie a little inside, for borders belong to them too.
    assert found["fluid"] == pytest.approx(0.5 * 4 / 3 * np.pi * 6**3, rel=0.08)
    assert found["fluid"] + found["grey"] + found["white"] == pytest.approx(0.5 * brain.sum(), rel=1e-5)


def test_a_tenth_of_a_voxel_more_radius_counts() -> None:
    maps = map_regions((31, 31, 31), tuple(np.eye(4).ravel()), in_template=False)
    volumes = [maps.measure(*draw(radius), voxel_ml=1.0)["fluid"] for radius in (6.0, 6.1, 6.2, 6.3)]
    steps = np.diff(volumes)
    assert (steps > 0).all()
    assert steps.sum() == pytest.approx(4 / 3 * np.pi * (6.3**3 - 6**3), rel=0.15)


def test_contrast_moves_no_border() -> None:
    volume, brain = draw(6.0)
    dimmer = np.where(brain, 0.6 * volume + 0.1, -1).astype(np.float32)
    for name, share in (share_tissues(volume, brain) or {}).items():
        assert share == pytest.approx((share_tissues(dimmer, brain) or {})[name], abs=0.02)  # by the bins alone


def test_a_brain_of_one_value_has_no_volumes() -> None:
    brain = np.ones((5, 6, 7), bool)
    maps = map_regions((5, 6, 7), tuple(np.eye(4).ravel()), in_template=False)
    assert all(np.isnan(value) for value in maps.measure(np.zeros((5, 6, 7)), brain, voxel_ml=1.0).values())


def test_the_templates_own_ventricles_are_found_and_outer_fluid_is_not() -> None:
    template, regions = load_template(2.0), load_regions()
    brain = template.grey + template.white + template.csf > 0.5
    volume = np.where(brain, FLUID * template.csf + GREY * template.grey + WHITE * template.white, -1)
    affine = tuple(template.affine.ravel())
    maps = map_regions(volume.shape, affine, in_template=True)
    assert maps.main == "ventricles"
    found = maps.measure(volume.astype(np.float32), brain, voxel_ml=0.008)
    truth = 0.008 * (template.csf * regions.ventricles > 0).sum()
    assert 0.5 * truth < found["ventricles"] < 1.5 * truth
    assert found["ventricles"] < 0.25 * found["fluid"]
    assert found["cortex"] < found["grey"]
    # Twice the ventricles' fluid, none of the rest.
    wider = volume.copy()
    ring = (maps.places["ventricles"][1] == 1) & (regions.ventricles <= 0) & brain
    wider[ring] = FLUID
    more = maps.measure(wider.astype(np.float32), brain, voxel_ml=0.008)
    assert more["ventricles"] > found["ventricles"] + 0.5 * 0.008 * ring.sum()


def test_places_follow_the_grids_affine() -> None:
    template = load_template(2.0)
    shape = (37, 44, 31)
    affine = np.array([[4.0, 0, 0, -72], [0, 4.0, 0, -108], [0, 0, 5.0, -70], [0, 0, 0, 1]])
    near = map_regions(shape, tuple(affine.ravel()), in_template=True).places["ventricles"][1]
    assert near is not None
    inside = np.linalg.inv(affine) @ [12, -2, 22, 1]  # body of the right lateral ventricle
    outside = np.linalg.inv(affine) @ [55, -20, 22, 1]
    assert near[tuple(np.rint(inside[:3]).astype(int))] == 1
    assert near[tuple(np.rint(outside[:3]).astype(int))] == 0
    assert template.affine[0, 0] > 0  # left to right, as in the grid above

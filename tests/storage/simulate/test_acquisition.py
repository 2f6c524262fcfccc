"""Grids, storage orders, encodings and noise of simulated scans."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroray.storage.profiles.template import load_brain_template
from neuroray.storage.simulate import CohortConfig, SimulationError, acquisition
from neuroray.storage.simulate.acquisition import Picture
from neuroray.storage.simulate.anatomy import grow_head
from neuroray.storage.simulate.people import draw_person
from neuroray.storage.simulate.t1w import take_t1w


def test_every_storage_order_keeps_each_voxel_where_it_is() -> None:
    stream = np.random.default_rng(0)
    placement = acquisition.place_head((30.0, 40.0, 50.0), 8.0, stream)
    values = stream.random((*placement.shape, 2))
    place, value = (placement.affine @ [1, 2, 3, 1])[:3], values[1, 2, 3]
    for order in itertools.permutations("RAS"):
        codes = tuple(
            code if sign else {"R": "L", "A": "P", "S": "I"}[code] for code, sign in zip(order, (1, 0, 1), strict=True)
        )
        turned, affine = acquisition.store_as(values, placement.affine, codes)
        assert nibabel.aff2axcodes(affine) == codes
        index = np.rint(np.linalg.inv(affine) @ [*place, 1])[:3].astype(int)
        np.testing.assert_allclose(affine @ [*index, 1], [*place, 1], atol=1e-9)
        np.testing.assert_array_equal(turned[tuple(index)], value)


def test_the_field_of_view_holds_the_head() -> None:
    placement = acquisition.place_head((2.0, 2.0, 2.4), 2.0, np.random.default_rng(1))
    for corner in itertools.product((-84, 84), (-118, 84), (-60, 96)):  # the template's head
        index = np.linalg.inv(placement.voxels_to_head) @ [*corner, 1]
        assert np.all(index[:3] > -1)
        assert np.all(index[:3] < placement.shape)
    np.testing.assert_allclose(np.linalg.det(placement.head_to_world[:3, :3]), 1.0)  # nobody is stretched by lying down


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.04, 600.0)])
def test_numbers_survive_storage(tmp_path: Path, slope: float, intercept: float) -> None:
    values = np.random.default_rng(2).uniform(0, 900, (5, 6, 7)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.4, 1.0])
    stored = acquisition.encode_int16(values, slope=slope, intercept=intercept)
    nifti = acquisition.make_nifti(stored, affine, slope=slope, intercept=intercept, repetition_time_s=None)
    (tmp_path / "scan.nii").write_bytes(nifti)
    image = nibabel.Nifti1Image.from_filename(tmp_path / "scan.nii")
    assert image.header.get_data_dtype() == np.int16
    np.testing.assert_allclose(np.asarray(image.dataobj), values, atol=slope / 2 + 1e-4)  # rounded to the nearest
    np.testing.assert_allclose(image.affine, affine)


def test_numbers_that_do_not_fit_are_clipped_not_wrapped() -> None:
    stored = acquisition.encode_int16(np.array([-1e9, 1e9]), slope=1.0, intercept=0.0)
    assert stored.tolist() == [-32768, 32767]


def test_noise_is_rician() -> None:
    stream = np.random.default_rng(3)
    noisy = acquisition.add_rician_noise(np.full(200_000, 2.0, dtype=np.float32), 0.5, stream)
    assert (noisy**2).mean() == pytest.approx(2.0**2 + 2 * 0.5**2, rel=0.01)  # the second moment; 4 standard errors
    dark = acquisition.add_rician_noise(np.zeros(200_000, dtype=np.float32), 0.5, stream)
    assert dark.mean() == pytest.approx(0.5 * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh


def test_shading_is_smooth_and_positive() -> None:
    bias = acquisition.draw_bias((30, 31, 32), 0.1, np.random.default_rng(4))
    assert bias.min() > 0.3
    assert np.abs(np.diff(bias, axis=0)).max() < 0.1 * (bias.max() - bias.min()) + 1e-3


def test_registered_heads_lie_on_the_templates_grid_whatever_their_size(registered: tuple[CohortConfig, list[Picture]]):
    config, pictures = registered
    template = load_brain_template(config.spacing_mm)
    for picture in pictures:
        image = nibabel.Nifti1Image.from_bytes(picture.nifti)
        np.testing.assert_array_equal(image.affine, template.affine)
        brain = np.asarray(image.dataobj) > 0.1 * np.asarray(image.dataobj).max()
        overlap = 2 * (brain & template.mask).sum() / (brain.sum() + template.mask.sum())
        assert overlap > 0.9  # people differ in shape, not in size or place


def test_registered_heads_have_no_shading(registered: tuple[CohortConfig, list[Picture]]) -> None:
    for picture in registered[1]:
        values = np.asarray(nibabel.Nifti1Image.from_bytes(picture.nifti).dataobj)
        left, right = (np.percentile(half[half > 0], 95) for half in (values[:25], values[25:]))
        # White matter is as bright in either half; sites' shading makes it 5 to 20 % brighter in one.
        np.testing.assert_allclose(left / right, 1, atol=0.03)


def test_runs_are_never_registered() -> None:
    with pytest.raises(SimulationError, match="registered scans are T1w scans"):
        CohortConfig(num_subjects=2, modalities=("T1w", "bold"), registered=True)


@pytest.fixture(scope="module")
def registered() -> tuple[CohortConfig, list[Picture]]:
    config = CohortConfig(num_subjects=4, spacing_mm=4.0, head=False, registered=True)
    people = [draw_person(config, index) for index in range(2)]
    return config, [take_t1w(config, person, 0, grow_head(config, person, 0)) for person in people]

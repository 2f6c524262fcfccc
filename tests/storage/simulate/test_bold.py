"""Networks and what the BOLD signal says of them."""

from __future__ import annotations

import dataclasses

import nibabel
import numpy as np
import pytest

from neuroray.storage.simulate import deformation
from neuroray.storage.simulate.anatomy import grow_head
from neuroray.storage.simulate.bold import take_bold
from neuroray.storage.simulate.networks import NETWORKS, couple_networks, load_network_maps
from neuroray.storage.simulate.people import CohortConfig, draw_person

CONFIG = CohortConfig(num_subjects=1, seed=5, modalities=("bold",), bold_spacing_mm=7.0, num_frames=60)
PERSON = draw_person(CONFIG, 0)


def test_coupling_is_a_correlation_matrix_for_everybody() -> None:
    for index in range(40):
        matrix = couple_networks(CONFIG, draw_person(CONFIG, index))
        np.testing.assert_allclose(np.diag(matrix), 1.0)
        np.testing.assert_allclose(matrix, matrix.T)
        assert np.linalg.eigvalsh(matrix).min() > 0


def test_sex_and_cognition_change_coupling_and_only_when_planted() -> None:
    visual, frontal, default = (NETWORKS.index(name) for name in ("visual", "frontoparietal", "default_mode"))
    man, woman = (couple_networks(CONFIG, dataclasses.replace(PERSON, sex=sex)) for sex in ("M", "F"))
    assert man[visual, frontal] - woman[visual, frontal] > 0.25
    quick, slow = (couple_networks(CONFIG, dataclasses.replace(PERSON, cognition=score)) for score in (115, 85))
    assert quick[frontal, default] - slow[frontal, default] > 0.25
    none = dataclasses.replace(CONFIG, coupling_effect=0.0)
    np.testing.assert_array_equal(
        couple_networks(none, dataclasses.replace(PERSON, sex="M")),
        couple_networks(none, dataclasses.replace(PERSON, sex="F", cognition=130)),
    )


def test_networks_are_disjoint_parts_of_grey_matter_on_both_sides() -> None:
    maps = load_network_maps()
    assert (maps.left + maps.right).sum(axis=0).max() <= 1 + 1e-5
    volumes_ml = [
        side.sum(axis=(1, 2, 3)) * abs(np.linalg.det(maps.affine[:3, :3])) / 1000 for side in (maps.left, maps.right)
    ]
    assert np.min(volumes_ml) > 8
    middle = np.rint(-maps.affine[0, 3] / maps.affine[0, 0]).astype(int)
    assert maps.left[:, middle + 3 :].max() == 0
    assert maps.right[:, : middle - 3].max() == 0


def test_the_signal_of_each_network_follows_its_true_course() -> None:
    head = grow_head(CONFIG, PERSON, 0)
    run = take_bold(CONFIG, PERSON, 0, head)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(run.picture.nifti))
    frames, placement = np.asarray(image.dataobj, dtype=np.float64), run.picture.placement
    np.testing.assert_allclose(image.affine, placement.affine, atol=1e-4)  # float32 in the header
    maps = load_network_maps()
    index = deformation.to_index(head.map_grid(placement.voxels_to_head, placement.shape), maps.affine)
    nuisance = np.column_stack([run.motion, np.vander(np.linspace(-1, 1, CONFIG.num_frames), 3)])
    for network in range(len(NETWORKS)):
        weights = deformation.sample(maps.left[network] + maps.right[network], index) ** 2
        course = (frames * weights[..., None]).sum(axis=(0, 1, 2)) / weights.sum()
        course -= nuisance @ np.linalg.lstsq(nuisance, course, rcond=None)[0]
        truth = run.time_courses[:, network]
        truth = truth - nuisance @ np.linalg.lstsq(nuisance, truth, rcond=None)[0]
        # The rest is each hemisphere's own part (an eighth of the variance), noise and what else the body does.
        assert np.corrcoef(course, truth)[0, 1] > 0.7, NETWORKS[network]
        assert 0.2 < 100 * course.std() / frames[weights > 0.25].mean() < 3  # per cent of signal


def test_courses_are_coupled_as_planted() -> None:
    config = dataclasses.replace(CONFIG, num_frames=3000, bold_spacing_mm=16.0)
    run = take_bold(config, PERSON, 0, grow_head(config, PERSON, 0))
    found = np.corrcoef(run.time_courses.T)
    np.testing.assert_allclose(found, run.coupling, atol=0.1)  # some 2000 independent frames: 4 standard errors
    assert run.time_courses.std(axis=0) == pytest.approx(1.0, abs=0.1)

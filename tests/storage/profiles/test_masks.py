from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles import find_profile, prepare
from neuroray.storage.scan import Scan, ScanError

REAL_RUN = Path(__file__).parents[2] / "data" / "pumi" / "sub-001" / "func" / "sub-001_task-rest_bold.nii.gz"


def make_run(mask: np.ndarray, seed: int = 0) -> Scan:
    voxels = np.random.default_rng(seed).normal(100, 5, (9, *mask.shape)).astype(np.float32) * mask
    return Scan(voxels=voxels, affine=np.diag([3.0, 3.0, 3.0, 1.0]), repetition_time_s=2.0)


def make_ball(shape: tuple[int, int, int], radius: float) -> np.ndarray:
    centre = (np.array(shape) - 1) / 2
    offset = np.indices(shape) - centre[:, None, None, None]
    return np.sqrt((offset**2).sum(axis=0)) <= radius


def test_zeros_around_a_masked_run_are_its_mask():
    ball = make_ball((21, 23, 19), 8)
    scan = make_run(ball)
    scan.voxels[3][ball & (np.indices(ball.shape)[0] == 10)] = 0.0  # a frame without signal does not cut the mask
    prepared = prepare(scan, find_profile("fmri_minimal"))
    assert prepared.mask is not None
    assert prepared.statistics is not None
    np.testing.assert_array_equal(prepared.mask, ball)
    np.testing.assert_array_equal(prepared.scan.voxels, scan.voxels)
    values = scan.voxels[:, ball].astype(np.float64)
    np.testing.assert_allclose([prepared.statistics.mean, prepared.statistics.std], [values.mean(), values.std()])


def test_a_head_whose_air_was_set_to_zero_is_not_taken_for_a_brain():
    head = make_ball((31, 31, 31), 14)
    head[:, :, :16] |= np.sqrt(((np.indices((31, 31)) - 15) ** 2).sum(axis=0))[:, :, None] <= 11  # the neck goes on
    brain = make_ball((31, 31, 31), 10)
    scan = make_run(head)
    scan.voxels[:, ~brain] *= 0.05
    mask = prepare(scan, find_profile("fmri_minimal")).mask
    assert mask is not None
    overlap = 2 * (mask & brain).sum() / (mask.sum() + brain.sum())
    # nilearn's opening may take a voxel off the border, 0.84 for a ball of 10; the whole head would have 0.4.
    assert overlap > 0.84


def test_the_mask_of_a_real_run_is_one_brain():
    prepared = prepare(read_scan(REAL_RUN), find_profile("fmri_minimal"))
    assert prepared.mask is not None
    assert prepared.statistics is not None
    assert ndimage.label(prepared.mask)[1] == 1
    volume_ml = prepared.mask.sum() * np.prod(prepared.scan.zooms_mm) / 1000
    # Adult brains have 1 to 1.6 l; masks of EPI take in fluid around, and lose what has no signal.
    assert 900 < volume_ml < 2100
    assert prepared.statistics.std < prepared.statistics.mean


def test_profiles_refuse_what_they_are_not_for():
    volume = Scan(voxels=np.ones((5, 6, 7), np.float32), affine=np.eye(4))
    run = Scan(voxels=np.ones((3, 5, 6, 7), np.float32), affine=np.eye(4))
    with pytest.raises(ScanError, match="fmri_minimal is for runs"):
        prepare(volume, find_profile("fmri_minimal"))
    for name in ("n4", "mni_affine"):
        with pytest.raises(ScanError, match=f"{name} is for single volumes.*3 frames"):
            prepare(run, find_profile(name))


def test_a_run_without_a_brain_is_refused():
    flat = Scan(voxels=np.zeros((3, 9, 9, 9), np.float32), affine=np.eye(4))
    with pytest.raises(ScanError, match="no brain"):
        prepare(flat, find_profile("fmri_minimal"))

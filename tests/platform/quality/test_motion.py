"""Motion of a head that was moved by a known amount: displacement peaks at those frames, and is as large as it was."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroray.platform.quality.motion import estimate_motion, framewise_displacement
from neuroray.platform.quality.runs import take_moments, take_series

SPACING_MM = (4.0, 4.0, 5.0)
SHAPE = (37, 43, 29)


def make_head() -> np.ndarray:
    """A head-sized ellipsoid of 1000 with folds and a bright side: nothing about it is symmetrical."""
    grid = (np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2) * np.array(SPACING_MM).reshape(3, 1, 1, 1)
    inside = ((grid / np.array([58.0, 72.0, 55.0]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1
    folds = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=SHAPE), 1.6)
    return ndimage.gaussian_filter(inside * (1000 + 250 * folds / folds.std() + 2 * grid[1] + 1.5 * grid[0]), 0.6)


def move(head: np.ndarray, shift_mm: tuple[float, float, float], turn: tuple[float, float, float]) -> np.ndarray:
    """The head turned about its centre, then shifted."""
    scale = np.diag(SPACING_MM)
    centre = np.array([np.mean(indices) for indices in np.nonzero(head > 300)])
    inverse = np.linalg.inv(scale) @ Rotation.from_euler("xyz", turn).as_matrix().T @ scale
    offset = centre - inverse @ (centre + np.array(shift_mm) / SPACING_MM)
    return ndimage.affine_transform(head, inverse, offset, order=3, mode="nearest")


def test_planted_motion_is_found_at_its_frames_and_in_its_size():
    """At rest, 1.2 mm to the right, at rest, 0.02 rad of nodding, and both back."""
    at = [((0, 0, 0), (0, 0, 0))] * 2 + [((1.2, 0, 0), (0, 0, 0))] * 2 + [((1.2, 0, 0), (0.02, 0, 0))] * 2
    at += [((0, 0, 0), (0, 0, 0))]
    draw = np.random.default_rng(0)
    head = make_head()
    run = np.stack([move(head, *place) + draw.normal(0, 8, SHAPE) for place in at]).astype(np.float32)
    moments = take_moments(lambda: [run])
    mask = head > 300
    displacement = framewise_displacement(estimate_motion(lambda: [run], moments.mean, SPACING_MM, mask))
    planted = np.array([0, 1.2, 0, 50 * 0.02, 0, 1.2 + 50 * 0.02])
    # Each of six parameters is found to about 0.005 mm in noise of 0.8 %; FD adds up what all of them miss.
    np.testing.assert_allclose(displacement, planted, atol=0.05)
    series = take_series(lambda: [run], moments, mask, mask.astype(float))
    still, moved = series.dvars[[0, 2, 4]], series.dvars[[1, 3, 5]]
    # Noise alone changes a voxel by sqrt(2) 0.8 %; the nod of 0.02 rad changes it by as much again, the shift by more.
    assert moved.min() > 1.5 * still.max()


def test_displacement_is_powers_sum():
    places = np.array([[0, 0, 0, 0, 0, 0], [1, -2, 0.5, 0.01, 0, -0.02], [1, -2, 0.5, 0.01, 0, -0.02]], float)
    np.testing.assert_allclose(framewise_displacement(places), [3.5 + 50 * 0.03, 0])


def test_large_motion_is_found_in_all_six_parameters():
    """Far from where it began, back, and far to the other side: further than a head coil leaves room for."""
    far, near, other = [8, -5, 6, 0.12, -0.1, 0.15], [0.1, 0, 0, 0, 0.002, 0], [-3, 3, -9, -0.2, 0, 0]
    planted = np.array([[0.0] * 6, far, near, other])
    head = make_head()
    draw = np.random.default_rng(1)
    run = np.stack([move(head, row[:3], row[3:]) + draw.normal(0, 8, SHAPE) for row in planted]).astype(np.float32)
    found = estimate_motion(lambda: [run[:1], run[1:]], run[0], SPACING_MM, head > 300)
    # A fiftieth of a voxel: the frames were made by cubic splines of voxels of 4 and 5 mm.
    np.testing.assert_allclose(found[:, :3], planted[:, :3], atol=0.02)
    np.testing.assert_allclose(found[:, 3:], planted[:, 3:], atol=0.02 / 50)


def test_small_voxels_are_averaged_and_brighter_frames_are_no_motion():
    """Voxels of 2 mm become 4 mm; a frame of another brightness, as after a drift of the coil, stays where it is."""
    fine = ndimage.zoom(make_head(), (2.0, 2.0, 2.5), order=3)
    run = np.stack([fine, 1.3 * fine, np.roll(fine, 1, axis=1)]).astype(np.float32)
    found = estimate_motion(lambda: [run], fine, (2.0, 2.0, 2.0), fine > 300)
    planted = np.array([[0, 0, 0], [0, 0, 0], [0, 2.0, 0]])
    # Averaging two voxels shifted by one sees half of each: a hundredth of the coarse voxel is lost by it.
    np.testing.assert_allclose(found[:, :3], planted, atol=0.04)
    np.testing.assert_allclose(found[:, 3:], 0, atol=0.04 / 50)


def test_an_empty_frame_is_nowhere_and_the_next_is_found_again():
    head = make_head()
    run = np.stack([head, np.zeros_like(head), move(head, (1.0, 0, 0), (0, 0, 0))]).astype(np.float32)
    found = estimate_motion(lambda: [run], head, SPACING_MM, head > 300)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[2, :3], [1.0, 0, 0], atol=0.02)
    assert np.isnan(framewise_displacement(found)).all()


def test_a_single_slice_moves_in_its_plane():
    """What no slice can tell, moving through it, is left at 0."""
    head = make_head()[:, :, 14:15]
    run = np.stack([head, np.roll(head, 1, axis=0)]).astype(np.float32)
    found = estimate_motion(lambda: [run], head, SPACING_MM, head > 300)
    np.testing.assert_allclose(found[1], [SPACING_MM[0], 0, 0, 0, 0, 0], atol=0.05)

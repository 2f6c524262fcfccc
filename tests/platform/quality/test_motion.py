"""Motion of a head that was moved by a known amount: displacement peaks at those frames, and is as large as it was."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroray.platform.quality import motion
from neuroray.platform.quality.motion import MotionError, estimate_motion, framewise_displacement
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


@pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="needs the extra `ants`")
@pytest.mark.slow
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
    # Each of six parameters is found to about 0.02 mm on voxels of 4 to 5 mm; FD adds up what all of them miss.
    np.testing.assert_allclose(displacement, planted, atol=0.2)
    series = take_series(lambda: [run], moments, mask, mask.astype(float))
    still, moved = series.dvars[[0, 2, 4]], series.dvars[[1, 3, 5]]
    assert moved.min() > 2 * still.max()


def test_displacement_is_powers_sum():
    places = np.array([[0, 0, 0, 0, 0, 0], [1, -2, 0.5, 0.01, 0, -0.02], [1, -2, 0.5, 0.01, 0, -0.02]], float)
    np.testing.assert_allclose(framewise_displacement(places), [3.5 + 50 * 0.03, 0])


def test_without_ants_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(motion, "is_available", lambda: False)
    with pytest.raises(MotionError, match="pip install 'neuroray\\[ants\\]'"):
        estimate_motion(list, np.ones((3, 3, 3)), (1, 1, 1), np.ones((3, 3, 3), bool))

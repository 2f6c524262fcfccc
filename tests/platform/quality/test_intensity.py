"""Measures of a volume against formulas by hand and against images whose measure is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neuroray.platform.evaluate.faces import find_head
from neuroray.platform.quality.intensity import (
    energy_ratio,
    entropy_focus,
    measure_volume,
    signal_to_air_noise,
    signal_to_noise,
    smoothness,
)
from neuroray.platform.quality.regions import Regions, find_regions


def make_ball(*, noise: float = 0.0, shape: tuple[int, int, int] = (41, 45, 37), radius: float = 13.0) -> np.ndarray:
    """A ball of 100 in air, with the magnitude of complex noise."""
    draw = np.random.default_rng(0)
    grid = np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    ball = 100.0 * ((grid**2).sum(axis=0) < radius**2)
    real, imaginary = draw.normal(0, noise, (2, *shape)) if noise else np.zeros((2, *shape))
    return np.sqrt((ball + real) ** 2 + imaginary**2).astype(np.float32)


def test_entropy_is_zero_for_one_voxel_and_one_for_all_alike():
    one = np.zeros((5, 7, 3), np.float32)
    one[2, 3, 1] = 9.0
    # 1e-16 stands inside the logarithm, so that 0 log 0 is 0.
    assert entropy_focus(one) == pytest.approx(0, abs=1e-9)
    assert entropy_focus(np.full((5, 7, 3), 4.0, np.float32)) == pytest.approx(1, abs=1e-9)
    assert entropy_focus(np.zeros((5, 7, 3), np.float32)) is None


def test_entropy_is_the_one_of_mriqc():
    """Written out as in `mriqc.qc.anatomical.efc` (24.0)."""
    image = np.random.default_rng(1).gamma(2.0, 50.0, (7, 9, 5))
    count = image.size
    most = 1.0 * count * (1.0 / math.sqrt(count)) * math.log(1.0 / math.sqrt(count))
    energy = math.sqrt((image**2).sum())
    expected = (1.0 / most) * np.sum((image / energy) * np.log((image + 1e-16) / energy))
    assert entropy_focus(image) == pytest.approx(expected, rel=1e-9)


def test_a_ghost_raises_the_entropy():
    ball = make_ball(noise=1.0)
    assert entropy_focus(ball + 0.1 * np.roll(ball, 20, axis=1)) > 1.02 * entropy_focus(ball)


def test_ratios_are_those_of_medians():
    head, air = np.array([8.0, 10.0, 12.0]), np.array([1.0, 2.0, 30.0])
    assert energy_ratio(head, air) == pytest.approx(100 / 4)
    assert signal_to_noise(head) == pytest.approx(10 / 2)
    assert energy_ratio(head, np.zeros(5)) is None
    assert energy_ratio(head, np.array([])) is None
    assert signal_to_noise(np.full(4, 3.0)) is None


@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_noise_of_the_air_is_that_of_the_channels(noise: float):
    volume = make_ball(noise=noise)
    regions = find_regions(volume, (2.0, 2.0, 2.0))
    # MAD of a Rayleigh distribution, times 1.4826, is 1.4 % more than its standard deviation.
    assert signal_to_air_noise(volume[regions.inside], volume[regions.air]) == pytest.approx(100 / noise, rel=0.03)


@pytest.mark.parametrize("fwhm_mm", [5.0, 8.0])
def test_smoothness_is_that_of_the_filter(fwhm_mm: float):
    spacing_mm = (1.5, 2.0, 2.5)
    noise = np.random.default_rng(0).normal(size=(64, 50, 41))
    smooth = gaussian_filter(noise, [fwhm_mm / 2.3548 / size for size in spacing_mm], mode="wrap")
    found = smoothness(smooth, spacing_mm, np.ones(noise.shape, bool))
    # The formula takes the lattice for a continuum: 6 % too wide where the filter is two voxels wide.
    assert [found[f"fwhm_{axis}"] for axis in "xyz"] == pytest.approx([fwhm_mm] * 3, rel=0.07)
    assert found["fwhm_avg"] == pytest.approx(sum(found[f"fwhm_{axis}"] for axis in "xyz") / 3)


def test_a_region_without_voxels_has_no_measures_and_raises_nothing():
    empty = np.zeros((3, 5, 7), np.float32)
    none = np.zeros(empty.shape, bool)
    found = measure_volume(empty, (1.0, 1.0, 1.0), Regions(kind="head", inside=none, head=none, air=none))
    assert set(found.values()) == {None}


def test_head_and_air_are_found_in_noise():
    volume = make_ball(noise=5.0)
    regions = find_regions(volume, (2.0, 2.0, 2.0))
    ball = make_ball() > 0
    assert np.mean(regions.head[ball]) > 0.99
    assert np.mean(regions.head[~ball]) < 0.02
    assert not (regions.air & ball).any()
    distance = np.sqrt(((np.argwhere(regions.air) - [20, 22, 18]) ** 2).sum(axis=1)).min()
    assert distance >= 13 + 8 / 2 - 1  # 8 mm from a ball with a radius of 13 voxels of 2 mm; the edge takes one


def test_a_hole_in_the_head_belongs_to_it_and_a_speck_beside_does_not():
    volume = make_ball()
    volume[18:23, 20:25, 16:20] = 0
    volume[1:4, 1:4, 1:4] = 100
    head = find_head(volume)
    assert head[20, 22, 18]
    assert not head[2, 2, 2]


def test_air_that_was_set_to_zero_says_nothing():
    assert not find_regions(make_ball(), (2.0, 2.0, 2.0)).air.any()


def test_the_brain_is_measured_where_its_mask_is_known():
    brain = make_ball(radius=8.0) > 0
    regions = find_regions(make_ball(noise=1.0), (2.0, 2.0, 2.0), brain)
    assert regions.kind == "brain"
    np.testing.assert_array_equal(regions.inside, brain)


def test_a_head_that_is_cut_off_is_told():
    volume = make_ball(noise=1.0)
    regions = find_regions(volume[:, :, :20], (2.0, 2.0, 2.0))
    assert measure_volume(volume[:, :, :20], (2.0, 2.0, 2.0), regions)["head_cut_top"] > 0.9
    whole = find_regions(volume, (2.0, 2.0, 2.0))
    assert measure_volume(volume, (2.0, 2.0, 2.0), whole)["head_cut_top"] == 0

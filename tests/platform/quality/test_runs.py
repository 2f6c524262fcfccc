"""Measures of a run: the same whatever the blocks, and the numbers that a formula by hand gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from neuroray.platform.quality.runs import RunMoments, RunSeries, take_moments, take_series

SHAPE = (7, 6, 5)


def make_run(frames: int = 13, *, seed: int = 0) -> np.ndarray:
    """White noise of 5 on a field from 500 to 1500: 4 bytes would lose what 8 keep."""
    draw = np.random.default_rng(seed)
    level = draw.uniform(500, 1500, SHAPE)
    return (level + draw.normal(0, 5, (frames, *SHAPE))).astype(np.float32)


def in_blocks(run: np.ndarray, length: int):
    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(run), length):
            yield run[start : start + length]

    return blocks


def take(run: np.ndarray, length: int = 4, mask: np.ndarray | None = None) -> tuple[RunMoments, RunSeries]:
    blocks = in_blocks(run, length)
    moments = take_moments(blocks)
    inside = np.ones(run.shape[1:], bool) if mask is None else mask
    return moments, take_series(blocks, moments, inside, np.arange(inside.size, dtype=float).reshape(inside.shape))


@pytest.mark.parametrize("length", [1, 3, 13, 100])
def test_blocks_change_nothing(length: int):
    run = make_run()
    moments, series = take(run, length)
    # Sums in float64 of float32 values: 1e-9 is a thousand times their rounding.
    np.testing.assert_allclose(moments.mean, run.mean(axis=0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(moments.deviation, run.std(axis=0, dtype=np.float64, ddof=1), rtol=1e-6)
    np.testing.assert_array_equal(series.dvars, take(run, 5)[1].dvars)
    np.testing.assert_array_equal(series.carpet, take(run, 5)[1].carpet)


def test_dvars_is_the_root_mean_square_step_where_the_median_is_1000():
    run = make_run()
    mask = np.random.default_rng(1).random(SHAPE) < 0.4
    inside = run[:, mask].astype(np.float64)
    scaled = inside * 1000 / np.median(inside.mean(axis=0))
    expected = np.sqrt((np.diff(scaled, axis=0) ** 2).mean(axis=1))
    np.testing.assert_allclose(take(run, mask=mask)[1].dvars, expected, rtol=1e-6)


def test_standardised_dvars_of_white_noise_is_one():
    series = take(make_run(200))[1]
    assert series.dvars_std is not None
    # Quartiles of 200 values scatter by 8 % a voxel; over 210 voxels and 199 steps the mean is within 3 %.
    assert series.dvars_std.mean() == pytest.approx(1, abs=0.03)
    slow = make_run(200).astype(np.float64)
    slow = np.cumsum(slow - slow.mean(axis=0), axis=0) / 10 + slow.mean(axis=0)
    drifting = take(slow.astype(np.float32))[1]
    assert drifting.dvars_std is not None
    assert drifting.dvars_std.mean() == pytest.approx(1, abs=0.25), "what drifts slowly is expected to step little"


def test_a_spike_is_two_steps_and_a_level_one():
    run = make_run(20)
    run[9] *= 1.1
    run[15:] *= 1.1
    dvars = take(run)[1].dvars
    # 10 % of 1000, on top of noise of 5 to 15 on that scale.
    assert sorted(np.flatnonzero(dvars > 80)) == [8, 9, 14]


def test_global_signal_is_in_percent_of_its_mean():
    run = make_run(11)
    run[4] *= 1.2
    inside = run.reshape(11, -1).mean(axis=1, dtype=np.float64)
    np.testing.assert_allclose(take(run)[1].global_signal, 100 * inside / inside.mean(), rtol=1e-6)


def test_global_correlation_is_the_mean_over_all_pairs():
    run = make_run(60)
    run += 20 * np.sin(np.arange(60) / 3).astype(np.float32)[:, None, None, None]
    expected = np.corrcoef(run.reshape(60, -1).T.astype(np.float64)).mean()
    # The frames' variance counts with n, the deviation with n - 1.
    assert take(run)[1].global_correlation == pytest.approx(expected, rel=1 / 50)


def test_frozen_frames_are_told_across_blocks():
    run = make_run(12)
    run[4] = run[3]
    run[7:10] = run[6]
    assert take(run, 4)[0].frozen == (4, 7, 8, 9)


def test_what_is_not_finite_is_counted_and_spreads_nowhere():
    run = make_run(9)
    run[2, 0, 0, 0], run[5, 1, 1, 1] = np.nan, np.inf
    moments, series = take(run)
    assert moments.num_nonfinite == 2
    found = (moments.mean, moments.deviation, series.dvars, series.global_signal, series.carpet)
    assert all(np.isfinite(values).all() for values in found)


def test_the_carpet_runs_from_the_highest_rank_down():
    run = make_run(30)
    ramp = np.linspace(0, 40, 30, dtype=np.float32)
    run[:, 0] += ramp[:, None, None]  # the lowest ranks drift
    carpet = take(run)[1].carpet
    drift = carpet[:, -5:].mean(axis=1) - carpet[:, :5].mean(axis=1)
    assert drift[-30:].min() > 1.5
    assert abs(drift[:-30].mean()) < 0.3
    # Rows are z over time.
    np.testing.assert_allclose(carpet.std(axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 2])
def test_short_runs_have_what_can_be_said_of_them(frames: int):
    moments, series = take(make_run(frames))
    assert len(series.dvars) == frames - 1
    assert series.dvars_std is None
    assert np.isfinite(moments.deviation).all()


def test_an_integer_run_of_large_values_keeps_its_spread():
    """30,000 +- 1: squares of the values themselves would leave no digits in float32."""
    run = (30000 + np.random.default_rng(0).integers(-1, 2, (50, *SHAPE))).astype(np.int16)
    deviation = take(run)[0].deviation
    np.testing.assert_allclose(deviation, run.std(axis=0, dtype=np.float64, ddof=1), rtol=1e-9)

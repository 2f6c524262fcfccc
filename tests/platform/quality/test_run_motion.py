"""Motion in three numbers: those of the quality page, ranged over a training, and told where they are beyond it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from contracts.run_cohort import write_run_cohort
from scipy import ndimage

from neuroray.platform.quality.examine import examine_scan
from neuroray.platform.quality.run_motion import (
    RunMotion,
    choose_spread,
    compare_motion,
    describe_range,
    measure_motion,
    measure_stored_motion,
)

SPACING_MM = (4.0, 4.0, 5.0)
SHAPE = (25, 29, 21)


def _make_head() -> np.ndarray:
    grid = (np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2) / np.array([9.0, 12, 8]).reshape(3, 1, 1, 1)
    folds = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=SHAPE), 1.6)
    return ndimage.gaussian_filter(((grid**2).sum(axis=0) < 1) * (1000 + 250 * folds / folds.std()), 0.6)


def test_it_is_what_the_quality_page_measures(tmp_path: Path) -> None:
    store = write_run_cohort(tmp_path / "store", num_people=2)
    (first, *_) = store.records()
    found, page = measure_stored_motion(store, first.scan_id), examine_scan(store, first).measures
    assert (found.fd_mean_mm, found.fd_max_mm) == (page["fd_mean"], page["fd_max"])
    assert found.dvars == page["dvars_nstd"]


def test_a_planted_step_is_the_largest_and_counts_in_the_mean() -> None:
    head, draw = _make_head(), np.random.default_rng(0)
    frames = [ndimage.shift(head, (1.5 / 4 if frame >= 3 else 0, 0, 0), order=3) for frame in range(6)]
    run = np.stack([frame + draw.normal(0, 5, SHAPE) for frame in frames]).astype(np.float32)
    found = measure_motion(lambda: [run], SPACING_MM, head > 300)
    # Six parameters are found to about 0.005 mm each in this noise.
    assert found.fd_max_mm == pytest.approx(1.5, abs=0.06)
    assert found.fd_mean_mm == pytest.approx(1.5 / 5, abs=0.06)
    assert found.num_lost == 0


def test_an_empty_frame_is_told_and_a_single_frame_has_no_motion() -> None:
    head = _make_head()
    run = np.stack([head, head, np.zeros(SHAPE), head]).astype(np.float32)
    found = measure_motion(lambda: [run], SPACING_MM, head > 300)
    assert found.num_lost == 2
    assert found.fd_mean_mm == pytest.approx(0, abs=1e-3)
    assert any("not found in all frames: 2 steps" in text for text in compare_motion(found, None))
    one = measure_motion(lambda: [run[:1]], SPACING_MM, None)
    assert one == RunMotion(fd_mean_mm=None, fd_max_mm=None, dvars=None, num_lost=0)
    assert compare_motion(one, describe_range([found])) == ()


def test_only_what_is_beyond_the_training_is_told_with_how_much_was_measured() -> None:
    still = RunMotion(fd_mean_mm=0.1, fd_max_mm=0.3, dvars=12.0, num_lost=0)
    trained = describe_range([still, replace(still, fd_mean_mm=0.2, fd_max_mm=None)])
    assert trained == {"num_runs": 2, "fd_mean_mm": [0.1, 0.2], "fd_max_mm": [0.3, 0.3], "dvars": [12.0, 12.0]}
    assert compare_motion(replace(still, fd_mean_mm=0.05), trained) == ()
    moved = compare_motion(RunMotion(fd_mean_mm=0.5, fd_max_mm=2.0, dvars=30.0, num_lost=0), trained)
    assert moved == (
        "the head moved by 0.50 mm from frame to frame on average; in 2 runs of the training at most 0.20 mm",
        "the head moved by 2.00 mm between two frames; in 2 runs of the training at most 0.30 mm",
        "the signal jumped by DVARS 30.0 from frame to frame on average; in 2 runs of the training at most 12.0",
    )
    assert compare_motion(replace(still, dvars=30.0), None) == ()


def test_runs_to_measure_are_spread_over_all_of_them() -> None:
    assert choose_spread([str(number) for number in range(10)], 4) == ["0", "3", "6", "9"]
    assert choose_spread(["a", "b"], 20) == ["a", "b"]

"""Prediction intervals: the rank that the theorem names, people that are independent, and coverage as promised."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from neuroray.platform.evaluate.conformal import Calibration, calibrate_errors, fewest_people, read_calibrations
from neuroray.platform.evaluate.metrics import EvaluationError


def _people(count: int) -> list[str]:
    return [f"subject:{number}" for number in range(count)]


@pytest.mark.parametrize(("count", "level", "rank"), [(9, 0.9, 9), (10, 0.9, 10), (19, 0.9, 18), (19, 0.95, 19)])
def test_the_width_is_the_error_of_the_finite_sample_rank(count: int, level: float, rank: int) -> None:
    sizes = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    signs = np.where(sizes % 2 > 0, 1, -1)
    found = calibrate_errors((sizes * signs).tolist(), _people(count), level=level)
    assert (found.half_width, found.num_people, found.reason) == (rank, count, None)
    around = found.around(100.0)
    assert around is not None
    assert (around.low, around.high, around.level, around.num_people) == (100 - rank, 100 + rank, level, count)


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_few_people_give_no_interval_and_a_reason(count: int) -> None:
    found = calibrate_errors([1.0] * count, _people(count))
    assert (found.half_width, found.around(3.0)) == (None, None)
    assert found.reason is not None
    assert found.reason.startswith("no interval")
    assert f"{count} unrelated validation people" in found.reason
    assert "90% takes 9 or more" in found.reason
    assert (fewest_people(0.9), fewest_people(0.95), fewest_people(0.5)) == (9, 19, 1)


def test_of_a_family_and_of_a_person_one_scan_counts() -> None:
    """Nine people in eight groups are too few, whichever of the twins is off by more."""
    groups = [*_people(8), "subject:0"]
    assert calibrate_errors([1.0] * 8 + [50.0], groups).num_people == 8
    found = calibrate_errors([2.0, *range(8), 90.0], ["family:a", *_people(8), "family:a"])
    assert (found.num_people, found.half_width) == (9, 7.0)


def test_coverage_is_what_is_promised_whatever_the_errors_are_like() -> None:
    """Of n exchangeable errors the k-th smallest exceeds the next one with probability k / (n + 1), exactly."""
    draw, num_people, trials = np.random.default_rng(5), 12, 4000
    errors = draw.standard_cauchy((trials, num_people + 1))
    held = [
        abs(row[-1]) <= (calibrate_errors(row[:-1].tolist(), _people(num_people)).half_width or 0.0) for row in errors
    ]
    expected = math.ceil(13 * 0.9) / 13
    # Four standard errors of a share of 4,000.
    assert np.mean(held) == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / trials))


def test_it_travels_through_json() -> None:
    found = calibrate_errors([*np.linspace(1, 2, 11)], _people(11))
    described = json.loads(json.dumps({"intervals": {"age_years": found.to_json()}}))
    assert read_calibrations(described) == {"age_years": found}
    assert read_calibrations({}) == read_calibrations({"intervals": {}}) == {}
    assert "conformal" in described["intervals"]["age_years"]["method"]
    assert Calibration.from_json(calibrate_errors([], []).to_json()).half_width is None


def test_what_is_no_level_and_no_error_is_refused() -> None:
    with pytest.raises(EvaluationError, match="this coverage; given 90; expected between 0 and 1"):
        calibrate_errors([1.0], ["a"], level=90)
    with pytest.raises(EvaluationError, match="no numbers; given 1 of 2"):
        calibrate_errors([1.0, float("nan")], ["a", "b"])

"""Several trainings as one: found by their folders, averaged, bounded by the errors of those held out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from neuroray.platform.evaluate.conformal import calibrate_errors
from neuroray.platform.evaluate.ensemble import (
    CALIBRATION_FILE,
    EnsembleCalibration,
    calibrate_ensemble,
    combine_answers,
    find_members,
    read_ensemble_calibration,
)
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import JudgedNumber
from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.storage.locations import Location


def make_rows(errors: list[float], *, folds: list[int] | None = None, families: list[str] | None = None):
    return [
        JudgedNumber(
            fold=folds[number] if folds else 0,
            scan_id=f"s{number}",
            subject=f"s{number}",
            family_id=families[number] if families else None,
            value=50.0,
            predicted=50.0 + error,
            guess=50.0,
        )
        for number, error in enumerate(errors)
    ]


def test_seeds_and_folds_are_found_by_number(tmp_path: Path) -> None:
    for name in ("seed-10/fold-1", "seed-10/fold-0", "seed-2/fold-1", "seed-2/fold-0", "evaluate", "seed-x", "fold-7"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    found = find_members(Location(tmp_path))
    assert [member.path for member in found] == ["seed-2/fold-0", "seed-2/fold-1", "seed-10/fold-0", "seed-10/fold-1"]
    assert [member.fold for member in found] == [0, 1, 0, 1]
    assert [member.path for member in find_members(Location(tmp_path / "seed-2"))] == ["fold-0", "fold-1"]
    assert find_members(Location(tmp_path / "evaluate")) == ()


def test_with_one_fold_it_is_split_conformal_prediction() -> None:
    errors = np.random.default_rng(0).normal(0, 5, 37).tolist()
    found = calibrate_ensemble(make_rows(errors), target="age_years", weights_sha256=["a"])
    plain = calibrate_errors(errors, [f"s{number}" for number in range(37)]).around(61.0)
    interval = found.around({0: 61.0})
    assert plain is not None
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((plain.low, plain.high))
    assert (interval.level, interval.num_people) == (plain.level, plain.num_people)


def test_with_folds_each_error_goes_around_what_the_fold_held_out_says() -> None:
    errors, folds = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], [0, 0, 0, 0, 1, 1, 1, 1, 1]
    found = calibrate_ensemble(make_rows(errors, folds=folds), target="age_years", weights_sha256=["a", "b"])
    interval = found.around({0: 40.0, 1: 50.0})
    assert interval is not None
    # Nine people: the outermost ends, 40 - 4 from the first fold (50 - 9 = 41 from the second), and 50 + 9.
    assert (interval.low, interval.high) == (36.0, 59.0)
    with pytest.raises(EvaluationError, match="no answer"):
        found.around({0: 40.0})


def test_intervals_of_folds_hold_new_people_as_often_as_they_say() -> None:
    """Each fold's model says the mean of the people it was trained on: 400 cohorts of 40, one new person each."""
    rng, num_folds, held = np.random.default_rng(1), 4, 0
    for _ in range(400):
        values = rng.normal(50, 10, 41)
        people, new = values[:40], values[40]
        said = {fold: float(people[np.arange(40) % num_folds != fold].mean()) for fold in range(num_folds)}
        errors = {
            fold: tuple(np.abs(people[np.arange(40) % num_folds == fold] - said[fold]).tolist())
            for fold in range(num_folds)
        }
        interval = EnsembleCalibration(target="t", level=0.9, errors=errors, weights_sha256=()).around(said)
        assert interval is not None
        held += interval.low <= new <= interval.high
    # Standard error of a share of 0.9 of 400 is 0.015: three of these below.
    assert 0.855 <= held / 400 <= 0.96


def test_of_a_family_the_first_counts_and_too_few_people_have_no_interval() -> None:
    found = calibrate_ensemble(
        make_rows([1.0] * 10, families=["f"] * 3 + [f"f{number}" for number in range(7)]),
        target="age_years",
        weights_sha256=[],
    )
    assert found.num_people == 8
    assert found.around({0: 50.0}) is None
    assert found.reason is not None
    assert "8 unrelated validation people, and 90% takes 9 or more" in found.reason


def test_answers_are_averaged_with_their_spread_over_models() -> None:
    answers = [
        (
            TargetAnswer(name="age_years", value=value, unit="years", quantiles={"0.5": value}),
            TargetAnswer(name="sex", probabilities={"F": share, "M": 1 - share}),
        )
        for value, share in ((40.0, 0.6), (44.0, 0.8), (45.0, 0.1))
    ]
    calibration = EnsembleCalibration(target="age_years", level=0.9, errors={0: (2.0,) * 20}, weights_sha256=())
    age, sex = combine_answers(answers, [0, 0, 0], calibration, None)
    assert (age.value, age.num_models, age.unit) == (43.0, 3, "years")
    assert age.model_spread == pytest.approx(np.std([40, 44, 45], ddof=1))
    assert age.interval is not None
    assert (age.interval.low, age.interval.high) == (41.0, 45.0)
    assert sex.probabilities == pytest.approx({"F": 0.5, "M": 0.5})
    assert sex.model_spread == pytest.approx(np.std([0.6, 0.8, 0.1], ddof=1))
    assert sex.interval is None
    assert sex.no_interval is None
    (alone, _) = combine_answers(answers, [0, 0, 0], None, "no interval: for a reason")
    assert (alone.interval, alone.no_interval) == (None, "no interval: for a reason")


def test_the_file_holds_for_its_own_weights_alone(tmp_path: Path) -> None:
    found = calibrate_ensemble(make_rows([1.0, -2.0, 3.0]), target="age_years", weights_sha256=["b", "a"])
    where = Location(tmp_path)
    assert read_ensemble_calibration(where, ["a", "b"])[0] is None
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(found.to_json()))
    assert read_ensemble_calibration(where, ["a", "b"]) == (found, None)
    other, reason = read_ensemble_calibration(where, ["a", "c"])
    assert other is None
    assert reason is not None
    assert "other weights" in reason
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(found.to_json() | {"format": 2}))
    with pytest.raises(EvaluationError, match="another format"):
        read_ensemble_calibration(where, ["a", "b"])
    broken = dataclasses.replace(found).to_json()
    del broken["errors"]
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(broken))
    with pytest.raises(EvaluationError, match="not whole"):
        read_ensemble_calibration(where, ["a", "b"])

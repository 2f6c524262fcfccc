"""The whole study: who corrections rest on, what is said of a useless model, and a planted gap that comes back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from neuroray.platform.brain_age_gap.answers import ages_of, predictions_of
from neuroray.platform.brain_age_gap.errors import GapError
from neuroray.platform.brain_age_gap.findings import tell_headline
from neuroray.platform.brain_age_gap.recovery import recover_gap
from neuroray.platform.brain_age_gap.report import write_gap_report
from neuroray.platform.brain_age_gap.study import study_gap

PROVENANCE = {
    "run_name": "made-up",
    "store": "store",
    "catalogue_version": 1,
    "predictions": "predictions.csv",
    "versions": {"neuroray": "0"},
    "made_at": "2026-01-01",
}


def test_each_fold_is_corrected_by_held_out_controls_of_the_others(answers):
    rows = answers(130, gap_years=4.0)
    study = study_gap(rows, controls=["control"], num_resamples=50)
    assert study.fit_on == "other_folds"
    for fold in (0, 1):
        pool = [row for row in rows if row.fold != fold and row.group == "control"]
        slope, intercept = np.polyfit(ages_of(pool), predictions_of(pool), 1)
        assert study.corrections[fold].slope == pytest.approx(slope)
        mine = [index for index, row in enumerate(study.answers) if row.fold == fold]
        own = [study.answers[index] for index in mine]
        expected = predictions_of(own) - (slope * ages_of(own) + intercept)
        np.testing.assert_allclose(study.gaps("beheshti")[mine], expected)


def test_what_the_judged_say_moves_no_correction_of_their_own(answers):
    """Answers of fold 0 can be anything: the line that corrects them stays."""
    rows = answers(130)
    moved = [dataclasses.replace(row, predicted_years=99.0) if row.fold == 0 else row for row in rows]
    first, second = (study_gap(some, controls=["control"], num_resamples=20) for some in (rows, moved))
    assert first.corrections[0] == second.corrections[0]
    assert first.corrections[1] != second.corrections[1]


def test_one_fold_is_corrected_by_its_validation_side_and_refused_without(answers):
    rows, side = answers(63, num_folds=1), answers(40, num_folds=1, start=500, seed=9)
    study = study_gap(rows, controls=["control"], further=side, num_resamples=20)
    assert study.fit_on == "validation"
    assert study.corrections[0].num_people == 20
    with pytest.raises(GapError, match="nobody to fit the correction on"):
        study_gap(rows, controls=["control"], num_resamples=20)
    with pytest.raises(GapError, match="no other folds"):
        study_gap(rows, fit_on="other_folds", num_resamples=20)
    with pytest.raises(GapError, match="must not be fitted on those"):
        study_gap(rows, controls=["control"], further=rows, fit_on="table", num_resamples=20)


def test_raw_numbers_are_those_of_the_predictions_as_they_are(answers):
    rows = answers(65)
    study = study_gap(rows, controls=["control"], num_resamples=100)
    raw = np.abs(predictions_of(rows) - ages_of(rows)).mean()
    assert study.raw["mae"].value == pytest.approx(raw)
    assert study.raw["mae_gain"].value == pytest.approx(study.guess_mae - raw)
    held = [row for row in rows if row.group == "control"]
    assert study.raw_of_controls["mae"].value == pytest.approx(np.abs(predictions_of(held) - ages_of(held)).mean())
    assert not study.is_useless


def test_a_useless_model_is_called_so_beside_its_shining_corrected_numbers(answers, tmp_path):
    """The no-signal demonstration: r near 1 and an error of two years, of a model that sees nothing."""
    rows = answers(130, slope=0.0, intercept=50.0, num_folds=2)
    study = study_gap(rows, controls=["control"], num_resamples=200)
    assert study.is_useless
    assert study.after["beheshti"]["pearson_r"].value > 0.97
    assert study.after["beheshti"]["mae"].value < 3 < study.raw["mae"].value
    assert "Do not use this gap" in study.warnings[0]
    assert "cole" not in study.after
    assert "means nothing" in tell_headline(study)
    paths = write_gap_report(study, tmp_path, provenance=PROVENANCE)
    written = json.loads(paths["gap.json"].read_text())
    assert written["is_useless"]
    # Raw first: a reader who stops early has read what judges the model.
    order = list(written)
    assert order.index("raw") < order.index("after_correction")
    page = paths["gap.html"].read_text()
    assert page.index("Before any correction") < page.index("After correction, for completeness only")
    assert "Do not use this gap" in page


def test_a_planted_gap_comes_back_in_size_by_inversion_and_shrunk_by_the_slope_otherwise(answers):
    rows = answers(400, gap_years=5.0, slope=0.6, intercept=20.0, noise_years=2.0, seed=3)
    study = study_gap(rows, controls=["control"], num_resamples=200)
    found = {case.kind: case.comparison for case in study.cases}
    for kind, planted in (("beheshti", 0.6 * 5), ("cole", 5.0)):
        comparison = found[kind]
        assert comparison is not None
        assert comparison.difference_years.low < planted < comparison.difference_years.high
        assert comparison.difference_years.value == pytest.approx(planted, rel=0.25)
    odds = {case.kind: case.association for case in study.cases}
    # A standard deviation is one whatever the unit.
    assert odds["cole"].per_sd.value == pytest.approx(odds["beheshti"].per_sd.value, rel=0.02)
    assert odds["beheshti"].per_sd.low > 1


def test_the_truth_of_a_simulated_cohort_is_held_against_the_study(answers):
    rows = answers(300, gap_years=0.0, seed=5)
    rng = np.random.default_rng(7)
    truth, told = [], []
    for row in rows:
        disease = 5.0 if row.group == "patient" else 0.0
        brain = row.age_years + rng.normal(0, 2) + disease
        truth.append(
            {
                "participant_id": f"sub-{row.subject}",
                "session_id": "",
                "brain_age_years": brain,
                "brain_age_gap_years": disease,
            }
        )
        told.append(dataclasses.replace(row, predicted_years=0.7 * brain + 15 + rng.normal(0, 1)))
    study = study_gap(told, controls=["control"], num_resamples=200)
    found = recover_gap(study, truth)
    kinds = {row.kind: row for row in found.found}
    assert found.disease_years == 5
    assert kinds["cole"].is_within
    assert kinds["cole"].fraction.value == pytest.approx(1, abs=0.1)
    # A line of slope 0.7 takes three tenths of every year.
    assert not kinds["beheshti"].is_within
    assert kinds["beheshti"].fraction.value == pytest.approx(0.7, abs=0.07)
    assert all(row.has_sign for row in found.found)
    assert kinds["cole"].correlation.value > 0.8
    with pytest.raises(GapError, match="not that of the store's cohort; given 1 of 300"):
        recover_gap(study, truth[1:])


def test_controls_who_do_not_exist_are_refused_and_none_named_is_told(answers):
    rows = answers(65)
    with pytest.raises(GapError, match="of the group healthy; expected one of control, patient"):
        study_gap(rows, controls=["healthy"], num_resamples=20)
    study = study_gap(rows, num_resamples=20)
    assert study.cases == ()
    assert any("No controls were named, though there are the groups control, patient" in it for it in study.warnings)


def test_two_visits_of_a_person_count_once_in_groups(answers):
    rows = answers(65, gap_years=2.0)
    later = [
        dataclasses.replace(row, scan_id=f"{row.scan_id}-2", age_years=row.age_years + 3, session="02") for row in rows
    ]
    once, twice = (study_gap(some, controls=["control"], num_resamples=20) for some in (rows, [*rows, *later]))
    assert [case.association.num_cases for case in once.cases] == [case.association.num_cases for case in twice.cases]
    assert once.slopes == {}
    assert twice.slopes["raw"].groups[0].num_people == len({row.subject for row in rows if row.group == "control"})


def test_the_table_holds_every_scan_and_the_page_nobody(answers, tmp_path):
    rows = answers(65, gap_years=2.0)
    study = study_gap(rows, controls=["control"], num_resamples=20)
    paths = write_gap_report(study, tmp_path, provenance=PROVENANCE)
    import csv

    with paths["gap.csv"].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 65
    first = table[0]
    raw = float(first["predicted_raw_years"]) - float(first["age_years"])
    assert float(first["gap_raw_years"]) == pytest.approx(raw, abs=1e-5)
    shown = paths["gap.html"].read_text() + paths["gap.json"].read_text()
    assert not any(row.scan_id in shown for row in rows)

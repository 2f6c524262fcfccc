"""Predicted age judged: the mean age beside it, bins, limits and range; validation people apart; another cohort."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from contracts.run_cohort import tiny_cognition, write_person, write_run_cohort

from neuroray.jobs import evaluate as job
from neuroray.platform.evaluate.age_evidence import add_age_evidence, bin_ages, is_age, part_by_decade
from neuroray.platform.evaluate.age_page import gather_age_warnings
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import (
    JudgedNumber,
    NumberEvaluation,
    draw_people,
    guess_numbers,
    measure_numbers,
)
from neuroray.platform.evaluate.protocol import evaluate
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.storage.store import ScanStore

FACTS = {"versions": {"neuroray": "0"}, "made_at": "2026-01-01"}


def judged(num: int = 130, *, slope: float = 0.7, noise: float = 3.0, seed: int = 0) -> tuple[JudgedNumber, ...]:
    rng = np.random.default_rng(seed)
    ages = rng.uniform(18, 92, num)
    return tuple(
        JudgedNumber(
            fold=0,
            scan_id=f"s{index}",
            subject=f"p{index}",
            value=float(age),
            predicted=float(55 + slope * (age - 55) + rng.normal(0, noise)),
            guess=50.0,
            sex="FM"[index % 2],
            site=f"site{index % 3}",
        )
        for index, age in enumerate(ages)
    )


def evaluation_of(rows: tuple[JudgedNumber, ...]) -> NumberEvaluation:
    resamples = draw_people(rows, seed=0, num_resamples=200)
    return NumberEvaluation(
        model_name="made-up",
        target="age_years",
        unit="years",
        modality="T1w",
        judged=rows,
        folds=(),
        metrics=measure_numbers(rows, resamples),
        metrics_by_person={},
        guess=guess_numbers(rows),
        strata=(),
        resamples=resamples,
        seed=0,
        provenance={},
    )


def test_the_gain_over_the_mean_age_the_slope_and_the_limits_are_their_formulas() -> None:
    found = add_age_evidence(evaluation_of(judged()), (18.0, 92.0))
    age = found.age
    assert age is not None
    ages, errors = found.values, found.predicted - found.values
    assert age.gain_years.value == pytest.approx(np.abs(50 - ages).mean() - np.abs(errors).mean())
    assert age.error_per_year.value == pytest.approx(np.polyfit(ages, errors, 1)[0])
    # The line that was planted.
    assert age.error_per_year.low < -0.3 < age.error_per_year.high
    bias, low, high = age.limits_years
    assert (bias, high - low) == (pytest.approx(errors.mean()), pytest.approx(2 * 1.96 * errors.std(ddof=1)))
    assert age.num_beyond == 0
    assert not gather_age_warnings(found, age)


def test_a_model_that_does_not_beat_the_mean_age_is_called_so() -> None:
    found = add_age_evidence(evaluation_of(judged(slope=0.0, noise=9.0)), None)
    assert found.age is not None
    assert "not known to beat saying the training mean" in gather_age_warnings(found, found.age)[0]


def test_bins_begin_at_multiples_of_five_and_hold_means() -> None:
    ages, said = np.array([20.0, 24.9, 25.0, 61.0]), np.array([22.0, 24.0, 30.0, 50.0])
    bins = bin_ages(ages, said)
    assert [(each.low_years, each.high_years, each.num_scans) for each in bins] == [
        (20, 25, 2),
        (25, 30, 1),
        (60, 65, 1),
    ]
    assert (bins[0].mean_age_years, bins[0].mean_predicted_years) == (pytest.approx(22.45), 23)
    assert bins[0].half_width_years == pytest.approx(1.96 * np.std([22, 24], ddof=1) / np.sqrt(2))


def test_parts_are_decades_of_age_with_the_oldest_together_and_judged_by_their_error() -> None:
    rows = judged(300)
    parts = part_by_decade(rows)
    assert list(parts) == [*(f"{decade} to {decade + 9}" for decade in range(10, 80, 10)), "80 and over"]
    assert {row.scan_id for row in parts["80 and over"]} == {row.scan_id for row in rows if row.value >= 80}
    found = add_age_evidence(evaluation_of(rows), None)
    assert found.strata_metric == "mae"
    by_level = {row.level: row.found for row in found.strata}
    some = [row for row in rows if 30 <= row.value < 40]
    expected = np.mean([abs(row.predicted - row.value) for row in some])
    assert by_level["30 to 39"] is not None
    assert by_level["30 to 39"].value == pytest.approx(expected)
    assert {"women", "men", "site0", "site1", "site2"} <= set(by_level)


def test_people_beyond_the_training_are_counted_and_judged_apart() -> None:
    rows = judged()
    found = add_age_evidence(evaluation_of(rows), (30.0, 70.0))
    assert found.age is not None
    within = [row for row in rows if 30 <= row.value <= 70]
    assert found.age.num_beyond == len(rows) - len(within)
    expected = np.mean([abs(row.predicted - row.value) for row in within])
    assert found.age.within["mae"].value == pytest.approx(expected)
    assert any(
        "older than anybody it was trained on (30 to 70 years)" in it for it in gather_age_warnings(found, found.age)
    )


def test_ages_in_months_are_suspected() -> None:
    rows = tuple(dataclasses.replace(row, value=12 * row.value, predicted=12 * row.predicted) for row in judged())
    found = add_age_evidence(evaluation_of(rows), None)
    assert found.age is not None
    assert any("are ages in months?" in it for it in gather_age_warnings(found, found.age))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_run_cohort(tmp_path_factory.mktemp("aged") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of a model that learned age for one epoch."""
    folder = tmp_path_factory.mktemp("run") / "run"
    known = tiny_cognition()
    recipe = dataclasses.replace(
        known,
        regress=("age_years",),
        data=dataclasses.replace(known.data, target="age_years"),
        split=dataclasses.replace(known.split, stratify_by="age_years"),
        loop=LoopConfig(batch_size=4, num_epochs=1, select_by="val_mae"),
    )
    for fold in (0, 1):
        split = dataclasses.replace(recipe.split, fold=fold)
        fit(dataclasses.replace(recipe, split=split), store=store.uri, out=str(folder / f"fold-{fold}"))
    return folder


def test_a_run_that_predicts_age_writes_its_validation_people_apart(
    run: Path, store: ScanStore, tmp_path: Path
) -> None:
    job.run(job.Args(run=str(run), out=str(tmp_path), num_resamples=40))
    tables = {}
    for name in ("predictions", "predictions_val"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    for fold in "01":
        split = json.loads((run / f"fold-{fold}" / "splits.json").read_text())
        for name, side in (("predictions", "test"), ("predictions_val", "val")):
            told = sorted(row["scan_id"] for row in tables[name] if row["fold"] == fold)
            assert told == sorted(split[side])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_scans"] == len(tables["predictions"])
    errors = [abs(float(row["predicted"]) - float(row["value"])) for row in tables["predictions"]]
    gain = report["age"]["gain_over_training_mean_years"]["value"]
    assert gain == pytest.approx(report["metrics_of_training_mean"]["mae"] - np.mean(errors), abs=1e-6)
    trained = [scan for fold in "01" for scan in json.loads((run / f"fold-{fold}/splits.json").read_text())["train"]]
    ages = [record.age_years for record in store.records() if record.scan_id in trained]
    assert report["age"]["trained_ages_years"] == [min(ages), max(ages)]
    page = (tmp_path / "report.html").read_text()
    assert "Bland and Altman" in page
    assert "bins of 5 years" in page


def test_another_cohort_is_judged_by_all_folds_together(run: Path, tmp_path: Path) -> None:
    other = ScanStore.create(str(tmp_path / "other"))
    other.commit([write_person(other, 3000 + number) for number in range(9)])
    answer = job.run(
        job.Args(run=str(run), store=other.uri, external=True, out=str(tmp_path / "out"), num_resamples=40)
    )
    assert answer["num_scans"] == 9
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = {row["scan_id"]: float(row["predicted"]) for row in csv.DictReader(file)}
    alone = []
    for fold in (0, 1):
        job.run(
            job.Args(
                run=str(run / f"fold-{fold}"),
                store=other.uri,
                external=True,
                out=str(tmp_path / f"{fold}"),
                num_resamples=5,
            )
        )
        with (tmp_path / f"{fold}" / "predictions.csv").open(newline="") as file:
            alone.append({row["scan_id"]: float(row["predicted"]) for row in csv.DictReader(file)})
    for scan_id, told in rows.items():
        assert told == pytest.approx(np.mean([each[scan_id] for each in alone]), rel=1e-6)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    # They are 3030 years old and more.
    assert report["age"]["num_scans_beyond_trained_ages"] == 9
    assert report["folds"][0]["num_subjects"]["test"] == 9
    assert not (tmp_path / "out" / "predictions_val.csv").exists()
    assert "Another cohort" in (tmp_path / "out" / "report.html").read_text()


def test_scans_that_were_trained_on_are_no_other_cohort(run: Path, store: ScanStore, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="scans of the other cohort were trained on"):
        evaluate(run, store=store.uri, external=True, num_resamples=5, facts=FACTS)
    with pytest.raises(EvaluationError, match="no other cohort is named"):
        evaluate(run, external=True, num_resamples=5, facts=FACTS)
    namesake = ScanStore.create(str(tmp_path / "namesake"))
    stranger = write_person(namesake, 777)
    namesake.commit([dataclasses.replace(stranger, subject="000")])
    found = evaluate(run, store=namesake.uri, external=True, num_resamples=5, facts=FACTS)
    assert any("1 people carry the id of somebody who was trained on" in it for it in found.warnings)


def test_age_goes_by_two_names() -> None:
    assert [is_age(name) for name in ("age", "age_years", "cognition", "stage")] == [True, True, False, False]

"""Runs of a model of windows judged: people unseen, scans averaged over windows, numbers worked out again."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.run_cohort import tiny_both, tiny_cognition, write_run_cohort
from scipy.stats import pearsonr
from sklearn.metrics import mean_absolute_error, roc_auc_score

from neuroray.jobs import evaluate as job
from neuroray.platform.evaluate.evidence import Evaluation, Judged, average_by_person
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import (
    JudgedNumber,
    NumberEvaluation,
    average_people,
    draw_people,
    measure_numbers,
    stratify_numbers,
)
from neuroray.platform.evaluate.protocol import evaluate
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.serve.predictor import load_predictor
from neuroray.storage.store import ScanStore

FACTS = {"versions": {"neuroray": "0"}, "made_at": "2026-01-01"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_run_cohort(tmp_path_factory.mktemp("judged") / "store")


@pytest.fixture(scope="module")
def both(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned sex and cognition for one epoch."""
    run = tmp_path_factory.mktemp("both") / "run"
    fit(tiny_both(loop=LoopConfig(batch_size=4, num_epochs=1)), store=store.uri, out=str(run))
    return run


@pytest.fixture(scope="module")
def folds(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds of cognition."""
    run = tmp_path_factory.mktemp("folds") / "run"
    recipe = dataclasses.replace(tiny_cognition(), loop=LoopConfig(batch_size=4, num_epochs=1, select_by="val_mae"))
    for fold in (0, 1):
        split = dataclasses.replace(recipe.split, fold=fold)
        fit(dataclasses.replace(recipe, split=split), store=store.uri, out=str(run / f"fold-{fold}"))
    return run


def test_the_main_target_is_judged_on_the_test_people_alone(both: Path, store: ScanStore) -> None:
    found = evaluate(both, num_resamples=50, facts=FACTS)
    assert isinstance(found, Evaluation)
    split = json.loads((both / "splits.json").read_text())
    known = {record.scan_id: record.sex for record in store.records()}
    assert sorted(row.scan_id for row in found.judged) == sorted(scan for scan in split["test"] if known[scan])
    probabilities = [row.probabilities[1] for row in found.judged]
    truth = [known[row.scan_id] == "M" for row in found.judged]
    assert found.metrics["auc"].value == pytest.approx(roc_auc_score(truth, probabilities))
    assert found.classes == ("F", "M")


def test_another_target_is_judged_where_it_is_named(both: Path, store: ScanStore) -> None:
    """And a scan's answer is that of the predictor, which reads it from elsewhere."""
    found = evaluate(both, target="cognition", num_resamples=50, facts=FACTS)
    assert isinstance(found, NumberEvaluation)
    known = {record.scan_id: record.cognition for record in store.records()}
    assert [row.value for row in found.judged] == [known[row.scan_id] for row in found.judged]
    row = found.judged[0]
    answer = load_predictor(str(both)).predict(store.read(row.scan_id)).targets[1]
    # One standardises stored numbers, the other values, in float32.
    assert row.predicted == pytest.approx(answer.value, abs=1e-3)
    assert (row.num_windows, row.spread is None) == (answer.num_windows, answer.spread is None)
    with pytest.raises(EvaluationError, match="no such target; given age_years; expected one of sex, cognition"):
        evaluate(both, target="age_years", num_resamples=50, facts=FACTS)


def test_folds_are_pooled_and_the_files_hold_the_same_numbers(folds: Path, tmp_path: Path) -> None:
    answer = job.run(job.Args(run=str(folds), out=str(tmp_path), num_resamples=60))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    values, said = (np.array([float(row[name]) for row in rows]) for name in ("value", "predicted"))
    assert {row["fold"] for row in rows} == {"0", "1"}
    assert {row["profile"] for row in rows} == {"fmri_minimal"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["metrics"]["pearson_r"]["value"] == pytest.approx(pearsonr(values, said).statistic, abs=1e-6)
    assert report["metrics"]["mae"]["value"] == pytest.approx(mean_absolute_error(values, said), rel=1e-6)
    assert report["metrics"]["mae"]["low"] < report["metrics"]["mae"]["value"] < report["metrics"]["mae"]["high"]
    cards = {fold: json.loads((folds / f"fold-{fold}/model/config.json").read_text()) for fold in "01"}
    guessed = np.array([cards[row["fold"]]["targets"][0]["mean"] for row in rows])
    assert report["metrics_of_training_mean"]["mae"] == pytest.approx(mean_absolute_error(values, guessed), rel=1e-6)
    assert (report["target"], report["classes"], report["num_scans"]) == ("cognition", [], len(rows))
    assert [fold["num_subjects"]["test"] for fold in report["folds"]] == [5, 5]
    assert answer["metrics"]["mae"]["value"] == report["metrics"]["mae"]["value"]
    page = (tmp_path / "report.html").read_text()
    assert "True cognition" in page
    assert "Correlation on validation people" in page
    assert not any(row["scan_id"] in page or row["scan_id"] in json.dumps(report) for row in rows)


def judged(subject: int, value: float, predicted: float, **changes: Any) -> JudgedNumber:
    settings = {"fold": 0, "scan_id": f"{subject}-{predicted}", "subject": str(subject), "guess": 0.0, **changes}
    return JudgedNumber(value=value, predicted=predicted, **settings)


def test_scans_of_a_person_are_averaged_unless_the_truth_changed() -> None:
    rows = [judged(1, 10, 8), judged(1, 10, 14), judged(1, 20, 19), judged(2, 5, 5)]
    assert [(row.subject, row.value, row.predicted) for row in average_people(rows)] == [
        ("1", 10, 11),
        ("1", 20, 19),
        ("2", 5, 5),
    ]


def test_families_are_drawn_as_a_whole() -> None:
    rows = [judged(index, index, index, family_id=str(index // 2)) for index in range(10)]
    drawn = draw_people(rows, seed=1, num_resamples=30)
    assert (drawn[:, ::2] == drawn[:, 1::2]).all()
    assert (drawn.sum(axis=1) == 10).all()


def test_strata_hold_the_people_of_each_part_and_small_ones_are_not_judged() -> None:
    draw = np.random.default_rng(0)
    rows = [
        judged(index, value, value + draw.normal() * (0.01 if index < 20 else 5), sex="F" if index < 20 else "M")
        for index, value in enumerate(draw.normal(size=24))
    ]
    women, men = stratify_numbers(rows, seed=0, num_resamples=40)
    assert (women.level, women.counts) == ("women", (20,))
    assert women.found is not None
    assert women.found.value > 0.99
    assert (men.level, men.found) == ("men", None)
    assert measure_numbers(rows, np.ones((3, 24)))["pearson_r"].value < 0.95


def test_probabilities_of_a_person_are_averaged_too() -> None:
    shared: dict[str, Any] = {"fold": 0, "subject": "1", "scan_id": "a"}
    rows = [
        Judged(**shared, label=0, probabilities=(0.9, 0.1)),
        Judged(**shared, label=0, probabilities=(0.5, 0.5)),
        Judged(**shared, label=1, probabilities=(0.2, 0.8)),
    ]
    averaged = average_by_person(rows)
    assert [row.label for row in averaged] == [0, 1]
    assert averaged[0].probabilities == pytest.approx((0.7, 0.3))

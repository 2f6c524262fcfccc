"""A run's prediction intervals from training to answer: of the validation people alone, kept with the best weights."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.run_cohort import export_untrained, tiny_cognition, write_run_cohort

from neuroray.jobs import evaluate as evaluate_job
from neuroray.jobs import export, predict
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.evaluate.conformal import NOT_RECORDED, PredictionInterval, calibrate_errors
from neuroray.platform.evaluate.coverage import measure_coverage
from neuroray.platform.evaluate.loaded import load_window_model
from neuroray.platform.evaluate.number_evidence import JudgedNumber
from neuroray.platform.evaluate.window_protocol import judge_runs
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.serve.predictor import load_predictor
from neuroray.storage.nifti import write_scan
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_run_cohort(tmp_path_factory.mktemp("bounded") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Selected on ten people, of whom nine are enough for an interval; of two epochs either may be the best."""
    folder = tmp_path_factory.mktemp("bounded_run") / "run"
    split = SplitConfig(stratify_by="cognition", num_bins=2, num_parts=5, num_folds=5, val_parts=2)
    loop = LoopConfig(batch_size=4, num_epochs=2, select_by="val_mae")
    fit(dataclasses.replace(tiny_cognition(), split=split, loop=loop), store=store.uri, out=str(folder))
    return folder


def test_the_width_is_that_of_the_exported_model_s_errors_in_validation_people(run: Path, store: ScanStore) -> None:
    model = load_window_model(run / "model")
    split = json.loads((run / "splits.json").read_text())
    truth = {record.scan_id: record.cognition for record in store.records()}
    said = {scan_id: answers[0] for scan_id, answers in judge_runs(model, store, split["val"])}
    errors = [said[scan_id].value - truth[scan_id] for scan_id in split["val"]]
    expected = calibrate_errors(errors, [f"subject:{scan_id}" for scan_id in split["val"]])
    recorded = model.provenance["intervals"]["cognition"]
    assert recorded["num_people"] == 10
    # Batches of four and of one sum in another order, of numbers near 100 in float32.
    assert recorded["half_width"] == pytest.approx(expected.half_width, abs=1e-3)
    one = said[split["val"][0]]
    assert one.interval is not None
    assert one.interval.high - one.value == pytest.approx(recorded["half_width"])


def test_the_evaluation_counts_how_often_they_hold(run: Path, tmp_path: Path) -> None:
    answer = evaluate_job.run(evaluate_job.Args(run=str(run), out=str(tmp_path), num_resamples=40))
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    held = [float(row["interval_low"]) <= float(row["value"]) <= float(row["interval_high"]) for row in rows]
    found = json.loads((tmp_path / "report.json").read_text())["prediction_intervals"]
    assert found["coverage"]["value"] == pytest.approx(np.mean(held))
    assert (found["level"], found["num_validation_people"], found["num_scans"]) == (0.9, 10, len(rows))
    assert "rest on the errors in 10 validation people" in (tmp_path / "report.html").read_text()
    assert "rest on the errors in 10 validation people" in answer["text"]


def test_coverage_is_the_share_inside_and_says_nothing_where_an_interval_is_missing() -> None:
    def judged(subject: int, predicted: float, interval: PredictionInterval | None) -> JudgedNumber:
        person: dict[str, Any] = {"fold": 0, "scan_id": str(subject), "subject": str(subject), "value": 0.0}
        return JudgedNumber(**person, predicted=predicted, guess=0, interval=interval)

    around = [PredictionInterval(low=x - 1, high=x + 1, level=0.9, num_people=9) for x in (-2.0, -0.5, 0.5, 1.0)]
    rows = [judged(index, one.low + 1, one) for index, one in enumerate(around)]
    found = measure_coverage(rows, np.ones((5, 4)))
    assert found is not None
    assert (found.found.value, found.mean_width) == (0.75, 2.0)
    assert measure_coverage([*rows, judged(9, 0.0, None)], np.ones((5, 5))) is None
    assert measure_coverage([], np.ones((5, 0))) is None


def test_predict_writes_the_interval_and_the_export_keeps_it(run: Path, store: ScanStore, tmp_path: Path) -> None:
    scan = store.read("sub-003_bold")
    write_scan(scan, tmp_path / "run.nii.gz")
    export.run(export.Args(run=str(run), out=str(tmp_path / "export")))
    card = (tmp_path / "export/README.md").read_text()
    assert "90 % interval of ±" in card
    assert "10 unrelated validation people" in card
    answer = predict.run(
        predict.Args(model=str(tmp_path / "export"), scans=(str(tmp_path / "run.nii.gz"),), out=str(tmp_path / "out"))
    )
    told = answer["predictions"][0]["targets"][0]["interval"]
    assert (told["level"], told["num_people"]) == (0.9, 10)
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["cognition_low"]), float(row["cognition_high"])) == (told["low"], told["high"])
    assert float(row["cognition_level"]) == 0.9
    assert "90% interval" in answer["text"]
    assert "by the errors in 10 people" in answer["text"]


def test_a_model_that_was_saved_without_errors_says_so(store: ScanStore, tmp_path: Path) -> None:
    folder = export_untrained(tiny_cognition(), store, tmp_path / "model")
    said = load_predictor(str(folder)).predict(store.read("sub-003_bold")).targets[0]
    assert (said.interval, said.no_interval) == (None, NOT_RECORDED)

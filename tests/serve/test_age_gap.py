"""The gap beside a predicted age: raw, corrected by held-out controls, or a word why not; by files and by HTTP."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.age_cohort import tiny, write_age_cohort
from fastapi.testclient import TestClient

from neuroray.jobs import evaluate, export, gap, predict
from neuroray.jobs.cli import UsageError
from neuroray.platform.brain_age_gap.answer_line import LINE_FILE, AnswerLine, draw_answer_line
from neuroray.platform.brain_age_gap.answers import AgeAnswer
from neuroray.platform.brain_age_gap.correction import GapCorrection
from neuroray.platform.brain_age_gap.errors import GapError
from neuroray.platform.brain_age_gap.study import study_gap
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.evaluate.conformal import PredictionInterval
from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.platform.train.loop import fit
from neuroray.serve.age_gap import caution_gap, measure_gap
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.nifti import write_scan
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

LINE = AnswerLine(
    correction=GapCorrection(
        slope=0.8,
        intercept_years=10.0,
        num_scans=34,
        num_people=30,
        mean_age_years=50.0,
        ages_years=(20.0, 80.0),
        residual_years=4.0,
    ),
    fitted_on="validation",
    controls=("control",),
    is_useless=False,
    weights_sha256=("a",),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def bare(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has judged."""
    folder = tmp_path_factory.mktemp("bare")
    split = SplitConfig(stratify_by="age_years", num_bins=2, num_parts=4, num_folds=4)
    fit(tiny(split=split), store=store.uri, out=str(folder))
    return folder


@pytest.fixture(scope="module")
def judged(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its line of controls."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(bare, folder)
    evaluate.run(evaluate.Args(run=str(folder), num_resamples=50))
    gap.run(gap.Args(run=str(folder), num_resamples=50))
    return folder


@pytest.fixture
def scan_file(store: ScanStore, tmp_path: Path) -> Path:
    path = tmp_path / "head.nii.gz"
    write_scan(store.read("sub-004_T1w"), path)
    return path


def test_the_gaps_are_those_of_the_formulas() -> None:
    said = TargetAnswer(
        name="age_years",
        value=60.0,
        unit="years",
        interval=PredictionInterval(low=52.0, high=68.0, level=0.9, num_people=20),
    )
    found = measure_gap((said,), 50.0, LINE, None)
    assert found is not None
    assert found.raw_years == pytest.approx(10.0)
    assert found.interval == PredictionInterval(low=2.0, high=18.0, level=0.9, num_people=20)
    # A control of 50 is told 0.8 * 50 + 10 = 50; by inversion (60 - 10) / 0.8 = 62.5.
    assert found.beheshti_years == pytest.approx(10.0)
    assert found.cole_years == pytest.approx(12.5)
    assert found.sds_of_controls == pytest.approx(2.5)
    assert caution_gap(found, LINE) == []


def test_a_line_too_flat_is_not_inverted_and_a_useless_model_is_named() -> None:
    flat = dataclasses.replace(LINE.correction, slope=0.05, intercept_years=47.5)
    line = dataclasses.replace(LINE, correction=flat, is_useless=True)
    found = measure_gap((TargetAnswer(name="age_years", value=52.0, unit="years"),), 90.0, line, None)
    assert found is not None
    assert found.cole_years is None
    assert found.beheshti_years == pytest.approx(52.0 - (0.05 * 90 + 47.5))
    notes = caution_gap(found, line)
    assert notes[0] == "90 years old; the gap is corrected by controls of 20 to 80 years"
    assert "not known to do better than saying the mean age" in notes[1]


def test_a_line_of_several_folds_is_that_of_all_held_out_controls() -> None:
    rng = np.random.default_rng(3)
    ages = rng.uniform(20, 80, 60)
    answers = [
        AgeAnswer(
            fold=number % 2,
            scan_id=f"s{number}",
            subject=f"s{number}",
            age_years=float(age),
            predicted_years=float(0.7 * age + 15 + 30 * (number % 3 == 0)),
            group="patient" if number % 3 == 0 else "control",
        )
        for number, age in enumerate(ages)
    ]
    line = draw_answer_line(study_gap(answers, controls=("control",), num_resamples=20), ["b", "a", "b"])
    assert (line.fitted_on, line.controls, line.weights_sha256) == ("held_out", ("control",), ("a", "b"))
    # The controls lie on the line exactly; patients, 30 years above it, have no part in it.
    assert line.correction.slope == pytest.approx(0.7)
    assert line.correction.intercept_years == pytest.approx(15.0)
    assert AnswerLine.from_json(json.loads(json.dumps(line.to_json()))) == line


@pytest.mark.parametrize("change", [{"format": 2}, {"correction": {}}, {"controls": None}])
def test_a_line_that_is_not_whole_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(GapError):
        AnswerLine.from_json(LINE.to_json() | change)


def test_without_a_line_the_raw_gap_stands_alone_and_says_why(bare: Path, scan_file: Path, tmp_path: Path) -> None:
    args = predict.Args(model=str(bare), scans=(str(scan_file),), sex="F", age_years=44.0, out=str(tmp_path / "out"))
    answer = predict.run(args)
    (row,) = answer["predictions"]
    assert row["gap"]["raw_years"] == pytest.approx(row["targets"][0]["value"] - 44.0)
    assert row["gap"]["beheshti_years"] is None
    assert "the model carries no line of controls" in answer["text"]


def test_the_corrected_gap_is_by_the_line_that_the_gap_job_fitted(
    judged: Path, store: ScanStore, scan_file: Path, tmp_path: Path
) -> None:
    args = predict.Args(model=str(judged), scans=(str(scan_file),), sex="F", age_years=44.0, out=str(tmp_path / "out"))
    answer = predict.run(args)
    (row,) = answer["predictions"]
    (fold,) = json.loads((judged / "gap/gap.json").read_text())["correction"]["folds"]
    expected = row["targets"][0]["value"] - (fold["slope"] * 44.0 + fold["intercept_years"])
    assert row["gap"]["beheshti_years"] == pytest.approx(expected)
    assert row["gap"]["cole_years"] == pytest.approx(expected / fold["slope"])
    assert (row["gap"]["fitted_on"], row["gap"]["num_controls"]) == ("validation", fold["num_people"])
    assert "gap: raw " in answer["text"]
    assert "years (Cole), by a line through" in answer["text"]
    (line,) = csv.DictReader((tmp_path / "out/predictions.csv").open())
    assert float(line["true_age_years"]) == 44.0
    assert float(line["gap_raw_years"]) == row["gap"]["raw_years"]
    assert float(line["gap_cole_years"]) == row["gap"]["cole_years"]


def test_a_table_tells_sex_and_age_file_by_file(judged: Path, store: ScanStore, tmp_path: Path) -> None:
    names = ("sub-001_T1w", "sub-002_T1w", "sub-004_ses-b_T1w")
    for name in names:
        write_scan(store.read(name.replace("_ses-b", "")), tmp_path / f"{name}.nii.gz")
    files = tuple(str(tmp_path / f"{name}.nii.gz") for name in names)
    table = tmp_path / "people.csv"
    table.write_text("participant_id,session_id,sex,age_months\n001,,F,480\n002,,n/a,n/a\n004,a,M,600\n004,b,M,612\n")
    answer = predict.run(predict.Args(model=str(judged), scans=files, people=str(table), out=str(tmp_path / "out")))
    first, second, third = answer["predictions"]
    assert first["gap"]["age_years"] == 40.0
    assert not any("sex" in note for note in first["warnings"])
    assert second["gap"] is None
    assert any("the sex is not known" in note for note in second["warnings"])
    assert third["gap"]["age_years"] == 51.0
    alone = predict.Args(model=str(judged), scans=files[:1], sex="F", age_years=40.0, out=str(tmp_path / "alone"))
    assert predict.run(alone)["predictions"][0]["gap"] == first["gap"]
    with pytest.raises(UsageError, match="told twice"):
        predict.run(dataclasses.replace(alone, people=str(table)))
    table.write_text("participant_id,sex\n001,F\n")
    with pytest.raises(UsageError, match="does not know who is in"):
        predict.run(predict.Args(model=str(judged), scans=files, people=str(table), out=str(tmp_path / "none")))


def test_without_an_age_there_is_no_gap(judged: Path, store: ScanStore) -> None:
    prediction = load_predictor(str(judged)).predict(store.read("sub-004_T1w"), sex="F")
    assert prediction.gap is None


def test_the_exported_folder_corrects_alike(judged: Path, store: ScanStore, tmp_path: Path) -> None:
    answer = export.run(export.Args(run=str(judged), out=str(tmp_path / "model")))
    assert answer["has_age_correction"]
    scan = store.read("sub-004_T1w")
    said = [
        load_predictor(str(folder)).predict(scan, sex="M", age_years=31.5) for folder in (judged, tmp_path / "model")
    ]
    assert said[0].gap is not None
    assert said[0].gap.cole_years is not None
    assert said[0].gap == said[1].gap


def test_the_line_of_other_weights_is_not_used(judged: Path, bare: Path, store: ScanStore, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(bare, folder)
    line = json.loads((judged / "gap" / LINE_FILE).read_text())
    (folder / "gap").mkdir()
    (folder / "gap" / LINE_FILE).write_text(json.dumps(line | {"weights_sha256": ["0" * 64]}))
    found = load_predictor(str(folder)).predict(store.read("sub-004_T1w"), sex="M", age_years=31.5).gap
    assert found is not None
    assert found.beheshti_years is None
    assert found.no_correction is not None
    assert "fitted to what other weights said" in found.no_correction
    with pytest.raises(GapError, match="other weights"):
        export.run(export.Args(run=str(folder), out=str(tmp_path / "model")))


def test_the_service_answers_with_age_interval_and_gaps(judged: Path, scan_file: Path, tmp_path: Path) -> None:
    predictor = load_predictor(str(judged))

    async def ask(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=2**20)

    api = build_api(ServeConfig(models={"age": "x"}), cards={"age": predictor.card}, ask=ask)
    with TestClient(api) as client:

        def post(**fields: str) -> dict[str, Any]:
            files = {"file": ("head.nii.gz", scan_file.read_bytes())}
            response = client.post("/v1/models/age/predict", files=files, data=fields)
            assert response.status_code == 200, response.text
            return response.json()

        told, untold = post(sex="F", age_years="44"), post()
        examples = client.get("/openapi.json").json()["components"]["schemas"]["PredictionAnswer"]["examples"]
    arguments = predict.Args(
        model=str(judged), scans=(str(scan_file),), sex="F", age_years=44.0, out=str(tmp_path / "o")
    )
    (expected,) = predict.run(arguments)["predictions"]
    assert told["targets"][0]["value"] == pytest.approx(expected["targets"][0]["value"], abs=1e-4)
    assert told["targets"][0]["unit"] == "years"
    assert told["gap"]["cole_years"] == pytest.approx(expected["gap"]["cole_years"], abs=1e-4)
    assert not any("sex" in note for note in told["warnings"])
    assert untold["gap"] is None
    assert any("the sex is not known: the answer is the mean of" in note for note in untold["warnings"])
    example = next(one for one in examples if one["targets"][0]["name"] == "age_years")
    interval = told["targets"][0]["interval"]
    assert interval["low"] < told["targets"][0]["value"] < interval["high"]
    assert told["gap"]["interval"]["low"] == pytest.approx(interval["low"] - 44)
    # FastAPI leaves null out of its description.
    assert set(example["gap"]) == {name for name, value in told["gap"].items() if value is not None}

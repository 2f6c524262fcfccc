"""The jobs with a run of BrainRotViT: predict with and without a sex, evaluate, export, extract."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import pytest
from contracts.age_cohort import tiny, write_age_cohort

from neuroray.jobs import evaluate, export, extract, predict
from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig, RecipeError
from neuroray.storage.nifti import write_scan
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(tiny(loop=LoopConfig(num_epochs=2, select_by="val_mae")), store=store.uri, out=str(folder))
    return folder


@pytest.fixture
def scan_file(store: ScanStore, tmp_path: Path) -> Path:
    path = tmp_path / "head.nii.gz"
    write_scan(store.read("sub-004_T1w"), path)
    return path


def test_predict_tells_years_and_takes_a_sex(run: Path, scan_file: Path, tmp_path: Path) -> None:
    said = {}
    for name, sex in (("none", None), ("F", "F"), ("M", "M")):
        answer = predict.run(predict.Args(model=str(run), scans=(str(scan_file),), sex=sex, out=str(tmp_path / name)))
        said[name] = answer["predictions"][0]["targets"][0]["value"]
        assert answer["exit_code"] == 0
        assert "age_years" in answer["text"]
        assert " years" in answer["text"]
        assert ("the sex is not known" in answer["text"]) == (sex is None)
    assert said["none"] == pytest.approx((said["F"] + said["M"]) / 2, abs=1e-4)  # float32 around values of 50
    (row,) = csv.DictReader((tmp_path / "none" / "predictions.csv").open())
    assert float(row["age_years"]) == said["none"]


def test_an_answer_comes_with_a_map_that_adds_up(run: Path, scan_file: Path, tmp_path: Path) -> None:
    arguments = predict.Args(model=str(run), scans=(str(scan_file),), explain=True, out=str(tmp_path / "out"))
    answer = predict.run(arguments)
    assert answer["exit_code"] == 0
    told = answer["predictions"][0]["explanation"]
    assert (told["method"], told["unit"]) == ("grad_x_token", "years")
    assert told["completeness_error"] < 1e-4
    image = nibabel.nifti1.Nifti1Image.from_filename(told["files"]["map"])
    expected = told["expected_sum"] - told["prefix_tokens"]["sum"]
    assert image.get_fdata().sum() == pytest.approx(expected, abs=1e-4 * told["map"]["sum_of_magnitudes"])


def test_the_evaluation_writes_a_report_in_years(store: ScanStore, run: Path, tmp_path: Path) -> None:
    answer = evaluate.run(evaluate.Args(run=str(run), store=store.uri, out=str(tmp_path), num_resamples=50))
    assert (answer["target"], answer["num_scans"]) == ("age_years", 6)
    page = (tmp_path / "report.html").read_text()
    assert "Of every scan it says one number." in page
    assert "windows" not in page.split("<body")[1].split("Methods")[0]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["metrics"]["mae"]["value"] == pytest.approx(answer["metrics"]["mae"]["value"])


def test_the_exported_model_has_a_card_and_answers_alike(run: Path, scan_file: Path, tmp_path: Path) -> None:
    answer = export.run(export.Args(run=str(run), out=str(tmp_path / "model")))
    assert answer["probe"].keys() == {"outputs"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# brainrotvit for age_years" in card
    assert "**It has not been judged.**" in card
    arguments = {"scans": (str(scan_file),), "sex": "M"}
    first = predict.run(predict.Args(model=str(run), out=str(tmp_path / "a"), **arguments))
    again = predict.run(predict.Args(model=str(tmp_path / "model"), out=str(tmp_path / "b"), **arguments))
    assert first["predictions"][0]["targets"] == again["predictions"][0]["targets"]


def test_two_copies_probe_alike_bit_for_bit(run: Path) -> None:
    from neuroray.platform.evaluate.loaded import load_measure_model

    first, second = load_measure_model(run / "model"), load_measure_model(run / "model")
    assert isinstance(first, SliceMeasureModel)
    assert first.probe()["outputs"].equal(second.probe()["outputs"])


def test_extract_wants_a_finished_first_stage_as_encoder(store: ScanStore, run: Path) -> None:
    with pytest.raises(RecipeError, match="there is no encoder here"):
        extract.run(extract.Args(store=store.uri, recipe="brainrotvit:smoke", encoder=str(run)))

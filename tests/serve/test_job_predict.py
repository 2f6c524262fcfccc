"""`neuroray predict`: answers to files, and a refusal for each that is none."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from neuroray.jobs.cli import main
from neuroray.serve.predictor import PredictorError, load_predictor
from neuroray.storage.nifti import read_scan


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["predict", *map(str, arguments)])
    printed = capsys.readouterr()
    return int(left.value.code or 0), printed.out, printed.err


def test_a_good_file_is_answered(
    capsys: pytest.CaptureFixture[str], model_folder: Path, real_t1: Path, tmp_path: Path
) -> None:
    code, out, _ = call(capsys, model_folder, real_t1, "--out", tmp_path, "--json")
    expected = load_predictor(str(model_folder)).predict(read_scan(real_t1))
    assert code == 0
    answer = json.loads(out)
    assert answer["predictions"][0]["probabilities"] == expected.probabilities
    assert answer["predictions"][0]["refusal"] is None
    assert answer["model"]["version"] == expected.model.version
    assert json.loads((tmp_path / "predictions.json").read_text())["predictions"] == answer["predictions"]
    assert json.loads((tmp_path / "run.json").read_text())["model"]["version"] == expected.model.version


def test_a_bad_file_is_listed_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str], model_folder: Path, real_t1: Path, hard_folder: Path, tmp_path: Path
) -> None:
    (bold,) = real_t1.parents[1].glob("func/*_bold.nii.gz")
    bad = [hard_folder / "html_error_page.nii.gz", tmp_path / "missing.nii.gz", bold]
    code, out, _ = call(capsys, model_folder, *bad, real_t1, "--out", tmp_path / "out")
    assert code == 1
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    assert [bool(row["refusal"]) for row in rows] == [True, True, True, False]
    assert [bool(row["label"]) for row in rows] == [False, False, False, True]
    assert [row["profile"] for row in rows] == ["", "", "", "native"]
    assert len(rows[3]["profile_sha256"]) == 64
    assert "not for time series" in rows[2]["refusal"]
    assert float(rows[3]["probability_control"]) + float(rows[3]["probability_patient"]) == pytest.approx(1.0)
    assert out.count("refused: ") == 3
    assert json.loads((tmp_path / "out/run.json").read_text())["num_refused"] == 3


def test_the_page_tells_what_was_answered_and_refused_and_needs_no_second_file(
    capsys: pytest.CaptureFixture[str], model_folder: Path, real_t1: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "a<b>.txt"
    code, out, _ = call(capsys, model_folder, real_t1, odd, "--explain", "--out", tmp_path / "out")
    page = (tmp_path / "out/predictions.html").read_text()
    assert code == 1
    assert "1 of 2 files are answered for, 1 was refused" in page
    answer = json.loads((tmp_path / "out/predictions.json").read_text())["predictions"][0]
    label = answer["label"]
    assert f"{label} (probability {answer['probabilities'][label]:.3f})" in page
    assert "a&lt;b&gt;.txt" in page
    assert page.count("data:image/png;base64,") == 1
    assert "maps/1.nii.gz" in page
    assert str(tmp_path) not in page.replace(str(odd), "").replace("a&lt;b&gt;", "")
    assert not re.search(r"(src|href)=.http", page)
    assert "predictions.html" in out


def test_without_a_model_nothing_is_read(capsys: pytest.CaptureFixture[str], real_t1: Path, tmp_path: Path) -> None:
    code, _, err = call(capsys, tmp_path, real_t1, "--out", tmp_path / "out")
    assert code == 1
    assert "there is no model" in err
    assert len(err.strip().splitlines()) == 1
    assert PredictorError.__name__ in json.loads((tmp_path / "out/run.json").read_text())["error"]

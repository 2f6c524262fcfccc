"""`neuroray predict` of a NeuroAR run: region volumes by scan and age, for people of a table or all alike."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from contracts.ageing_run import ages_of, train_ageing_run, write_ball

from neuroray.jobs import generate, predict
from neuroray.jobs.cli import UsageError
from neuroray.platform.generate.ages import GenerationError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train_ageing_run(tmp_path_factory.mktemp("ageing"))
    for name in ("sub-01_ses-1_T1w", "sub-02_ses-1_T1w"):
        write_ball(folder / f"{name}.nii.gz")
    return folder


def ask(folder: Path, out: Path, *names: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    scans = tuple(str(folder / f"{name}.nii.gz") for name in names or ("sub-01_ses-1_T1w",))
    answer = predict.run(predict.Args(model=str(folder / "run"), scans=scans, out=str(out), **options))
    with (out / "predictions.csv").open(newline="") as file:
        return answer, list(csv.DictReader(file))


def test_the_table_has_the_scan_and_each_age_with_what_generate_measures(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    answer, lines = ask(folder, tmp_path / "predict", age_years=low, ages=(high, low))
    scan = str(folder / "sub-01_ses-1_T1w.nii.gz")
    told = generate.run(
        generate.Args(
            run=str(folder / "run"), scan=scan, age_years=low, ages=(high, low), out=str(tmp_path / "generate")
        )
    )
    assert [(line["age_years"], line["told_age_years"]) for line in lines] == [
        (str(low), ""),
        (str(low), str(high)),
        (str(low), str(low)),
    ]
    for line, one in zip(lines[1:], told["ages"], strict=True):
        for name, value in one["regions_ml"].items():
            assert float(line[f"{name}_ml"]) == value
            change = value - told["regions"]["reconstruction_ml"][name]
            assert float(line[f"{name}_change_ml"]) == pytest.approx(change, rel=1e-9, abs=1e-9)
        assert float(line["changed_token_fraction"]) == one["changed_token_fraction"]
        assert float(line["reconstruction_psnr_db"]) == told["reconstruction"]["psnr_db"]
    assert float(lines[0]["fluid_ml"]) == told["regions"]["scan_ml"]["fluid"]
    assert lines[0]["warnings"]
    assert (tmp_path / "predict/strips/1.png").read_bytes() == (tmp_path / "generate/strip.png").read_bytes()
    page = (tmp_path / "predict/predictions.html").read_text()
    assert "the same brain at other ages" in page
    assert "data:image/png;base64," in page
    assert f"{high:g} years: fluid" in answer["text"]


def test_regions_add_up_to_the_brain(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    _, lines = ask(folder, tmp_path, age_years=low, ages=(high,))
    image = nib.load(folder / "sub-01_ses-1_T1w.nii.gz")
    brain_ml = (np.asarray(image.dataobj) != 0).sum() * 64 / 1000
    for line in lines:
        total = sum(float(line[f"{name}_ml"]) for name in ("fluid", "grey", "white"))
        assert total == pytest.approx(brain_ml, rel=1e-4)  # float32 shares


def test_a_table_of_people_says_who_is_asked_for_which_ages(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    (tmp_path / "people.tsv").write_text(
        "participant_id\tage\tsex\tdiagnosis\ttarget_ages_years\n"
        f"sub-01\t{low}\tF\tn/a\t{high} {low}\n"
        f"sub-02\t{high}\tM\tn/a\t{low}\n"
    )
    people = str(tmp_path / "people.tsv")
    names = ("sub-01_ses-1_T1w", "sub-02_ses-1_T1w")
    answer, lines = ask(folder, tmp_path / "column", *names, people=people)
    assert [line["told_age_years"] for line in lines] == ["", str(high), str(low), "", str(low)]
    assert answer["exit_code"] == 0
    _, lines = ask(folder, tmp_path / "years", *names, people=people, in_years=(1.0,), allow_outside=True)
    assert [float(line["told_age_years"]) for line in lines if line["told_age_years"]] == pytest.approx(
        [low + 1, high + 1]
    )


def test_one_refused_scan_leaves_the_others(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    (tmp_path / "people.tsv").write_text(f"participant_id\tage\tsex\nsub-01\t9\tF\nsub-02\t{low}\tM\n")
    answer, lines = ask(
        folder,
        tmp_path / "out",
        "sub-01_ses-1_T1w",
        "sub-02_ses-1_T1w",
        people=str(tmp_path / "people.tsv"),
        ages=(high,),
    )
    assert answer["exit_code"] == 1
    assert "the scan is a child's" in lines[0]["refusal"]
    assert [line["refusal"] for line in lines[1:]] == ["", ""]
    assert json.loads((tmp_path / "out/predictions.json").read_text())["num_refused"] == 1


def test_a_diagnosis_of_the_table_that_training_has_not_seen_is_refused(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copy(folder / "sub-01_ses-1_T1w.nii.gz", tmp_path)
    path = tmp_path / "run/model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"diagnoses": {"control": 3}}))
    (tmp_path / "people.tsv").write_text(f"participant_id\tage\tsex\tdiagnosis\nsub-01\t{low}\tF\tdementia\n")
    asked: dict[str, Any] = {"people": str(tmp_path / "people.tsv"), "ages": (high,)}
    _, (line,) = ask(tmp_path, tmp_path / "out", **asked)
    assert "trained on nobody with this diagnosis" in line["refusal"]
    _, lines = ask(tmp_path, tmp_path / "out", **asked, allow_outside=True)
    assert "dementia: the model was trained on control" in lines[1]["warnings"]


def test_which_ages_must_be_said_once(folder: Path, tmp_path: Path) -> None:
    low, high = ages_of(folder / "run")
    with pytest.raises(UsageError, match=r"needs to know which.*target_ages_years"):
        ask(folder, tmp_path, age_years=low)
    with pytest.raises(UsageError, match="told twice"):
        ask(folder, tmp_path, age_years=low, ages=(high,), in_years=(2.0,))
    _, (line,) = ask(folder, tmp_path, ages=(high,))
    assert "age at which the scan was made is not given" in line["refusal"]
    _, (line,) = ask(folder, tmp_path, in_years=(2.0,))
    assert "age at which the scan was made is not given" in line["refusal"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ages": (float("nan"),)}, "target age is no number"),
        ({"ages": (-3.0,)}, r"before birth.*--in-years takes these"),
        ({"ages": (66.0, 66.0)}, "asked for twice"),
        ({"in_years": (float("inf"),)}, "years after the scan are no number"),
    ],
)
def test_ages_that_are_none_are_refused_before_any_scan_is_read(
    folder: Path, tmp_path: Path, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises((GenerationError, UsageError), match=told):
        ask(folder, tmp_path, "nowhere", age_years=60.0, **asked)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["run.json"])

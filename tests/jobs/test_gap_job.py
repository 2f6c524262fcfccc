"""`neuroray gap` on tables beside a store: joins, refusals, and the words of wrong use."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from contracts.finished_run import make_store

from neuroray.jobs.cli import main


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("aged") / "store", num_subjects=60)


@pytest.fixture
def judged(store, tmp_path):
    """What `neuroray evaluate` leaves of a run of two folds: a model that sees 0.8 of age, and a gap of 4 years."""
    folder = tmp_path / "run" / "evaluate"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "scan_id", "value", "predicted"])
        for index, record in enumerate(store.records()):
            seen = record.age_years + 4 * (record.diagnosis == "patient")
            # Neighbours may be a family, and stay in one fold.
            writer.writerow([index // 2 % 2, record.scan_id, record.age_years, 10 + 0.8 * seen + rng.normal()])
    told = {"provenance": {"store": store.uri, "catalogue_version": store.version}}
    (folder / "report.json").write_text(json.dumps(told))
    return folder.parent


def _run(arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in arguments])
    return leaving.value.code


def test_a_judged_run_gives_gaps_and_a_page(judged, store, capsys):
    words = ["gap", judged, "--controls", "control", "--num-resamples", "100", "--json"]
    assert _run(words) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["num_scans"] == 60
    assert answer["correction"]["fitted_on"] == "other_folds"
    cases = {case["gap"]: case for case in answer["cases"]}
    assert cases["cole"]["comparison"]["difference_years"]["value"] == pytest.approx(4, rel=0.25)
    assert cases["beheshti"]["comparison"]["difference_years"]["value"] == pytest.approx(0.8 * 4, rel=0.25)
    with (judged / "gap" / "gap.csv").open(newline="") as file:
        rows = {row["scan_id"]: row for row in csv.DictReader(file)}
    assert {name: row["group"] for name, row in rows.items()} == {it.scan_id: it.diagnosis for it in store.records()}
    assert (judged / "gap" / "gap.html").is_file()
    assert json.loads((judged / "gap" / "run.json").read_text())["status"] == "done"


def test_the_words_say_raw_first_and_then_the_groups(judged, capsys):
    assert _run(["gap", judged, "--controls", "control", "--num-resamples", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Brains of “patient” look")
    assert lines[1].strip().startswith("Uncorrected, off by")
    assert [line.split(",")[1].split(":")[0].strip() for line in lines[2:5]] == [
        "raw",
        "corrected for age (Beheshti",
        "corrected by inversion (Cole)",
    ]


def test_a_baselines_table_is_read_by_the_predictors_name(judged, store, tmp_path, capsys):
    folder = tmp_path / "table"
    folder.mkdir()
    rows = list(csv.DictReader((judged / "evaluate" / "predictions.csv").open(newline="")))
    with (folder / "baselines_predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["predictor", "fold", "scan_id", "truth", "predicted"])
        for name, shift in (("mean", 100), ("ridge_pca", 0)):
            for row in rows:
                writer.writerow([name, row["fold"], row["scan_id"], row["value"], float(row["predicted"]) + shift])
    words = ["gap", folder, "--store", store.uri, "--num-resamples", "20", "--json"]
    assert _run([*words, "--predictor", "ridge_pca"]) == 0
    assert json.loads(capsys.readouterr().out)["raw"]["mae"]["value"] < 10
    assert _run(words) != 0
    assert "expected one of mean, ridge_pca; likely fix: --predictor NAME" in capsys.readouterr().err


def test_another_cohort_is_corrected_by_the_runs_own_controls(judged, tmp_path, capsys):
    """Its people have the ids of the run's, and are others."""
    other = make_store(tmp_path / "other", num_subjects=30, seed=9)
    folder = tmp_path / "external"
    folder.mkdir()
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "scan_id", "value", "predicted"])
        writer.writerows([0, it.scan_id, it.age_years, 10 + 0.8 * it.age_years] for it in other.records())
    own = judged / "evaluate" / "predictions.csv"
    words = ["gap", folder, "--store", other.uri, "--controls", "control", "--num-resamples", "20", "--json"]
    assert _run([*words, "--fit-predictions", own]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["correction"]["fitted_on"] == "table"
    assert answer["correction"]["folds"][0]["num_people"] == 30
    # The line that the run's model really has: 0.8 years a year.
    assert answer["correction"]["folds"][0]["slope"] == pytest.approx(0.8, abs=0.05)
    assert _run(words) != 0
    assert "nobody to fit the correction on" in capsys.readouterr().err


def test_ages_that_are_not_the_stores_are_refused(judged, capsys):
    path = judged / "evaluate" / "predictions.csv"
    text = path.read_text().splitlines()
    months = [text[0], *(",".join([*line.split(",")[:2], "600", "610"]) for line in text[1:])]
    path.write_text("\n".join(months) + "\n")
    assert _run(["gap", judged]) != 0
    assert "judged by other ages than the store's" in capsys.readouterr().err


def test_a_folder_without_answers_and_scans_of_another_store_are_refused(judged, tmp_path, capsys):
    assert _run(["gap", tmp_path]) == 2
    assert "neuroray evaluate" in capsys.readouterr().err
    other = make_store(tmp_path / "other", num_subjects=4)
    assert _run(["gap", judged, "--store", other.uri]) != 0
    assert "56 scans" in capsys.readouterr().err

"""From a run of BrainRotViT to its gap: trained, judged, held against a baseline, corrected by validation people."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from contracts.age_cohort import tiny, write_age_cohort

from neuroray.jobs import baselines, evaluate, gap
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.train.loop import fit
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    split = SplitConfig(stratify_by="age_years", num_bins=2, num_parts=4, num_folds=4)
    fit(tiny(split=split), store=store.uri, out=str(folder))
    evaluate.run(evaluate.Args(run=str(folder), num_resamples=50))
    return folder


def test_the_gap_is_corrected_by_the_validation_side_and_no_one_else(run: Path, store: ScanStore) -> None:
    answer = gap.run(gap.Args(run=str(run), num_resamples=50))
    split = json.loads((run / "splits.json").read_text())
    with (run / "gap" / "gap.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["scan_id"] for row in rows) == sorted(split["test"])
    (fold,) = answer["correction"]["folds"]
    assert (answer["correction"]["fitted_on"], fold["num_scans"]) == ("validation", len(split["val"]))
    report = json.loads((run / "evaluate" / "report.json").read_text())
    assert answer["raw"]["mae"]["value"] == pytest.approx(report["metrics"]["mae"]["value"], rel=1e-6)
    # Age is planted in the features.
    assert not answer["is_useless"]


def test_the_model_and_ridge_on_its_features_stand_in_one_table(run: Path, tmp_path: Path) -> None:
    args = baselines.Args(run=str(run), baselines=("mean", "vit_ridge"), num_resamples=100, out=str(tmp_path))
    answer = baselines.run(args)
    errors = {name: found["mae"]["value"] for name, found in answer["metrics"].items()}
    assert set(errors) == {"mean", "vit_ridge", "model"}
    assert max(errors["model"], errors["vit_ridge"]) < errors["mean"] / 2
    table = (tmp_path / "baselines.md").read_text()
    assert "Model minus baseline" in table
    assert "Each minus saying the mean" in table

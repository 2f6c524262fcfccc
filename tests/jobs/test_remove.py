"""`remove`: says first what it would delete, then deletes it, the lines of its reports included."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroray.jobs import ingest, remove
from neuroray.storage.store import ScanStore


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Two people; the scan of the one who leaves was flagged."""
    folder = tmp_path / "source"
    folder.mkdir()
    for seed, name in enumerate(("sub-leaves_T1w", "sub-stays_T1w")):
        voxels = np.random.default_rng(seed).normal(5, 1, (6, 7, 8)).astype(np.float32)
        voxels[0, 0, 0] = np.nan
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), folder / f"{name}.nii.gz")
    return ingest.run(ingest.Args(source=str(folder), store=str(tmp_path / "store"))).store


def test_without_yes_it_only_says_what_it_would_do(store: str):
    answer = remove.run(remove.Args(store=store, subject=("leaves",)))
    assert not answer.is_done
    assert (answer.num_people, answer.num_scans) == (1, 1)
    assert "--yes" in str(answer)
    assert len(ScanStore(store).records()) == 2


def test_the_person_goes_and_the_record_does_not_say_who(store: str, tmp_path: Path):
    answer = remove.run(remove.Args(store=store, subject=("leaves",), yes=True, out=str(tmp_path / "out")))
    assert (answer.is_done, answer.num_scans, answer.num_rows, len(answer.reports_changed)) == (True, 1, 1, 1)
    assert [record.subject for record in ScanStore(store).records()] == ["stays"]
    (report,) = Path(store).glob("reports/*/ingest_report.json")
    assert list(json.loads(report.read_text())["flagged"]) == ["sub-stays_T1w"]
    record = (tmp_path / "out/run.json").read_text()
    assert "leaves" not in record
    assert json.loads(record)["num_people"] == 1
    named = [path for path in Path(store).rglob("*") if path.is_file() and b"sub-leaves" in path.read_bytes()]
    assert named == []

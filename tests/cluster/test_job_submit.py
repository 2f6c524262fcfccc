"""`ray job submit --working-dir .` against a real head that asks for a token."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroray.serve.predictor import load_predictor
from neuroray.storage.participants import Participant
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Twelve people of noise: enough for every part of a split, and quick to look at."""
    store = ScanStore.create(tmp_path / "store")
    draw = np.random.default_rng(0)
    records = []
    for number in range(12):
        scan = Scan(voxels=draw.normal(100, 10, (24, 28, 40)).astype(np.float32), affine=np.diag([6.0, 6.0, 4.0, 1.0]))
        person = Participant(subject=f"{number:02}", diagnosis=("control", "patient")[number % 2])
        names = {"scan_id": f"sub-{number:02}_T1w", "subject": person.subject, "modality": "T1w"}
        records.append(store.write(scan, **names, participant=person, commit=False))
    store.commit(records)
    return store.uri


def test_a_submitted_training_succeeds(head: Any, store: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ["python", "-m", "neuroray", "train", "dinoatten3d:smoke", "--store", store, "--out", str(run)]
    options = [
        "--extract",
        "--workers",
        "2",
        "--split.num-parts",
        "3",
        "--split.num-folds",
        "3",
        "--loop.num-epochs",
        "2",
    ]
    head.submit(*train, *options)
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    # What the cluster wrote is a whole model, by its digest.
    assert load_predictor(str(run)).card.classes == ("control", "patient")


def test_without_the_token_nothing_is_told(head: Any) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        head.open("/api/jobs/", with_token=False)
    assert refused.value.code == 401

"""Whether an age model knows people who are judged: by ids in one store, by voxels and files across stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from neuroray.platform.data.splits import Split, SplitConfig
from neuroray.platform.evaluate.age_model_overlap import find_age_overlap
from neuroray.storage.records import ScanRecord
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


def fill(folder: Path, subjects: str, *, seed: int) -> ScanStore:
    store = ScanStore.create(str(folder))
    for index, name in enumerate(subjects):
        voxels = np.random.default_rng([seed, index]).uniform(1, 2, (5, 6, 7)).astype(np.float32)
        scan = Scan(voxels=voxels, affine=np.eye(4))
        store.write(scan, scan_id=f"sub-{name}_T1w", subject=name, modality="T1w")
    return store


def write_run(folder: Path, store: ScanStore) -> Path:
    """Trained on a and b, selected on c, tested on d."""
    names = {"train": ("sub-a_T1w", "sub-b_T1w"), "val": ("sub-c_T1w",), "test": ("sub-d_T1w",)}
    labels = dict.fromkeys((scan_id for side in names.values() for scan_id in side), "60")
    split = Split(config=SplitConfig(), labels=labels, catalogue_version=store.version, **names)
    card = {"model_name": "brainrotvit", "classes": [], "target": "age_years", "modality": "T1w"}
    (folder / "model").mkdir(parents=True)
    (folder / "splits.json").write_text(json.dumps(split.to_json()))
    (folder / "config.json").write_text(json.dumps({"data": {"store": store.uri}}))
    (folder / "model" / "config.json").write_text(json.dumps(card))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    return fill(tmp_path / "store", "abcd", seed=0)


def pick(store: ScanStore, subjects: str) -> list[ScanRecord]:
    return [record for record in store.records() if record.subject in subjects]


def test_people_of_one_store_are_known_by_their_ids(store: ScanStore, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", store)
    for asked in (run, run / "model"):
        note = find_age_overlap(str(asked), pick(store, "acd"), store.uri)
        assert note is not None
        assert "on 2 of the 3 people judged here. It" in note
        assert "sub-" not in note
    assert find_age_overlap(str(run), pick(store, "d"), store.uri) is None


def test_in_another_store_it_is_voxels_and_ids_alone_are_told_as_such(store: ScanStore, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", store)
    renamed, namesakes = fill(tmp_path / "renamed", "xyz", seed=0), fill(tmp_path / "namesakes", "abz", seed=1)
    note = find_age_overlap(str(run), list(renamed.records()), renamed.uri)
    assert note is not None
    assert "on 3 of the 3 people judged here. It" in note  # x, y and z are a, b and c
    note = find_age_overlap(str(run), list(namesakes.records()), namesakes.uri)
    assert note is not None
    assert "on 2 of the 3 people judged here, if people of one id in two stores are the same" in note
    assert find_age_overlap(str(run), pick(namesakes, "z"), namesakes.uri) is None


def test_what_cannot_be_checked_is_said(store: ScanStore, tmp_path: Path) -> None:
    run, judged, uri = write_run(tmp_path / "run", store), pick(store, "ad"), store.uri
    shutil.rmtree(uri)
    note = find_age_overlap(str(run), judged, uri)
    assert note is not None
    assert "1 of the 2 people judged here, by names of scans" in note
    note = find_age_overlap(str(run), judged[1:], uri)
    assert note is not None
    assert "could not be checked: its store" in note
    (run / "splits.json").unlink()
    note = find_age_overlap(str(run), judged, uri)
    assert note is not None
    assert "could not be checked: there is no split" in note

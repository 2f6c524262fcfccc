"""`verify`: every fault is listed whatever else is broken, and a run goes on where the last one stopped."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroray.jobs import verify
from neuroray.jobs.spread import spread_over_ray, spread_over_threads
from neuroray.storage.faults import StoreError
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

NUM_SCANS = 7


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    store = ScanStore.create(tmp_path / "store")
    draw = np.random.default_rng(0)
    for index in range(NUM_SCANS):
        shape = (5, 7, 3) if index % 2 else (4, 5, 7, 3)
        scan = Scan(voxels=draw.integers(0, 999, shape).astype(np.int16), affine=np.eye(4))
        store.write(scan, scan_id=f"scan-{index}", subject="anna", modality="any")
    return store


def make_features(seed: int) -> FeatureSet:
    index = np.arange(7)
    values = np.random.default_rng(seed).normal(size=(7, 65)).astype(np.float32)
    return FeatureSet(features=values, mask=index < 6, position_mm=index.astype(np.float32), slice_index=index)


def damage(store: ScanStore, scan_id: str) -> Path:
    folder = Path(store.uri, store.record(scan_id).path)
    chunk = max(folder.rglob("c/**/*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    return chunk


def check(store: ScanStore, **options: Any) -> verify.Answer:
    return verify.run(verify.Args(store=store.uri, **options))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the scans that are read."""
    ids: list[str] = []
    real = verify.verify_group

    def note(*args: Any, scan_id: str) -> Any:
        ids.append(scan_id)
        return real(*args, scan_id=scan_id)

    monkeypatch.setattr(verify, "verify_group", note)
    return ids


@pytest.mark.parametrize("workers", [1, 3])
def test_every_fault_is_listed_however_many_look(store: ScanStore, workers: int, tmp_path: Path):
    damage(store, "scan-1")
    damage(store, "scan-4")
    Path(store.uri, store.record("scan-2").path + ".manifest.json").unlink()
    answer = check(store, workers=workers, out=str(tmp_path / "out"))
    assert [fault["scan_id"] for fault in answer.faults] == ["scan-1", "scan-2", "scan-4"]
    assert answer.exit_code == 1
    report = json.loads((tmp_path / "out/verify_report.json").read_text())
    assert report["faults"] == list(answer.faults)
    page = (tmp_path / "out/verify_report.md").read_text()
    assert all(fault["object"] in page for fault in answer.faults)


def test_the_next_run_reads_only_what_was_not_found_whole(store: ScanStore, tmp_path: Path, checked: list[str]):
    out = str(tmp_path / "out")
    chunk = damage(store, "scan-3")
    assert check(store, out=out).num_known == 0
    assert sorted(checked) == [f"scan-{index}" for index in range(NUM_SCANS)]
    checked.clear()
    again = check(store, out=out)
    assert (checked, again.num_known, again.exit_code) == (["scan-3"], NUM_SCANS - 1, 1)
    checked.clear()
    chunk.write_bytes(bytes(b ^ (index == chunk.stat().st_size // 2) for index, b in enumerate(chunk.read_bytes())))
    assert check(store, out=out).exit_code == 0
    assert check(store, out=out).num_known == NUM_SCANS
    assert checked == ["scan-3"]
    checked.clear()
    assert check(store, out=out, again=True).num_known == 0
    assert len(checked) == NUM_SCANS


def test_a_killed_run_keeps_what_it_has_done(
    store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: list[str]
):
    real = verify.verify_group

    def die_at_the_fourth(*args: Any, scan_id: str) -> Any:
        if scan_id == "scan-3":
            raise KeyboardInterrupt
        return real(*args, scan_id=scan_id)

    with monkeypatch.context() as patch:
        patch.setattr(verify, "verify_group", die_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            check(store, workers=1, out=str(tmp_path / "out"))
    journal = tmp_path / "out/verify_progress.jsonl"
    journal.write_text(journal.read_text()[:-9])  # and its last line was cut short
    checked.clear()
    assert check(store, workers=1, out=str(tmp_path / "out")).num_known == 2
    assert checked == [f"scan-{index}" for index in range(2, NUM_SCANS)]


def test_a_copy_elsewhere_is_read_though_the_first_was_whole(store: ScanStore, tmp_path: Path, checked: list[str]):
    check(store, out=str(tmp_path / "out"))
    checked.clear()
    moved = Path(store.uri).rename(tmp_path / "moved")
    assert check(ScanStore(moved), out=str(tmp_path / "out")).num_known == 0
    assert len(checked) == NUM_SCANS


def test_a_scan_that_cannot_be_reached_hides_no_fault_and_is_not_called_whole(
    store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    damage(store, "scan-5")
    real = verify.verify_group

    def fail_once(*args: Any, scan_id: str) -> Any:
        if scan_id == "scan-2":
            raise StoreError("the bucket does not answer")
        return real(*args, scan_id=scan_id)

    monkeypatch.setattr(verify, "verify_group", fail_once)
    answer = check(store, out=str(tmp_path / "out"))
    assert [one["scan_id"] for one in answer.unreached] == ["scan-2"]
    assert [fault["scan_id"] for fault in answer.faults] == ["scan-5"]
    assert "could not be checked: the bucket does not answer" in str(answer)
    monkeypatch.setattr(verify, "verify_group", real)
    assert check(store, out=str(tmp_path / "out")).num_known == NUM_SCANS - 2


def test_who_cannot_reach_the_store_gives_up_early(store: ScanStore, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def fail(*args: Any, scan_id: str) -> Any:
        asked.append(scan_id)
        raise StoreError("the bucket does not answer")

    monkeypatch.setattr(verify, "verify_group", fail)
    with pytest.raises(StoreError, match="does not answer"):
        check(store, workers=1)
    assert len(asked) == 5


def test_what_no_version_refers_to_is_told_and_left_alone(store: ScanStore):
    older = store.record("scan-0").path
    scan = Scan(voxels=np.ones((3, 5, 7), np.int16), affine=np.eye(4))
    store.write(scan, scan_id="scan-0", subject="anna", modality="any")
    left = store.write(scan, scan_id="never", subject="anna", modality="any", commit=False)
    answer = check(store, orphans=True)
    assert answer.orphans is not None
    assert [orphan["path"] for orphan in answer.orphans] == [left.path]
    assert answer.orphans[0]["size_bytes"] == left.size_bytes
    assert older != store.record("scan-0").path, "the older version is in the history, so no orphan"
    assert answer.exit_code == 0
    assert Path(store.uri, left.path).is_dir()
    assert "belongs to no catalogue version" in str(answer)
    assert check(store).orphans is None


def test_features_are_checked_beside_the_scans(store: ScanStore, tmp_path: Path, checked: list[str]):
    """Those of older voxels too, for an older version of the catalogue still refers to them."""
    features = FeatureStore(store, "0123456789abcdef" * 4)
    names = ("scan-0", "scan-1", "scan-2")
    sets = [make_features(index) for index in range(3)]
    written = [features.write(store.record(name), one) for name, one in zip(names, sets, strict=True)]
    scan = Scan(voxels=np.ones((3, 5, 7), np.int16), affine=np.eye(4))
    store.write(scan, scan_id="scan-0", subject="anna", modality="any")
    out = str(tmp_path / "out")
    whole = check(store, out=out)
    assert (whole.exit_code, whole.num_feature_sets) == (0, 3)
    assert "7 scans, 3 feature sets" in whole.headline
    folder = Path(store.uri, "features", "0123456789abcdef", written[1].path)
    chunk = max((path for path in folder.rglob("c/*") if path.is_file()), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert check(store, out=out).exit_code == 0, "what an earlier run found whole is not read again"
    checked.clear()
    answer = check(store, out=out, again=True)
    assert len(checked) == NUM_SCANS + 3
    assert answer.exit_code == 1
    (fault,) = answer.faults
    assert fault["scan_id"] == "scan-1"
    assert Path(store.uri, fault["object"]) == chunk


def _double(number: int) -> int:
    if number == 13:
        raise StoreError("thirteen")
    return 2 * number


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_give_each_answer_once(num_threads: int):
    answers = spread_over_threads(_double, range(12), num_threads=num_threads)
    assert sorted(answers) == list(range(0, 24, 2))
    with pytest.raises(StoreError, match="thirteen"):
        list(spread_over_threads(_double, range(99), num_threads=num_threads))


@pytest.mark.ray
def test_a_connected_ray_gives_each_answer_once(ray_session: Any, store: ScanStore):
    assert sorted(spread_over_ray(functools.partial(pow, 2), range(7), num_tasks=3)) == [2**n for n in range(7)]
    damage(store, "scan-6")
    answer = check(store, workers=2)
    assert [fault["scan_id"] for fault in answer.faults] == ["scan-6"]


def test_a_log_entry_that_readers_would_pass_over_is_a_fault(store: ScanStore):
    entry = max(Path(store.uri, "catalogue/_delta_log").glob("*.json"))
    entry.write_text(entry.read_text().replace('{"add":', '{"bdd":'))
    answer = check(store)
    assert answer.num_scans == NUM_SCANS - 1
    assert [(fault["object"], fault["problem"]) for fault in answer.faults] == [
        (f"catalogue/_delta_log/{entry.name}", "holds bdd")
    ]
    assert answer.exit_code == 1

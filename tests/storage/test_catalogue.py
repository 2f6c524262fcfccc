from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from contracts.stored_scans import make_person, make_scan, write
from deltalake import DeltaTable, write_deltalake

from neuroray.storage import catalogue
from neuroray.storage.catalogue import Catalogue, utc_now
from neuroray.storage.locations import Location
from neuroray.storage.records import SCAN_COLUMNS, ScanRecord
from neuroray.storage.store import ScanStore, StoreError


def make_record(scan_id: str, **changes: object) -> ScanRecord:
    record = ScanRecord(
        scan_id=scan_id,
        subject=scan_id,
        modality="T1w",
        path=f"scans/{scan_id}/0123456789abcdef",
        shape=(2, 3, 4),
        dtype="int16",
        zooms_mm=(1.0, 1.0, 1.0),
        affine=tuple(float(number) for number in range(16)),
        voxels_sha256="ab" * 32,
        manifest_sha256="cd" * 32,
        size_bytes=7,
        written_at=utc_now(),
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def make_catalogue(folder: Path) -> Catalogue[ScanRecord]:
    made = Catalogue(Location(folder / "catalogue"), ScanRecord, SCAN_COLUMNS)
    made.create()
    return made


def test_what_an_appender_knows_is_what_a_reader_finds(tmp_path: Path):
    own = make_catalogue(tmp_path)
    batches = (
        [make_record("b", flags=("x", "y")), make_record("a", extra={"k": "v"})],
        [make_record("c"), make_record("b", diagnosis="AD", age_years=3)],
        [make_record("a", flags=("z",))],
    )
    for batch in batches:
        own.append(batch)
        fresh = Catalogue(Location(tmp_path / "catalogue"), ScanRecord, SCAN_COLUMNS)
        assert own.read() == fresh.read()
    assert [(record.scan_id, record.diagnosis, record.flags) for record in own.read().records] == [
        ("a", None, ("z",)),
        ("b", "AD", ()),
        ("c", None, ()),
    ]


def test_a_batch_is_all_there_or_not_at_all(tmp_path: Path):
    own = make_catalogue(tmp_path)
    with pytest.raises(pa.ArrowInvalid):
        own.append([make_record("a"), make_record("b", size_bytes="many")])
    assert own.read().records == ()


def test_a_row_that_was_changed_behind_the_back_is_found(tmp_path: Path):
    scans = ScanStore.create(tmp_path / "store")
    write(scans, make_scan("zeros"), "good")
    write(scans, make_scan("zeros"), "bad", participant=make_person(diagnosis="CN", age_years=70.0))
    DeltaTable(scans.location.delta_uri("catalogue")).update({"diagnosis": "'AD'"}, predicate="scan_id = 'bad'")
    assert [(fault.scan_id, fault.object) for fault in scans.verify()] == [("bad", "catalogue")]
    assert scans.read("good").voxels.shape == (7, 5, 3)
    with pytest.raises(StoreError, match="row of scan bad is damaged"):
        scans.read("bad")


def test_a_column_added_later_disturbs_neither_old_rows_nor_old_readers(tmp_path: Path):
    own = make_catalogue(tmp_path)
    own.append([make_record("a")])
    rows = DeltaTable(tmp_path / "catalogue").to_pyarrow_table()
    newer = rows.append_column("scanner", pa.array(["Prisma"]))
    newer = newer.set_column(newer.column_names.index("scan_id"), rows.schema.field("scan_id"), pa.array([["b"]][0]))
    write_deltalake(tmp_path / "catalogue", newer, mode="append", schema_mode="merge")
    snapshot = Catalogue(Location(tmp_path / "catalogue"), ScanRecord, SCAN_COLUMNS).read()
    assert [record.scan_id for record in snapshot.records] == ["a", "b"]
    assert snapshot.is_intact("a")


def test_versions_outlive_a_month_and_a_checkpoint(tmp_path: Path):
    own = make_catalogue(tmp_path)
    for name in ("a", "b", "c"):
        own.append([make_record(name)])
    long_ago = time.time() - 90 * 86400
    for path in (tmp_path / "catalogue").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    table = DeltaTable(tmp_path / "catalogue")
    table.create_checkpoint()
    table.cleanup_metadata()
    table.vacuum(dry_run=False)
    own.append([make_record("d")])
    fresh = Catalogue(Location(tmp_path / "catalogue"), ScanRecord, SCAN_COLUMNS)
    assert [len(fresh.read(version).records) for version in range(5)] == [0, 1, 2, 3, 4]


def test_many_commits_end_in_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalogue, "_MANY_FILES", 5)
    own = make_catalogue(tmp_path)
    names = [f"scan-{number:02d}" for number in range(12)]
    for name in names:
        own.append([make_record(name)])
    assert len(DeltaTable(tmp_path / "catalogue").file_uris()) < 5
    assert [record.scan_id for record in own.read().records] == names


def test_a_commit_that_others_beat_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = make_catalogue(tmp_path)
    attempts = []

    def lose_twice(*args: object, **kwargs: object) -> None:
        attempts.append(args)
        if len(attempts) < 3:
            raise catalogue.CommitFailedError("version 1 already exists")
        write_deltalake(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(catalogue, "write_deltalake", lose_twice)
    monkeypatch.setattr(catalogue.time, "sleep", lambda pause_s: None)
    own.append([make_record("a")])
    assert (len(attempts), own.version()) == (3, 1)


def test_a_commit_that_never_succeeds_ends_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = make_catalogue(tmp_path)

    def lose(*args: object, **kwargs: object) -> None:
        raise catalogue.CommitFailedError("version 1 already exists")

    monkeypatch.setattr(catalogue, "write_deltalake", lose)
    monkeypatch.setattr(catalogue.time, "sleep", lambda pause_s: None)
    with pytest.raises(StoreError, match="others did each time"):
        own.append([make_record("a")])

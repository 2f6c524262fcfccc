"""A prepared scan in a store and back, and stores of before there were profiles."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from contracts.stored_scans import assert_same_scan, make_scan, write
from deltalake import DeltaTable, Field

from neuroray.storage import store as store_module
from neuroray.storage.catalogue import digest_record
from neuroray.storage.group import GroupContent, Packing
from neuroray.storage.profiles import NativeGrid, Prepared, TemplateTransform, find_profile, prepare
from neuroray.storage.profiles.profile import NATIVE_SHA256
from neuroray.storage.records import SCAN_COLUMNS, ScanRecord
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore
from neuroray.storage.volume_format import encode_scan

NEW_COLUMNS = ("profile", "profile_sha256")


def make_masked_run() -> Scan:
    voxels = np.random.default_rng(5).normal(100, 5, (5, 11, 9, 7)).astype(np.float32)
    voxels[:, [0, -1]] = voxels[:, :, [0, 1, -1]] = voxels[..., [0, -1]] = 0
    return dataclasses.replace(make_scan(), voxels=voxels, encoding=None)


def test_a_prepared_run_is_read_back_whole(tmp_path: Path):
    profile = find_profile("fmri_minimal")
    prepared = prepare(make_masked_run(), profile)
    scans = ScanStore.create(tmp_path / "store")
    record = scans.write(prepared, scan_id="a", subject="s", modality="bold")
    again = ScanStore(scans.uri)
    assert record.prepared_by == again.record("a").prepared_by == ("fmri_minimal", profile.fingerprint())
    assert_same_scan(again.read("a"), prepared.scan)
    np.testing.assert_array_equal(again.read_mask("a"), prepared.mask, strict=True)
    assert again.read_statistics("a") == prepared.statistics
    assert again.read_profile("a").restore() == profile
    assert again.read_to_template("a") is None
    assert again.verify() == []


def test_a_plain_scan_is_native_and_carries_its_statistics(tmp_path: Path):
    scans = ScanStore.create(tmp_path / "store")
    scan = make_scan()
    record = write(scans, scan, "a")
    assert record.prepared_by == ("native", NATIVE_SHA256)
    assert scans.read_mask("a") is None
    assert scans.read_statistics("a") == prepare(scan, find_profile("native")).statistics
    assert write(scans, prepare(scan, find_profile("native")), "a") == record


def test_the_way_to_a_template_comes_back_with_the_native_header(tmp_path: Path):
    source = make_scan("int16 volume").source
    native = NativeGrid(shape=(7, 65, 3), affine=make_scan().affine, source=source)
    transform = TemplateTransform(template="somewhere", affine=np.arange(16.0).reshape(4, 4) / 3, native=native)
    scan = Scan(voxels=np.ones((3, 4, 5), np.float32), affine=np.eye(4))
    prepared = Prepared(scan=scan, profile=find_profile("mni_affine"), to_template=transform)
    scans = ScanStore.create(tmp_path / "store")
    scans.write(prepared, scan_id="a", subject="s", modality="T1w")
    found = scans.read_to_template("a")
    assert found is not None
    np.testing.assert_array_equal(found.affine, transform.affine, strict=True)
    np.testing.assert_array_equal(found.native.affine, native.affine, strict=True)
    assert found.native.shape == native.shape
    # The header is that of the native grid, and so no longer that of the voxels.
    assert scans.read("a").source is None
    like = dataclasses.replace(make_scan("int16 volume"), source=found.native.source)
    assert_same_scan(like, make_scan("int16 volume"))


def make_old_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScanStore:
    """A store with one scan, as it was written before there were profiles."""
    with monkeypatch.context() as before:
        columns = [column for column in SCAN_COLUMNS if column.name not in NEW_COLUMNS]
        before.setattr(store_module, "SCAN_COLUMNS", pa.schema(columns))
        before.setattr(store_module, "encode_scan", encode_as_before)
        scans = ScanStore.create(folder / "store")
        record = write(scans, make_scan(), "old", commit=False)
        scans.commit([dataclasses.replace(record, profile=None, profile_sha256=None)])
    assert not set(NEW_COLUMNS) & set(column_names(scans))
    return ScanStore(scans.uri)


def encode_as_before(prepared: Prepared, packing: Packing) -> GroupContent:
    content = encode_scan(prepared, packing)
    attributes = content._metadata["zarr.json"]["attributes"]
    for name in ("profile", "statistics", "to_template", "ome"):
        del attributes[name]
    attributes["neuroray"]["version"] = 1
    return content


def column_names(scans: ScanStore) -> list[str]:
    return DeltaTable(scans.location.delta_uri("catalogue")).schema().to_arrow().names


def test_a_store_of_before_is_read_written_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scans = make_old_store(tmp_path, monkeypatch)
    before = scans.record("old")
    assert before.prepared_by == ("native", NATIVE_SHA256)
    assert_same_scan(scans.read("old"), make_scan())
    assert (scans.read_mask("old"), scans.read_statistics("old"), scans.read_to_template("old")) == (None, None, None)
    assert scans.read_profile("old").restore() == find_profile("native")
    version = scans.version
    new = write(scans, make_scan("int16 volume"), "new")
    again = ScanStore(scans.uri)
    assert again.record("old") == before
    assert again.record("new") == new
    assert new.prepared_by == ("native", NATIVE_SHA256)
    assert again.verify() == []
    assert [record.scan_id for record in ScanStore(scans.uri, version=version).records()] == ["old"]


def test_rows_of_before_keep_their_digest_and_voxels_theirs():
    record = ScanRecord(
        scan_id="a",
        subject="s",
        modality="T1w",
        path="p",
        shape=(1, 2, 3),
        dtype="int16",
        zooms_mm=(1.0, 1.0, 1.0),
        affine=(0.0,) * 16,
        voxels_sha256="v",
        manifest_sha256="m",
        size_bytes=1,
        written_at="2026-01-01T00:00:00.000000+00:00",
    )
    # Made by neuroray at commit 8ab60b1, before rows had a profile.
    assert digest_record(record) == "c85c2284008e67e535e713cf5daa64fda7ee24393b3e63239cc1a92d15c650ec"
    content = encode_scan(prepare(make_scan(), find_profile("native")))
    assert content.array_digest("voxels") == "44d0cc064e48ada5821226f00747e8ff524806eafb1ce366c66aed9ba8a5436b"


def test_a_table_with_a_column_that_this_version_does_not_know_takes_rows(tmp_path: Path):
    scans = ScanStore.create(tmp_path / "store")
    write(scans, make_scan(), "a")
    column = Field.from_json(json.dumps({"name": "scanner", "type": "string", "nullable": True, "metadata": {}}))
    DeltaTable(scans.location.delta_uri("catalogue")).alter.add_columns([column])
    assert "scanner" in column_names(scans)
    write(ScanStore(scans.uri), make_scan("int16 volume"), "b")
    assert [record.scan_id for record in ScanStore(scans.uri).records()] == ["a", "b"]


def test_statistics_change_where_a_group_lies_but_not_what_its_voxels_are():
    scan = make_scan()
    plain = prepare(scan, find_profile("native"))
    other: list[GroupContent] = [encode_scan(plain), encode_scan(dataclasses.replace(plain, statistics=None))]
    assert other[0].digest != other[1].digest
    assert other[0].array_digest("voxels") == other[1].array_digest("voxels")

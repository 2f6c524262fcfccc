"""Checking in pieces: the same digest as of the whole, whatever the layout, and little memory."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import zarr

from neuroray.storage import group as group_module
from neuroray.storage.group import ArrayContent, GroupContent, StoredGroup
from neuroray.storage.locations import Location
from neuroray.storage.orphans import find_orphans
from neuroray.storage.store import ScanStore
from neuroray.storage.verify import slabs, verify_group


@pytest.mark.parametrize("max_chunk_bytes", [1, 2, 30, 70, 10**6])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 5, 7), (4, 3, 5, 7), (1, 1, 3)])
def test_pieces_follow_each_other_in_c_order(shape: tuple[int, ...], max_chunk_bytes: int, monkeypatch, tmp_path: Path):
    monkeypatch.setattr(group_module, "_MAX_CHUNK_BYTES", max_chunk_bytes)
    values = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    content = GroupContent(
        {"voxels": ArrayContent(values=values, dimensions=tuple("txyz"[: len(shape)]), is_sharded=True)}, {}
    )
    written = content.write(Location(tmp_path), "group")
    stored = StoredGroup(Location(tmp_path), "group", written.manifest_sha256).array("voxels")
    pieces = list(slabs(stored))
    np.testing.assert_array_equal(np.concatenate([piece.ravel() for piece in pieces]), values.ravel())
    assert max(piece.size for piece in pieces) == math.prod(stored.chunks)
    assert verify_group(Location(tmp_path), "group", written.manifest_sha256, scan_id="x") == []


def test_numbers_that_differ_from_their_digest_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bytes as written, but the encoder put down other numbers than it was given."""
    real = group_module._write_array
    monkeypatch.setattr(
        group_module, "_write_array", lambda place, name, values, *rest: real(place, name, values + 1, *rest)
    )
    content = GroupContent({"voxels": ArrayContent(values=np.zeros((3, 5), np.int16), dimensions=("x", "y"))}, {})
    written = content.write(Location(tmp_path), "group")
    problems = [
        fault.problem for fault in verify_group(Location(tmp_path), "group", written.manifest_sha256, scan_id="x")
    ]
    assert problems == ["decodes to other numbers than were written"]


def test_a_piece_is_a_chunk_also_where_a_frame_is_cut():
    array = zarr.create_array({}, shape=(3, 10, 7, 5), chunks=(1, 4, 7, 5), dtype="i2")
    assert [piece.shape for piece in slabs(array)] == [(4, 7, 5), (4, 7, 5), (2, 7, 5)] * 3


def test_an_unfinished_file_and_an_uncommitted_table_file_are_orphans(tmp_path: Path):
    store = ScanStore.create(tmp_path / "store")
    assert find_orphans(store.location) == []
    (tmp_path / "store/scans/a/b").mkdir(parents=True)
    (tmp_path / "store/scans/a/b/zarr.json#1").write_bytes(b"12345")
    (tmp_path / "store/catalogue/part-0.parquet").write_bytes(b"123")
    found = [(orphan.path, orphan.size_bytes) for orphan in find_orphans(store.location)]
    assert found == [("catalogue/part-0.parquet", 3), ("scans/a/b/zarr.json#1", 5)]

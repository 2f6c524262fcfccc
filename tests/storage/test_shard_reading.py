"""Rows read straight from shards: the bits that zarr reads, and an error wherever zarr would raise one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec

from neuroray.storage.faults import DamagedObjectError, MissingObjectError, StoreError
from neuroray.storage.locations import Location
from neuroray.storage.shard_reading import RowLayout, RowReader

COMPRESSORS: list[Any] = [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()]


def write_array(
    folder: Path, values: np.ndarray, chunk: tuple[int, ...], shard: tuple[int, ...], **options: Any
) -> Any:
    array = zarr.create_array(
        folder,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunk,
        shards=shard,
        **{"compressors": COMPRESSORS, "fill_value": 0, "config": {"write_empty_chunks": True}, **options},
    )
    array[...] = values
    return array


def open_rows(folder: Path) -> RowReader:
    layout = RowLayout.find(json.loads((folder / "zarr.json").read_text()))
    assert layout is not None
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return RowReader(Location(folder), layout, sizes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    """Runs of odd lengths in one shard, in several, in none; of several types and packings; one of constant frames."""
    root, generator = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    arrays = {
        "one-shard": (generator.integers(-900, 900, (23, 5, 7, 3)).astype(np.int16), 4, 24),
        "three-shards": (generator.integers(-900, 900, (23, 5, 7, 3)).astype(np.int16), 2, 8),
        "frame-by-frame": (generator.standard_normal((13, 4, 3, 5)).astype(np.float32), 1, 13),
        "volume": (generator.integers(0, 2, (11, 6, 5)).astype(bool), 3, 12),
        "constant": (np.zeros((9, 3, 4, 2), np.uint8), 2, 4),
    }
    for name, (values, chunk, shard) in arrays.items():
        write_array(root / name, values, (chunk, *values.shape[1:]), (shard, *values.shape[1:]))
    found = {name: (root / name, values) for name, (values, _, _) in arrays.items()}
    values, _, _ = arrays["three-shards"]
    packings: dict[str, list[Any]] = {
        "none": [],
        "zstd": [zarr.codecs.ZstdCodec(level=1)],
        "lz4": [BloscCodec(cname="lz4")],
    }
    for name, codecs in packings.items():
        for shard in (None, (8, *values.shape[1:])):
            folder = root / f"{name}-{'objects' if shard is None else 'shards'}"
            write_array(folder, values, (2, *values.shape[1:]), shard, compressors=[*codecs, Crc32cCodec()])
            found[folder.name] = (folder, values)
    return found


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_any_rows_are_those_that_zarr_reads(written: dict[str, tuple[Path, np.ndarray]], data: st.DataObject) -> None:
    folder, values = written[data.draw(st.sampled_from(sorted(written)))]
    start = data.draw(st.integers(0, len(values) - 1))
    stop = data.draw(st.integers(start + 1, len(values)))
    found = open_rows(folder).read(start, stop)
    expected = np.asarray(zarr.open_array(folder, mode="r")[start:stop])
    assert found.tobytes() == expected.tobytes() == values[start:stop].tobytes()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)


def test_rows_go_into_the_memory_that_is_given(written: dict[str, tuple[Path, np.ndarray]]) -> None:
    folder, values = written["three-shards"]
    batch = np.full((2, 9, *values.shape[1:]), -1, np.int16)
    found = open_rows(folder).read(5, 14, batch[1])
    assert np.shares_memory(found, batch)
    assert np.array_equal(batch[1], values[5:14])
    assert (batch[0] == -1).all()


@pytest.mark.parametrize(
    "out",
    [np.empty((9, 5, 7, 3), np.int32), np.empty((8, 5, 7, 3), np.int16), np.empty((9, 5, 7, 6), np.int16)[..., ::2]],
)
def test_memory_that_does_not_fit_is_refused(written: dict[str, tuple[Path, np.ndarray]], out: np.ndarray) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        open_rows(written["three-shards"][0]).read(5, 14, out)


@pytest.mark.parametrize("name", ["none-objects", "zstd-shards", "lz4-objects"])
def test_a_flipped_bit_in_any_packing_is_an_error(
    written: dict[str, tuple[Path, np.ndarray]], tmp_path: Path, name: str
) -> None:
    folder, values = written[name]
    shutil.copytree(folder, tmp_path / "a")
    data = bytearray((tmp_path / "a/c/0/0/0/0").read_bytes())
    data[35] ^= 1
    (tmp_path / "a/c/0/0/0/0").write_bytes(data)
    with pytest.raises(DamagedObjectError, match="crc32c"):
        open_rows(tmp_path / "a").read(0, 2)
    assert np.array_equal(open_rows(tmp_path / "a").read(8, 23), values[8:])


@pytest.mark.parametrize("where", ["chunk", "index", "checksum"])
def test_a_flipped_bit_is_an_error(tmp_path: Path, where: str) -> None:
    values = np.random.default_rng(1).integers(0, 900, (12, 6, 5, 4)).astype(np.int16)
    write_array(tmp_path / "a", values, (3, 6, 5, 4), (12, 6, 5, 4))
    shard = tmp_path / "a" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[{"chunk": 40, "index": len(data) - 30, "checksum": len(data) - 1}[where]] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DamagedObjectError, match=r"c/0/0/0/0 is damaged \(crc32c\)"):
        open_rows(tmp_path / "a").read(0, 12)
    if where == "chunk":
        assert np.array_equal(open_rows(tmp_path / "a").read(3, 12), values[3:]), "the other chunks are whole"


def test_a_chunk_that_was_never_written_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    values = np.zeros((12, 3, 4, 5), np.int16)
    values[:4] = 7
    write_array(tmp_path / "a", values, (2, 3, 4, 5), (12, 3, 4, 5), config={"write_empty_chunks": False})
    reader = open_rows(tmp_path / "a")
    assert np.array_equal(reader.read(0, 4), values[:4])
    with pytest.raises(MissingObjectError, match="chunk 2 of c/0/0/0/0 is missing"):
        reader.read(2, 8)


@pytest.mark.parametrize("length", [0, 100])
def test_a_shard_that_is_cut_short_is_an_error(tmp_path: Path, length: int) -> None:
    write_array(tmp_path / "a", np.ones((12, 3, 4, 5), np.int16), (2, 3, 4, 5), (12, 3, 4, 5))
    reader = open_rows(tmp_path / "a")
    (tmp_path / "a/c/0/0/0/0").write_bytes(b"\0" * length)
    with pytest.raises(StoreError, match="c/0/0/0/0"):
        reader.read(0, 2)


def test_a_shard_that_is_gone_is_an_error(tmp_path: Path) -> None:
    write_array(tmp_path / "a", np.ones((12, 3, 4, 5), np.int16), (2, 3, 4, 5), (12, 3, 4, 5))
    reader = open_rows(tmp_path / "a")
    (tmp_path / "a/c/0/0/0/0").unlink()
    with pytest.raises(MissingObjectError, match="c/0/0/0/0"):
        reader.read(0, 2)
    with pytest.raises(MissingObjectError, match="not in the manifest"):
        open_rows(tmp_path / "a").read(0, 2)


def test_a_valid_chunk_of_another_size_is_an_error(tmp_path: Path) -> None:
    """Such as a chunk of another array: whole in itself, and too small for its place."""
    for name, rows in (("a", 2), ("b", 1)):
        write_array(tmp_path / name, np.ones((4, 3, 4, 5), np.int16), (rows, 3, 4, 5), (4, 3, 4, 5))
    metadata = json.loads((tmp_path / "b/zarr.json").read_text())
    metadata["codecs"][0]["configuration"]["chunk_shape"][0] = 2
    layout = RowLayout.find(metadata)
    assert layout is not None
    (index,) = (open_rows(tmp_path / "b")._index(0),)
    reader = RowReader(Location(tmp_path / "b"), layout, {"c/0/0/0/0": 1})
    reader._indices[0] = index
    with pytest.raises(DamagedObjectError, match="does not hold 240 bytes"):
        reader.read(0, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"chunks": (2, 3, 2, 5), "shards": None},
        {"chunks": (2, 3, 4, 5), "shards": None, "compressors": [BloscCodec()]},
        {"chunks": (2, 3, 2, 5), "shards": (12, 3, 4, 5)},
        {"chunks": (2, 3, 4, 5), "shards": (12, 3, 4, 5), "compressors": [Crc32cCodec(), Crc32cCodec()]},
        {"chunks": (2, 3, 4, 5), "shards": (12, 3, 4, 5), "compressors": [GzipCodec(), Crc32cCodec()]},
        {"chunks": (2, 3, 4, 5), "shards": (12, 3, 4, 5), "chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"chunks": (2, 3, 4, 5), "shards": (12, 3, 4, 5), "serializer": BytesCodec(endian="big")},
    ],
)
def test_any_other_layout_is_left_to_zarr(options: dict[str, Any]) -> None:
    store: dict[str, Any] = {}
    zarr.create_array(store, shape=(12, 3, 4, 5), dtype="int16", **{"compressors": COMPRESSORS, **options})
    assert RowLayout.find(json.loads(store["zarr.json"].to_bytes())) is None

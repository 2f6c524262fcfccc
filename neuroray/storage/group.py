"""An immutable Zarr group: written whole by one writer, its manifest last, and read back only as its manifest says.

The manifest lists every object with size and SHA-256 and repeats the Zarr metadata, so that one small object, checked
against the digest in the catalogue, tells a reader all that it needs before it asks for a chunk. It lies beside the
group (`PATH.manifest.json`), which therefore is Zarr and nothing else. Where a group lies follows from what is in it:
to write the same content again writes the same bytes in the same place.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import numcodecs
import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, StorePath, WrapperStore

from neuroray.storage.faults import DamagedObjectError
from neuroray.storage.locations import Location
from neuroray.storage.shard_reading import RowLayout, RowReader

Packing = Literal["fast", "small"]
"""How chunks are compressed: LZ4 over shuffled bytes, or Zstandard (level 1) over shuffled bits."""
_METADATA: Final = "zarr.json"
_MAX_CHUNK_BYTES: Final = 16 * 2**20
_MAX_SHARD_BYTES: Final = 2**30
# Background is written like all else, so that a chunk that is not there is a fault and never zeros.
_STRICT: Final[Any] = {"write_empty_chunks": True, "read_missing_chunks": False}
# Blocks of a megabyte: by itself blosc takes 64 KiB or so, which packs and unpacks at half to two thirds of the speed,
# to 5 % more. Nothing smaller than a chunk is ever unpacked.
# docs/benchmarks/storage.md: `fast` unpacks two to four times as quickly; `small` takes three quarters of its space.
_PACKINGS: Final[dict[Packing, BloscCodec]] = {
    "fast": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", blocksize=2**20),
    "small": BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=2**20),
}
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayContent:
    """One array that goes into a group.

    Attributes:
        values: What it holds.
        dimensions: A name per axis.
        attributes: What gives the numbers meaning; `sha256` is added to it.
        is_sharded: Chunks packed into shards and compressed, for large arrays; else one plain checksummed chunk or few.
    """

    values: np.ndarray
    dimensions: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_sharded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenGroup:
    """Where a group lies and how to know it again.

    Attributes:
        path: Its path in the store.
        manifest_sha256: Digest of its manifest, which holds the digests of all else.
        size_bytes: All its objects together.
    """

    path: str
    manifest_sha256: str
    size_bytes: int


class GroupContent:
    """Arrays and attributes that are to become a group, and the metadata that they will have there."""

    def __init__(
        self, arrays: Mapping[str, ArrayContent], attributes: Mapping[str, Any], packing: Packing = "fast"
    ) -> None:
        self._values = {name: _plain(array.values) for name, array in arrays.items()}
        self._metadata = _describe(arrays, self._values, attributes, _PACKINGS[packing])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of values, attributes and the code that encodes them: the same digest, the same bytes."""
        encoders = {"schema": _SCHEMA, "zarr": zarr.__version__, "numcodecs": numcodecs.__version__}
        return _sha256(_canonical({"metadata": self._metadata, "encoders": encoders}))

    def array_digest(self, name: str) -> str:
        """SHA-256 (hex) of one array as a reader sees it: shape, type, numbers, and what its attributes say of them."""
        document = self._metadata[f"{name}/{_METADATA}"]
        seen = {key: document[key] for key in ("shape", "data_type", "attributes")}
        return _sha256(_canonical(seen))

    def write(self, location: Location, path: str) -> WrittenGroup:
        """Writes every object: chunks, then metadata, then the manifest. Until that is there, there is no group.

        Raises:
            StoreError: an object could not be written.
        """
        place = location.child(path)
        objects: dict[str, dict[str, Any]] = {}
        for name, values in self._values.items():
            with place.telling(f"cannot write {name}"):
                _write_array(place, name, values, self._metadata[f"{name}/{_METADATA}"], objects)
        for key, document in self._metadata.items():
            data = _canonical(document)
            place.write_bytes(key, data)
            objects[key] = {"size_bytes": len(data), "sha256": _sha256(data)}
        manifest = _canonical({"schema": _SCHEMA, "objects": objects, "metadata": self._metadata})
        location.write_bytes(manifest_key(path), manifest)
        size_bytes = sum(entry["size_bytes"] for entry in objects.values()) + len(manifest)
        return WrittenGroup(path=path, manifest_sha256=_sha256(manifest), size_bytes=size_bytes)


class StoredGroup:
    """A group to read from: its metadata checked, its chunks checked as they are read.

    Args:
        location: The store.
        path: The group's path in it.
        manifest_sha256: What the catalogue says of its manifest.

    Raises:
        MissingObjectError: there is no manifest.
        DamagedObjectError: it is not the one that was written.
    """

    def __init__(self, location: Location, path: str, manifest_sha256: str) -> None:
        self._place = location.child(path)
        data = location.read_bytes(manifest_key(path))
        if _sha256(data) != manifest_sha256:
            # It may have been spoiled on its way, which HTTP has no sums to notice.
            data = location.read_bytes(manifest_key(path))
        if _sha256(data) != manifest_sha256:
            raise DamagedObjectError(
                f"{manifest_key(path)} is damaged in {location.uri}",
                given=f"SHA-256 {_sha256(data)[:16]}...",
                expected=f"{manifest_sha256[:16]}...",
                fix="restore the object, or ingest the scan again",
            )
        self._manifest: dict[str, Any] = json.loads(data)
        self._row_readers: dict[str, RowReader | None] = {}

    @property
    def attributes(self) -> dict[str, Any]:
        """The group's own attributes."""
        return self._manifest["metadata"][_METADATA]["attributes"]

    @property
    def objects(self) -> dict[str, dict[str, Any]]:
        """Every object but the manifest: key in the group -> `size_bytes` and `sha256`."""
        return self._manifest["objects"]

    @property
    def array_names(self) -> list[str]:
        """The arrays in it."""
        return [key.removesuffix(f"/{_METADATA}") for key in self._manifest["metadata"] if key != _METADATA]

    def array_attributes(self, name: str) -> dict[str, Any]:
        """What an array's numbers mean."""
        return self._manifest["metadata"][f"{name}/{_METADATA}"]["attributes"]

    def read_rows(self, name: str, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """Stored numbers of an array at `start` to `stop - 1` of its first axis, in `out` where that is given.

        Raises:
            StoreError: an object or chunk is missing or damaged, or cannot be had.
        """
        reader = self._row_reader(name)
        if reader is not None:
            return reader.read(start, stop, out)
        stored = np.asarray(self.array(name)[start:stop])
        if out is None:
            return stored
        out[...] = stored
        return out

    def array(self, name: str) -> zarr.Array[Any]:
        """An array, its metadata taken from the manifest; to read a chunk that is missing or damaged raises."""
        store = self._place.zarr_store(read_only=True)
        metadata = self._manifest["metadata"][f"{name}/{_METADATA}"]
        return zarr.Array(cast(Any, zarr.AsyncArray(metadata, StorePath(store, name), config=_STRICT)))

    def _row_reader(self, name: str) -> RowReader | None:
        """None where the array lies in another way than the reader of rows knows, and zarr has to read it."""
        if name not in self._row_readers:
            layout = RowLayout.find(self._manifest["metadata"][f"{name}/{_METADATA}"])
            prefix = f"{name}/"
            sizes = {key.removeprefix(prefix): entry["size_bytes"] for key, entry in self.objects.items()}
            place = self._place.child(name)
            self._row_readers[name] = None if layout is None else RowReader(place, layout, sizes)
        return self._row_readers[name]


def manifest_key(path: str) -> str:
    """Where the manifest of the group at a path lies."""
    return f"{path}.manifest.json"


def array_sha256(values: np.ndarray) -> str:
    """SHA-256 (hex) of the numbers in C order, little-endian."""
    return hashlib.sha256(_plain(values).reshape(-1).view(np.uint8).data).hexdigest()


class _RecordingStore(WrapperStore[Store]):
    """Passes writes on and notes size and digest of each; knows of nothing that was there before.

    A shard is always replaced whole: what an earlier attempt left must not be merged in, least of all if it is damaged.
    """

    def __init__(self, store: Store, objects: dict[str, dict[str, Any]]) -> None:
        super().__init__(store)
        self._objects = objects

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> None:
        return None

    async def set(self, key: str, value: Buffer) -> None:
        data = memoryview(cast(Any, value.as_buffer_like()))
        await self._store.set(key, value)
        self._objects[key] = {"size_bytes": data.nbytes, "sha256": hashlib.sha256(data).hexdigest()}


def _describe(
    arrays: Mapping[str, ArrayContent],
    values: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    blosc: BloscCodec,
) -> dict[str, Any]:
    """The Zarr metadata of the group and its arrays, as zarr itself writes it."""
    memory: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(memory), zarr_format=3, attributes=dict(attributes))
    for name, array in arrays.items():
        chunks, shards = _layout(values[name].shape, values[name].dtype.itemsize)
        group.create_array(
            name,
            shape=values[name].shape,
            dtype=values[name].dtype,
            chunks=chunks,
            shards=shards if array.is_sharded else None,
            compressors=[blosc, Crc32cCodec()] if array.is_sharded else [Crc32cCodec()],
            fill_value=0,
            dimension_names=array.dimensions,
            attributes={**array.attributes, "sha256": array_sha256(values[name])},
        )
    return {key: json.loads(memory[key].to_bytes()) for key in sorted(memory)}


def _layout(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of chunk and shard: leading axes are cut evenly until a piece fits, so a chunk is some whole frames."""
    chunk = list(shape)
    for axis in range(len(shape)):
        rest_bytes = itemsize * math.prod(chunk[axis + 1 :])
        if chunk[axis] * rest_bytes > _MAX_CHUNK_BYTES:
            chunk[axis] = _even_part(chunk[axis], max(1, _MAX_CHUNK_BYTES // rest_bytes))
    num_chunks = [math.ceil(length / part) for length, part in zip(shape, chunk, strict=True)]
    shard = [count * part for count, part in zip(num_chunks, chunk, strict=True)]
    for axis in range(len(shape)):
        rest_bytes = itemsize * math.prod(shard[axis + 1 :])
        if shard[axis] * rest_bytes > _MAX_SHARD_BYTES:
            most = max(1, _MAX_SHARD_BYTES // (chunk[axis] * rest_bytes))
            shard[axis] = chunk[axis] * _even_part(num_chunks[axis], most)
    return tuple(chunk), tuple(shard)


def _even_part(length: int, most: int) -> int:
    """The length of equal parts that are no longer than `most`."""
    return math.ceil(length / math.ceil(length / most))


def _write_array(
    place: Location, name: str, values: np.ndarray, metadata: dict[str, Any], objects: dict[str, dict[str, Any]]
) -> None:
    store = _RecordingStore(place.zarr_store(read_only=False), objects)
    array = zarr.Array(cast(Any, zarr.AsyncArray(cast(Any, metadata), StorePath(store, name), config=_STRICT)))
    for region in _regions(values.shape, array.shards or array.chunks):
        array[region] = values[region]


def _regions(shape: tuple[int, ...], part: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    counts = [math.ceil(length / step) for length, step in zip(shape, part, strict=True)]
    for index in np.ndindex(*counts):
        yield tuple(slice(at * step, (at + 1) * step) for at, step in zip(index, part, strict=True))


def _plain(values: np.ndarray) -> np.ndarray:
    """C-ordered and little-endian; no copy where it already is."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

"""Rows of an array, checked and decompressed straight into the memory they are wanted in, chunks in parallel.

zarr-python decodes a part of a shard into arrays of its own and copies twice; for windows of hundreds of megabytes that
costs more time and memory than the decoding. This reads what `group` writes (chunks of whole rows along the first axis,
packed by blosc, zstd or not at all, a crc32c behind each; one by one, or in shards with the index at their end) and
nothing else; zarr reads whatever differs. Both give the same bits, and the same faults: a chunk that is missing or
damaged raises.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, Self

import google_crc32c
import numpy as np
from numcodecs import blosc, zstd  # pyright: ignore[reportAttributeAccessIssue]: compiled, without stubs

from neuroray.storage.faults import DamagedObjectError, MissingObjectError
from neuroray.storage.locations import Location

_CHECKSUM_BYTES: Final = 4
_ENTRY_BYTES: Final = 16
_ABSENT: Final = 2**64 - 1
_BLOSC_HEADER_BYTES: Final = 16
# A bucket answers slowly and in parallel: more requests at a time than cores, each of a few small chunks.
_REMOTE_THREADS: Final = 16
_REMOTE_REQUEST_BYTES: Final = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLayout:
    """How the rows of an array lie in its shards.

    Attributes:
        shape: Of the array.
        dtype: Little-endian, as stored.
        chunk_rows: Rows of a chunk.
        shard_rows: Rows of an object, a multiple of them; the same where chunks are objects.
        packing: What chunks are compressed by.
        has_index: Whether objects are shards.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_rows: int
    packing: Literal["blosc", "zstd", "none"]
    has_index: bool

    @classmethod
    def find(cls, metadata: Mapping[str, Any]) -> Self | None:
        """The layout that an array's `zarr.json` describes; None where it is not the one that is read here."""
        shape, codecs = tuple(metadata["shape"]), metadata["codecs"]
        shard = chunk = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        has_index = codecs[0]["name"] == "sharding_indexed"
        if has_index:
            if len(codecs) > 1 or not _is_plain_index(codecs[0]["configuration"]):
                return None
            chunk, codecs = tuple(codecs[0]["configuration"]["chunk_shape"]), codecs[0]["configuration"]["codecs"]
        packing = _find_packing(codecs)
        cuts_rows_only = chunk[1:] == shard[1:] == shape[1:] and 0 not in shape
        keys, data_type = metadata["chunk_key_encoding"], metadata["data_type"]
        has_slashes = keys["name"] == "default" and keys.get("configuration", {}).get("separator", "/") == "/"
        if packing is None or not shape or not cuts_rows_only or not has_slashes or data_type not in _DTYPES:
            return None
        return cls(
            shape=shape,
            dtype=np.dtype(data_type).newbyteorder("<"),
            chunk_rows=chunk[0],
            shard_rows=shard[0],
            packing=packing,
            has_index=has_index,
        )

    @property
    def row_bytes(self) -> int:
        """Of one row, unpacked."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def shard_key(self, shard: int) -> str:
        """The object of a shard, relative to the array."""
        return "/".join(["c", str(shard), *("0" for _ in self.shape[1:])])


def _find_packing(codecs: Sequence[Mapping[str, Any]]) -> Literal["blosc", "zstd", "none"] | None:
    """What compresses chunks between `bytes` and `crc32c`; None for other chains."""
    names = [codec["name"] for codec in codecs]
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    if names[0] != "bytes" or endian != "little" or names[-1] != "crc32c" or len(names) > 3:
        return None
    inner = "none" if len(names) == 2 else names[1]
    return inner if inner in ("blosc", "zstd", "none") else None


def _is_plain_index(sharding: Mapping[str, Any]) -> bool:
    names = [codec["name"] for codec in sharding["index_codecs"]]
    return names == ["bytes", "crc32c"] and sharding.get("index_location", "end") == "end"


_DTYPES: Final = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    "float32",
    "float64",
)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk that is wanted: where it lies in its shard, and its first row in the array."""

    start: int
    stop: int
    first_row: int


class RowReader:
    """Reads rows of one array; keeps the indices of its shards, for a group never changes.

    Args:
        place: The array's folder.
        layout: Of its shards.
        sizes_bytes: Of its objects, by their keys in `place`.
    """

    def __init__(self, place: Location, layout: RowLayout, sizes_bytes: Mapping[str, int]) -> None:
        self._place, self._layout, self._sizes_bytes = place, layout, sizes_bytes
        self._indices: dict[int, np.ndarray] = {}

    def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
        """The rows `start` to `stop - 1`, in `out` where it is given (C order, the stored type).

        Raises:
            StoreError: an object or chunk is missing or damaged, or cannot be had.
        """
        layout = self._layout
        shape = (stop - start, *layout.shape[1:])
        target = np.empty(shape, layout.dtype) if out is None else out
        if target.shape != shape or target.dtype != layout.dtype or not target.flags.c_contiguous:
            raise ValueError(f"rows of {layout.dtype} {shape} do not fit {target.dtype} {target.shape}")
        requests = [
            (shard, request)
            for shard in range(start // layout.shard_rows, (stop - 1) // layout.shard_rows + 1)
            for request in self._requests(shard, start, stop)
        ]

        def fill(shard: int, request: list[_Piece]) -> None:
            data = self._place.read_range(layout.shard_key(shard), request[0].start, request[-1].stop)
            for piece in request:
                chunk = data[piece.start - request[0].start : piece.stop - request[0].start]
                self._unpack(chunk, piece, shard, target, start)

        if len(requests) == 1:
            fill(*requests[0])
            return target
        filled = [_pool(self._num_threads).submit(fill, *request) for request in requests]
        wait(filled)  # all of them: after an error nobody must go on writing to memory that is the caller's
        for one in filled:
            one.result()
        return target

    @property
    def _num_threads(self) -> int:
        return len(os.sched_getaffinity(0)) if self._place.is_local else _REMOTE_THREADS

    def _requests(self, shard: int, start: int, stop: int) -> list[list[_Piece]]:
        """The wanted chunks of a shard, those that are asked for together in one list."""
        layout, base = self._layout, shard * self._layout.shard_rows
        first = max(start - base, 0) // layout.chunk_rows
        last = (min(stop - base, layout.shard_rows) - 1) // layout.chunk_rows
        most = 0 if self._place.is_local else _REMOTE_REQUEST_BYTES
        requests: list[list[_Piece]] = []
        for number in range(first, last + 1):
            offset, length = map(int, self._index(shard)[number])
            if offset == _ABSENT:
                key = layout.shard_key(shard)
                raise MissingObjectError(f"chunk {number} of {key} is missing", fix="ingest the scan again")
            piece = _Piece(offset, offset + length, base + number * layout.chunk_rows)
            joins = requests and requests[-1][-1].stop == offset and piece.stop - requests[-1][0].start <= most
            if joins:
                requests[-1].append(piece)
            else:
                requests.append([piece])
        return requests

    def _index(self, shard: int) -> np.ndarray:
        """Offset and length of every chunk of a shard."""
        if shard not in self._indices:
            key = self._layout.shard_key(shard)
            if key not in self._sizes_bytes:
                raise MissingObjectError(f"{key} is not in the manifest", fix="ingest the scan again")
            if not self._layout.has_index:
                return np.array([[0, self._sizes_bytes[key]]], np.uint64)
            num_chunks = self._layout.shard_rows // self._layout.chunk_rows
            size, end = num_chunks * _ENTRY_BYTES + _CHECKSUM_BYTES, self._sizes_bytes[key]
            data = self._place.read_range(key, end - size, end)
            entries = _check(data, f"the index of {key}")
            self._indices[shard] = np.frombuffer(entries, "<u8").reshape(num_chunks, 2)
        return self._indices[shard]

    def _unpack(self, data: memoryview, piece: _Piece, shard: int, target: np.ndarray, start: int) -> None:
        """One chunk into its rows of `target`, which begins with row `start`."""
        layout, what = self._layout, f"the chunk at byte {piece.start} of {self._layout.shard_key(shard)}"
        packed = _check(data, what)
        at = piece.first_row - start
        if at >= 0 and at + layout.chunk_rows <= len(target):
            _decompress(packed, target[at : at + layout.chunk_rows], layout.packing, what)
            return
        rows = np.empty((layout.chunk_rows, *layout.shape[1:]), layout.dtype)
        _decompress(packed, rows, layout.packing, what)
        low, high = max(at, 0), min(at + layout.chunk_rows, len(target))
        target[low:high] = rows[low - at : high - at]


def _decompress(packed: memoryview, rows: np.ndarray, packing: str, what: str) -> None:
    """Fills `rows` with all that was packed, which has to be as much."""
    if packing == "blosc":
        # Bytes 4 to 7 of a blosc chunk say how many it unpacks to.
        unpacked = int.from_bytes(packed[4:8], "little") if len(packed) >= _BLOSC_HEADER_BYTES else -1
    else:
        unpacked = len(packed) if packing == "none" else zstd.decompress(packed, rows).nbytes
    if unpacked != rows.nbytes:
        raise DamagedObjectError(f"{what} does not hold {rows.nbytes} bytes")
    if packing == "blosc":
        blosc.decompress(packed, rows)
    elif packing == "none":
        rows.reshape(-1).view(np.uint8)[:] = np.frombuffer(packed, np.uint8)


def _check(data: memoryview, what: str) -> memoryview:
    """What stands before the checksum at the end, if the checksum is right."""
    body, checksum = data[:-_CHECKSUM_BYTES], bytes(data[-_CHECKSUM_BYTES:])
    # The library wants bytes or an array; an array of the same memory costs no copy.
    if len(checksum) < _CHECKSUM_BYTES or google_crc32c.value(np.frombuffer(body, np.uint8)) != int.from_bytes(
        checksum, "little"
    ):
        raise DamagedObjectError(f"{what} is damaged (crc32c)")
    return body


@lru_cache(maxsize=4)
def _pool(num_threads: int) -> ThreadPoolExecutor:
    """Threads of this process, shared by all readers, so that many readers do not make many times as many threads."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="neuroray-rows")

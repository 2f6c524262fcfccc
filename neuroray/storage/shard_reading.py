"""Rows of a sharded array, checked and decompressed straight into the memory they are wanted in, chunks in parallel.

zarr-python decodes a part of a shard into arrays of its own and copies twice; for windows of hundreds of megabytes that
costs more time and memory than the decoding. This reads the one layout that `group` writes (chunks of whole rows along
the first axis, blosc and crc32c, the index at the shard's end) and nothing else; zarr reads whatever differs. Both give
the same bits, and the same faults: a chunk that is missing or damaged raises.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

import google_crc32c
import numpy as np
from numcodecs import blosc  # pyright: ignore[reportAttributeAccessIssue]: compiled, without a stub

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
        shard_rows: Rows of a shard, a multiple of them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_rows: int

    @classmethod
    def find(cls, metadata: Mapping[str, Any]) -> Self | None:
        """The layout that an array's `zarr.json` describes; None where it is not the one that is read here."""
        shape, codecs = tuple(metadata["shape"]), metadata["codecs"]
        if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed" or not shape or 0 in shape:
            return None
        sharding = codecs[0]["configuration"]
        chunk, shard = sharding["chunk_shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
        cuts_rows_only = tuple(chunk[1:]) == tuple(shard[1:]) == shape[1:] and shard[0] % chunk[0] == 0
        inner, index = ([codec["name"] for codec in sharding[key]] for key in ("codecs", "index_codecs"))
        is_ours = inner == ["bytes", "blosc", "crc32c"] and index == ["bytes", "crc32c"]
        at_end = sharding.get("index_location", "end") == "end"
        endian = sharding["codecs"][0].get("configuration", {}).get("endian", "little")
        keys = metadata["chunk_key_encoding"]
        has_slashes = keys["name"] == "default" and keys.get("configuration", {}).get("separator", "/") == "/"
        if not (cuts_rows_only and is_ours and at_end and has_slashes and endian == "little"):
            return None
        if metadata["data_type"] not in _DTYPES:
            return None
        dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
        return cls(shape=shape, dtype=dtype, chunk_rows=chunk[0], shard_rows=shard[0])

    @property
    def row_bytes(self) -> int:
        """Of one row, unpacked."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def shard_key(self, shard: int) -> str:
        """The object of a shard, relative to the array."""
        return "/".join(["c", str(shard), *("0" for _ in self.shape[1:])])


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
        chunk_bytes = layout.chunk_rows * layout.row_bytes
        if len(packed) < _BLOSC_HEADER_BYTES or int.from_bytes(packed[4:8], "little") != chunk_bytes:
            raise DamagedObjectError(f"{what} does not hold {chunk_bytes} bytes")
        at = piece.first_row - start
        if at >= 0 and at + layout.chunk_rows <= len(target):
            blosc.decompress(packed, target[at : at + layout.chunk_rows])
            return
        rows = np.empty((layout.chunk_rows, *layout.shape[1:]), layout.dtype)
        blosc.decompress(packed, rows)
        low, high = max(at, 0), min(at + layout.chunk_rows, len(target))
        target[low:high] = rows[low - at : high - at]


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

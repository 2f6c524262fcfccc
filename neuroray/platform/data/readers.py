"""Readers: from an item of the plan to a row of arrays; pickled to where reading happens, the store is opened there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from neuroray.platform.data.collate import ITEM, Row, size_bytes, stack_rows
from neuroray.platform.data.plan import PlanError, ReadItem, StepRead
from neuroray.storage.faults import StoreError

if TYPE_CHECKING:
    from neuroray.storage.features import FeatureStore
    from neuroray.storage.store import ScanRecord, ScanStore


Label = int | float | Sequence[float]
"""Class index, measure, or several numbers, of one scan."""


class Reader(Protocol):
    """Reads one item. Called from several threads, and in other processes after pickling."""

    def __call__(self, item: ReadItem) -> Row:
        """The item as arrays."""
        ...

    def size_bytes(self, item: ReadItem) -> int:
        """Bytes of that row in memory, without reading it where that can be told."""
        ...


@runtime_checkable
class BatchReader(Reader, Protocol):
    """A reader that puts several items into one batch by itself, without a copy of each."""

    def read_batch(self, items: Sequence[ReadItem], buffers: Buffers | None = None) -> Row:
        """The items as arrays, along a new first axis; large ones in `buffers`, where they are given."""
        ...


class Buffers:
    """Memory that is used again, for arrays that are copied elsewhere before the next one is read.

    Fresh memory costs the kernel a page fault and a page of zeros for every page: for a window of 200 whole-brain
    frames as long as it takes to unpack it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An array of any content, over the one that was taken under this name before."""
        size_bytes = int(np.prod(shape)) * dtype.itemsize
        if name not in self._kept or self._kept[name].nbytes < size_bytes:
            self._kept[name] = np.empty(size_bytes, np.uint8)
        return self._kept[name][:size_bytes].view(dtype).reshape(shape)


class RowCache:
    """The rows used last, up to so many bytes; safe to share between threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._rows: OrderedDict[ReadItem, Row] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, item: ReadItem) -> Row | None:
        """The row, if it is still there."""
        with self._lock:
            if item in self._rows:
                self._rows.move_to_end(item)
            return self._rows.get(item)

    def put(self, item: ReadItem, row: Row) -> None:
        """Keeps a row, and drops those not used for longest; a row larger than the limit is not kept."""
        with self._lock:
            if item in self._rows or size_bytes(row) > self._limit_bytes:
                return
            self._rows[item] = row
            self._held_bytes += size_bytes(row)
            while self._held_bytes > self._limit_bytes:
                self._held_bytes -= size_bytes(self._rows.popitem(last=False)[1])


class StoreReader:
    """What both readers share: a store opened once per process, labels, rows kept."""

    def __init__(
        self,
        store_uri: str,
        version: int,
        *,
        labels: Mapping[str, Label] | None = None,
        cache_bytes: int = 64 * 2**20,
    ) -> None:
        self._store_uri = store_uri
        self._version = version
        self._labels = None if labels is None else dict(labels)
        self._cache_bytes = cache_bytes
        self._cache = RowCache(cache_bytes)
        self._lock = threading.Lock()
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_lock": None, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._cache = RowCache(self._cache_bytes)
        self._lock = threading.Lock()

    def __call__(self, item: ReadItem) -> Row:
        """The item as arrays, read-only; `label` is among them where labels were given.

        Raises:
            StoreError: the item cannot be read: missing or damaged, or the store gave no answer until the deadline.
            PlanError: there is no label for it.
        """
        row = self._cache.get(item)
        if row is None:
            row = {**self._read(item), **self._label(item)}
            for values in row.values():
                values.flags.writeable = False
            self._cache.put(item, row)
        return row

    def _read(self, item: ReadItem) -> Row:
        raise NotImplementedError

    def _open(self) -> Any:
        raise NotImplementedError

    def _store(self) -> Any:
        with self._lock:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _label(self, item: ReadItem) -> Row:
        if self._labels is None:
            return {}
        if item.scan_id not in self._labels:
            raise PlanError(f"no label for {item.scan_id}", expected="a label for every item of the plan")
        label = self._labels[item.scan_id]
        return {"label": np.array(label, dtype=np.float32 if isinstance(label, float | Sequence) else np.int64)}


class FeatureReader(StoreReader):
    """Reads cached slice features: `features` (slice, channel) float32, `mask` (slice,), `position_mm` (slice,).

    Args:
        store_uri: The store of the scans.
        version: Its catalogue version.
        fingerprint: Of the encoder that made the features.
        labels: Class index (int), measure (float) or several numbers of each scan; None: rows carry no label.
        cache_bytes: How much to keep of what was read, in each process.
    """

    def __init__(
        self,
        store_uri: str,
        version: int,
        fingerprint: str,
        *,
        labels: Mapping[str, Label] | None = None,
        cache_bytes: int = 64 * 2**20,
    ) -> None:
        super().__init__(store_uri, version, labels=labels, cache_bytes=cache_bytes)
        self._fingerprint = fingerprint
        self._row_bytes: int | None = None

    def size_bytes(self, item: ReadItem) -> int:
        """The same for all items, as one encoder made them; found by reading one."""
        if self._row_bytes is None:
            self._row_bytes = size_bytes(self(item))
        return self._row_bytes

    def _open(self) -> FeatureStore:
        from neuroray.storage.features import FeatureStore
        from neuroray.storage.store import ScanStore

        return FeatureStore(ScanStore(self._store_uri, version=self._version), self._fingerprint)

    def _read(self, item: ReadItem) -> Row:
        if item.start is not None:
            raise PlanError("slice features have no frames", given=item, expected="an item without a window")
        found = self._store().read(item.scan_id)
        return {
            "features": np.asarray(found.features, np.float32),
            "mask": np.asarray(found.mask, np.bool_),
            "position_mm": np.asarray(found.position_mm, np.float32),
        }


class ScanReader(StoreReader):
    """Reads voxels: `voxels` ([time] x y z) float32, `affine` (4, 4) float64, `spacing_mm` (3,) float64.

    Args:
        store_uri: The store.
        version: Its catalogue version.
        labels: Class index (int), measure (float) or several numbers of each scan; None: rows carry no label.
        cache_bytes: How much to keep of what was read, in each process; nothing by default, for scans are large.
    """

    def __init__(
        self,
        store_uri: str,
        version: int,
        *,
        labels: Mapping[str, Label] | None = None,
        cache_bytes: int = 0,
    ) -> None:
        super().__init__(store_uri, version, labels=labels, cache_bytes=cache_bytes)

    def size_bytes(self, item: ReadItem) -> int:
        """From the catalogue: voxels at four bytes, affine, spacing and label."""
        shape = self.record(item).shape if item.start is None else self._window_shape(item)
        return int(np.prod(shape)) * 4 + (16 + 3) * 8 + sum(label.nbytes for label in self._label(item).values())

    def record(self, item: ReadItem) -> ScanRecord:
        """The scan's row of the catalogue."""
        records = self._store()[1]
        if item.scan_id not in records:
            raise StoreError(f"there is no scan {item.scan_id} in {self._store_uri} at version {self._version}")
        return records[item.scan_id]

    def _open(self) -> tuple[ScanStore, dict[str, ScanRecord]]:
        from neuroray.storage.store import ScanStore

        store = ScanStore(self._store_uri, version=self._version)
        return store, {record.scan_id: record for record in store.records()}

    def _read(self, item: ReadItem) -> Row:
        record, store = self.record(item), self._store()[0]
        if item.start is None:
            voxels = store.read(item.scan_id).voxels
        else:
            self._window_shape(item)
            voxels = store.read_window(item.scan_id, item.start, item.stop)
        return {
            "voxels": np.ascontiguousarray(voxels, dtype=np.float32),
            "affine": np.array(record.affine, dtype=np.float64).reshape(4, 4),
            "spacing_mm": np.array(record.zooms_mm, dtype=np.float64),
        }

    def _window_shape(self, item: ReadItem) -> tuple[int, ...]:
        shape = self.record(item).shape
        if len(shape) != 4 or item.start is None or item.stop is None or item.stop > shape[0]:
            raise PlanError(
                f"{item.scan_id} has no such window",
                given=f"frames {item.start} to {item.stop}",
                expected=f"of {shape}",
            )
        return (item.stop - item.start, *shape[1:])


def read_step(reader: Reader, read: StepRead, buffers: Buffers | None = None) -> Row:
    """The batch of one step: its items, stacked.

    Args:
        reader: Of single items, or of batches.
        read: The step.
        buffers: Memory to read into, where the reader can; the next step with the same ones overwrites this batch.

    Raises:
        RowError: the items do not fit together.
    """
    if isinstance(reader, BatchReader):
        return {**reader.read_batch(read.items, buffers), ITEM: np.asarray(read.indices, dtype=np.int64)}
    return stack_rows([reader(item) for item in read.items], read.items, read.indices)

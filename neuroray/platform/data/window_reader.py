"""Windows of runs as they are stored, decoded once, into the batch that is shipped; z-scores are taken where it ends.

Stored numbers are half the bytes of values or less, on the way through Ray and to a GPU; `standardise` makes values of
them there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroray.platform.data.collate import Row, RowError
from neuroray.platform.data.plan import PlanError, ReadItem
from neuroray.platform.data.readers import Buffers, Label, ScanReader
from neuroray.storage.faults import StoreError

if TYPE_CHECKING:
    from neuroray.storage.store import ScanRecord

_SCALARS = ("slope", "intercept", "mean", "std", "minimum")


class WindowReader(ScanReader):
    """Reads frames of time series, a batch of them into one array.

    A row has `voxels` (time x y z) as stored; `frame_mask` (time,), false for padding, which is 0; `first_frame`;
    `slope` and `intercept` (`value = stored * slope + intercept`); `mean`, `std` and `minimum` of the scan's values
    over its brain; `brain` (x y z) where the mask is asked for; and `label` where labels are given.

    Args:
        store_uri: The store.
        version: Its catalogue version.
        labels: Class index (int), measure (float) or several numbers of each scan; None: rows carry no label.
        with_statistics: Read `mean`, `std` and `minimum`, which `standardise` needs.
        with_brain: Read the brain mask.
        cache_bytes: How much to keep of single rows, in each process.
    """

    def __init__(
        self,
        store_uri: str,
        version: int,
        *,
        labels: Mapping[str, Label] | None = None,
        with_statistics: bool = True,
        with_brain: bool = False,
        cache_bytes: int = 0,
    ) -> None:
        super().__init__(store_uri, version, labels=labels, cache_bytes=cache_bytes)
        self._with_statistics, self._with_brain = with_statistics, with_brain
        self._stored_dtypes: dict[str, np.dtype[Any]] = {}

    def size_bytes(self, item: ReadItem) -> int:
        """From the catalogue, and from one scan of each type of values: runs of a cohort are stored alike."""
        record = self.record(item)
        if record.dtype not in self._stored_dtypes:
            self._stored_dtypes[record.dtype] = self._store()[0].stored_dtype(item.scan_id)
        frames, *grid = self._shape(item)
        voxel_bytes = frames * int(np.prod(grid)) * self._stored_dtypes[record.dtype].itemsize
        brain_bytes = int(np.prod(grid)) if self._with_brain else 0
        num_scalars = 1 + (len(_SCALARS) if self._with_statistics else 2)
        label_bytes = sum(label.nbytes for label in self._label(item).values())
        return voxel_bytes + frames + 8 * num_scalars + brain_bytes + label_bytes

    def read_batch(self, items: Sequence[ReadItem], buffers: Buffers | None = None) -> Row:
        """Rows along a new first axis; every voxel is written once, into its place.

        Raises:
            RowError: windows of different length, grids or types.
            StoreError: an item cannot be read, or has no statistics or mask.
            PlanError: there is no such window, or no label for it.
        """
        shapes = {(self._shape(item), self._store()[0].stored_dtype(item.scan_id)) for item in items}
        if len(shapes) > 1:
            raise RowError(
                "windows in one batch differ",
                given=", ".join(sorted(f"{dtype} {shape}" for shape, dtype in shapes)),
                fix="bring the scans to one grid, pad short ones (--data.windows.short pad), or use batch_size 1",
            )
        ((shape, dtype),) = shapes
        full_shape = (len(items), *shape)
        voxels = np.empty(full_shape, dtype) if buffers is None else buffers.take("voxels", full_shape, dtype)
        rows = [self._read_into(item, window) for item, window in zip(items, voxels, strict=True)]
        return {"voxels": voxels, **{name: np.stack([row[name] for row in rows]) for name in rows[0]}}

    def _read(self, item: ReadItem) -> Row:
        batch = self.read_batch([item])
        return {name: np.asarray(values[0]) for name, values in batch.items() if name != "label"}

    def _read_into(self, item: ReadItem, window: np.ndarray) -> Row:
        """Fills `window`, and gives all else of the row."""
        num_frames = len(window) - item.padding
        start = item.start or 0
        stored = self._store()[0].read_stored(item.scan_id, start, start + num_frames, window[:num_frames])
        window[num_frames:] = 0
        row = {
            "frame_mask": np.arange(len(window)) < num_frames,
            "first_frame": np.array(start),
            "slope": np.array(stored.slope),
            "intercept": np.array(stored.intercept),
        }
        if self._with_statistics:
            found = self._require(self._store()[0].read_statistics(item.scan_id), item, "statistics")
            row |= {"mean": np.array(found.mean), "std": np.array(found.std), "minimum": np.array(found.min)}
        if self._with_brain:
            row["brain"] = self._require(self._store()[0].read_mask(item.scan_id), item, "brain mask")
        return row | self._label(item)

    def _require(self, found: Any, item: ReadItem, what: str) -> Any:
        if found is None:
            fix = "ingest it with the profile fmri_minimal"
            raise StoreError(f"scan {item.scan_id} in {self._store_uri} has no {what}", fix=fix)
        return found

    def _shape(self, item: ReadItem) -> tuple[int, ...]:
        """Of the row's voxels."""
        record: ScanRecord = self.record(item)
        if len(record.shape) != 4:
            raise PlanError(f"{item.scan_id} has no frames", given=record.shape, expected="a time series")
        if item.start is None:
            return record.shape
        frames, *grid = self._window_shape(item)
        return (frames + item.padding, *grid)

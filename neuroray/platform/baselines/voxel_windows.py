"""Standardised windows of some runs, read when they are asked for: what a baseline on voxels learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.standardise import standardise
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.data.windows import WindowConfig, cover_run
from neuroray.storage.store import ScanStore

NUM_FRAMES = 20
"""Of a window: what SwiFT looks at."""


class RunWindows:
    """Windows of the runs of one side, of `NUM_FRAMES` or of the shortest run where that is shorter.

    Args:
        store: Theirs.
        scan_ids: Of which runs, in the order of the side's values.
        num_frames: Of a window.

    Raises:
        BaselineError: runs on several grids, or none.
    """

    def __init__(self, store: ScanStore, scan_ids: Sequence[str], *, num_frames: int = NUM_FRAMES) -> None:
        records = [store.record(scan_id) for scan_id in scan_ids]
        grids = {record.shape[1:] for record in records}
        if len(grids) != 1:
            raise BaselineError(
                "a model of voxels takes runs of one grid",
                given=", ".join(map(str, sorted(grids))) or "no run",
                fix="bring them to one grid, or leave swin4d out",
            )
        x, y, z = next(iter(grids))
        self.scan_ids, self.grid_shape, self.num_frames = tuple(scan_ids), (x, y, z), num_frames
        self._lengths = [record.shape[0] for record in records]
        with_brain = all(record.prepared_by[0] == "fmri_minimal" for record in records)
        self._reader = WindowReader(store.uri, store.version, with_brain=with_brain)
        self._config = WindowConfig(sampler="cover", num_frames=num_frames, short="pad")

    def draw(self, chosen: Int[np.ndarray, " row"], generator: np.random.Generator) -> Float[Tensor, "row time x y z"]:
        """A window of each chosen run, every start equally likely."""
        starts = [generator.integers(max(1, self._lengths[row] - self.num_frames + 1)) for row in chosen]
        return self._read([self._item(int(row), int(start)) for row, start in zip(chosen, starts, strict=True)])

    def middle(self, chosen: Int[np.ndarray, " row"]) -> Float[Tensor, "row time x y z"]:
        """The window in the middle of each chosen run."""
        return self._read([self._item(int(row), max(0, (self._lengths[row] - self.num_frames) // 2)) for row in chosen])

    def cover(self) -> tuple[Int[np.ndarray, " window"], Callable[[np.ndarray], Float[Tensor, "row time x y z"]]]:
        """The run of each of the windows that leave no frame out, and what reads some of these windows."""
        found = [
            (row, item)
            for row, (scan_id, length) in enumerate(zip(self.scan_ids, self._lengths, strict=True))
            for item in cover_run(scan_id, length, self._config)
        ]
        return np.array([row for row, _ in found]), lambda chosen: self._read([found[place][1] for place in chosen])

    def _item(self, row: int, start: int) -> ReadItem:
        stop = min(start + self.num_frames, self._lengths[row])
        padding = start + self.num_frames - stop
        return ReadItem(scan_id=self.scan_ids[row], start=start, stop=stop, padding=padding)

    def _read(self, items: Sequence[ReadItem]) -> Float[Tensor, "row time x y z"]:
        return standardise(to_torch(self._reader.read_batch(items)))

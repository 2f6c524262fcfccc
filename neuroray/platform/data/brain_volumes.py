"""BrainVolumeReader: a volume's brain between -1 and 1 on a fixed grid, all else -1; the way back onto its own grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Num

from neuroray.platform.data.collate import Row
from neuroray.platform.data.plan import PlanError, ReadItem
from neuroray.platform.data.readers import Label, StoreReader

if TYPE_CHECKING:
    from neuroray.storage.store import ScanStore

Grid = tuple[int, int, int]

LOWEST, HIGHEST = 0.5, 99.5
"""Percentiles of the brain's values that become -1 and 1; what is beyond them is clipped."""

_MOST_CUT = 0.01


class BrainVolumeReader(StoreReader):
    """Reads `volume` (x y z) float32 and `brain` (x y z), both on the grid given.

    Args:
        store_uri: The store.
        version: Its catalogue version.
        grid: Volumes are padded and cut to it, about their middle.
        labels: See `StoreReader`.
        cache_bytes: How much to keep of what was read, in each process: whole volumes, so that a small cohort is read
            once.
    """

    def __init__(
        self,
        store_uri: str,
        version: int,
        grid: Grid,
        *,
        labels: Mapping[str, Label] | None = None,
        cache_bytes: int = 2**30,
    ) -> None:
        super().__init__(store_uri, version, labels=labels, cache_bytes=cache_bytes)
        self._grid = grid

    def size_bytes(self, item: ReadItem) -> int:
        """From the grid: a float and a byte for every voxel."""
        return 5 * int(np.prod(self._grid)) + sum(label.nbytes for label in self._label(item).values())

    def _open(self) -> ScanStore:
        from neuroray.storage.store import ScanStore

        return ScanStore(self._store_uri, version=self._version)

    def _read(self, item: ReadItem) -> Row:
        if item.start is not None:
            raise PlanError("volumes have no frames", given=item, expected="an item without a window")
        store = self._store()
        volume, brain = scale_brain(store.read(item.scan_id).voxels, store.read_mask(item.scan_id), name=item.scan_id)
        return {
            "volume": fit_grid(volume, self._grid, brain=brain, name=item.scan_id),
            "brain": fit_grid(brain, self._grid, brain=brain, name=item.scan_id),
        }


def scale_brain(
    voxels: Num[np.ndarray, "x y z"], mask: Bool[np.ndarray, "x y z"] | None, *, name: str = "the scan"
) -> tuple[Float32[np.ndarray, "x y z"], Bool[np.ndarray, "x y z"]]:
    """The brain's percentiles 0.5 and 99.5 become -1 and 1; the rest of the volume, and what is no number, is -1.

    Args:
        voxels: Of any type.
        mask: The brain; None: all that is not 0, which is the brain where the skull is off.
        name: For the error.

    Returns:
        The volume, and the voxels that count as brain.

    Raises:
        PlanError: no volume, or one without spread.
    """
    if voxels.ndim != 3:
        raise PlanError(f"{name} is no volume", given=f"shape {voxels.shape}", expected="x y z", fix="choose T1w scans")
    values = voxels.astype(np.float32)
    brain = (voxels != 0 if mask is None else mask) & np.isfinite(values)
    low, high = np.percentile(values[brain], [LOWEST, HIGHEST]) if brain.any() else (0.0, 0.0)
    if not high > low:
        raise PlanError(
            f"{name} is the same everywhere",
            given=f"{int(brain.sum())} voxels of brain, {low:g} to {high:g}",
            expected="grey values that differ",
            fix="look at the scan: a mask, a segmentation, or a file that was cut off?",
        )
    scaled = np.where(brain, (values - low) * (2 / (high - low)) - 1, -1)
    return np.clip(scaled, -1, 1).astype(np.float32), brain


def fit_grid[N: np.generic](
    values: np.ndarray[tuple[int, ...], np.dtype[N]],
    grid: Grid,
    *,
    brain: Bool[np.ndarray, "x y z"] | None = None,
    name: str = "the scan",
) -> np.ndarray[tuple[int, ...], np.dtype[N]]:
    """Pads (with -1, or False) and cuts about the middle.

    Raises:
        PlanError: more than a hundredth of the brain would be cut off.
    """
    own, kept = _overlap(values.shape, grid)
    if brain is not None and brain[own].sum() < (1 - _MOST_CUT) * brain.sum():
        raise PlanError(
            f"{name} does not fit the grid",
            given=f"{brain.shape}, of whose brain {1 - brain[own].sum() / brain.sum():.0%} would be cut off",
            expected=f"a brain within {grid}",
            fix="a larger --grid-shape, or register the scans (--profile mni_affine)",
        )
    fitted = np.full(grid, False if values.dtype.kind == "b" else -1, values.dtype)
    fitted[kept] = values[own]
    return fitted


def restore_grid(
    values: Float32[np.ndarray, "x y z"], shape: Sequence[int], *, fill: float = -1
) -> Float32[np.ndarray, "u v w"]:
    """From the grid back to the shape that `fit_grid` was given; `fill` where it had cut."""
    own, kept = _overlap(shape, values.shape)
    restored = np.full(tuple(shape), fill, values.dtype)
    restored[own] = values[kept]
    return restored


def choose_grid(shapes: Sequence[Sequence[int]], factor: int) -> Grid:
    """The smallest grid of multiples of `factor` that holds all of these volumes."""
    x, y, z = (-(-max(sizes) // factor) * factor for sizes in zip(*shapes, strict=True))
    return x, y, z


def _overlap(shape: Sequence[int], grid: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The same voxels in the volume and on the grid."""
    own, kept = [], []
    for size, length in zip(shape, grid, strict=True):
        both = min(size, length)
        own.append(slice((size - both) // 2, (size - both) // 2 + both))
        kept.append(slice((length - both) // 2, (length - both) // 2 + both))
    return tuple(own), tuple(kept)

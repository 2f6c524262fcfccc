"""Intensity statistics of a scan, for z-scores: kept beside the voxels, never applied to what is stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Num

_MAX_EXACT_ITEMSIZE: Final = 2
_BLOCK_VALUES: Final = 2**15  # in float64 small enough for the second-level cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of the values, in float64, over some voxels in all frames; values that are not finite do not count.

    Attributes:
        over: "mask": the voxels of the brain mask. "not background": those that are not 0 in every frame.
        mean: Arithmetic.
        std: Of the population (divided by the number of values, not by one less).
        min: Smallest.
        max: Largest.
        num_voxels: Voxels of one frame that counted.
        num_frames: Frames; 1 for a volume.
    """

    over: Literal["mask", "not background"]
    mean: float
    std: float
    min: float
    max: float
    num_voxels: int
    num_frames: int


@dataclass(slots=True)
class _Sums:
    """Running mean and squared deviations (Chan, Golub, LeVeque 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    least: float = np.inf
    most: float = -np.inf

    def add(self, values: Num[np.ndarray, " value"]) -> None:
        numbers = values.astype(np.float64)
        if numbers.size == 0:
            return
        self.least, self.most = min(self.least, float(numbers.min())), max(self.most, float(numbers.max()))
        mean = float(numbers.mean())
        numbers -= mean
        shift, total = mean - self.mean, self.count + numbers.size
        self.squares += float(np.dot(numbers, numbers)) + shift * shift * (self.count * numbers.size / total)
        self.mean += shift * (numbers.size / total)
        self.count = total


def measure_statistics(
    voxels: Num[np.ndarray, "*time x y z"], mask: Bool[np.ndarray, "x y z"] | None
) -> Statistics | None:
    """Statistics over the mask, or without one over what is not background; None where no voxel counts.

    Works frame by frame: beside the voxels, a few frames' worth of memory.
    """
    counted = find_foreground(voxels) if mask is None else mask
    if mask is None and voxels.dtype.kind in "iu" and voxels.dtype.itemsize <= _MAX_EXACT_ITEMSIZE:
        return _measure_small_integers(voxels, counted)
    where = np.flatnonzero(counted)
    sums = _Sums()
    for frame in _frames(voxels):
        values = np.ravel(frame)[where]
        sums.add(values if values.dtype.kind != "f" else values[np.isfinite(values)])
    if sums.count == 0:
        return None
    return Statistics(
        over="not background" if mask is None else "mask",
        mean=sums.mean,
        std=float(np.sqrt(sums.squares / sums.count)),
        min=sums.least,
        max=sums.most,
        num_voxels=len(where),
        num_frames=len(voxels) if voxels.ndim == 4 else 1,
    )


def _measure_small_integers(
    voxels: Num[np.ndarray, "*time x y z"], counted: Bool[np.ndarray, "x y z"]
) -> Statistics | None:
    """Statistics of what is not background, from exact sums: what does not count is 0 and adds nothing to them."""
    num_voxels = int(np.count_nonzero(counted))
    num_frames = len(voxels) if voxels.ndim == 4 else 1
    count = num_voxels * num_frames
    if count == 0:
        return None
    total, squares, least, most = 0, 0, np.inf, -np.inf
    for frame in _frames(voxels):
        flat = np.ravel(frame)
        for start in range(0, flat.size, _BLOCK_VALUES):
            numbers = flat[start : start + _BLOCK_VALUES].astype(np.float64)  # whole numbers far below 2**53: exact
            total += int(numbers.sum())
            squares += int(np.dot(numbers, numbers))
        least, most = _widen(frame, counted, least, most)
    return Statistics(
        over="not background",
        mean=total / count,
        std=math.sqrt(count * squares - total * total) / count,
        min=float(least),
        max=float(most),
        num_voxels=num_voxels,
        num_frames=num_frames,
    )


def _widen(frame: np.ndarray, counted: np.ndarray, least: float, most: float) -> tuple[float, float]:
    """The range with the counted values of one more frame; background is 0, so only a 0 has to be looked into."""
    low, high = int(frame.min()), int(frame.max())
    if low == 0 and least > 0:
        low = int(frame.min(where=counted, initial=high))
    if high == 0 and most < 0:
        high = int(frame.max(where=counted, initial=low))
    return min(least, low), max(most, high)


def find_foreground(voxels: Num[np.ndarray, "*time x y z"]) -> Bool[np.ndarray, "x y z"]:
    """Voxels that are not 0 in every frame."""
    found = np.zeros(voxels.shape[-3:], dtype=bool)
    for frame in _frames(voxels):
        found |= frame != 0
    return found


def statistics_to_json(statistics: Statistics | None) -> dict[str, Any] | None:
    """Every field."""
    return None if statistics is None else {name: getattr(statistics, name) for name in Statistics.__slots__}


def statistics_from_json(data: dict[str, Any] | None) -> Statistics | None:
    """What `statistics_to_json` described; fields that it does not know are left out."""
    return None if data is None else Statistics(**{name: data[name] for name in Statistics.__slots__})


def _frames(voxels: np.ndarray) -> Iterator[np.ndarray]:
    return iter(voxels) if voxels.ndim == 4 else iter((voxels,))

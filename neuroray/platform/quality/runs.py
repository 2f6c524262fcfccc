"""Measures of a run, frame block by frame block: what it needs of memory does not grow with the number of frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Blocks = Callable[[], Iterable[Float[np.ndarray, "time x y z"]]]
"""Gives the frames of a run in order, some at a time, anew at each call."""

# Voxels that the carpet shows, and that DVARS is standardised by; evenly spread over the mask.
_NUM_SAMPLES = 4000
_NORMAL_IQR = 1.349
_SCALE = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMoments:
    """What one pass over a run gives.

    Attributes:
        mean: Over time.
        deviation: Standard deviation over time (n - 1); 0 for a single frame.
        num_frames: Frames.
        frozen: Frames whose every voxel equals that of the frame before.
        num_nonfinite: Values that were NaN or infinite, and count as 0.
    """

    mean: Float[np.ndarray, "x y z"]
    deviation: Float[np.ndarray, "x y z"]
    num_frames: int
    frozen: tuple[int, ...]
    num_nonfinite: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeries:
    """What a second pass gives; the step into frame t stands at t - 1.

    Attributes:
        global_signal: Mean inside the mask, per frame, in percent of its mean.
        dvars: Root mean square change per step, scaled so that the median of the mean image is 1000 (Power et al.
            2012): 10 is 1 %.
        dvars_std: The same over what is expected of a run of this spread and autocorrelation: 1 is usual
            (Nichols, arXiv 1704.01469). None where nothing changes.
        global_correlation: Mean correlation of all pairs of voxels (Saad et al. 2013).
        carpet: Of voxels evenly spread over the mask, ordered from the middle of the mask to its edge: z over time.
    """

    global_signal: Float[np.ndarray, " frame"]
    dvars: Float[np.ndarray, " step"]
    dvars_std: Float[np.ndarray, " step"] | None
    global_correlation: float | None
    carpet: Float[np.ndarray, "voxel frame"]


def clean(values: np.ndarray) -> tuple[Float[np.ndarray, ...], int]:
    """As float32 with what is not finite at 0, and how many those were."""
    values = values.astype(np.float32)
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if count:
        values[bad] = 0
    return values, count


def take_moments(blocks: Blocks) -> RunMoments:
    """The first pass. Sums are of differences to the first frame, in float64, so that large values cost no digits."""
    first = last = np.empty(0)
    total = squares = np.empty(0)
    num_frames, num_nonfinite, frozen = 0, 0, []
    for raw in blocks():
        block, bad = clean(raw)
        num_nonfinite += bad
        for frame in block:
            if num_frames == 0:
                first = frame.astype(np.float64)
                total, squares = np.zeros_like(first), np.zeros_like(first)
            elif np.array_equal(frame, last):
                frozen.append(num_frames)
            difference = frame - first
            total += difference
            squares += difference**2
            last, num_frames = frame, num_frames + 1
    spread = np.maximum(squares - total**2 / num_frames, 0) / max(1, num_frames - 1)
    return RunMoments(
        mean=first + total / num_frames,
        deviation=np.sqrt(spread),
        num_frames=num_frames,
        frozen=tuple(frozen),
        num_nonfinite=num_nonfinite,
    )


def take_series(
    blocks: Blocks, moments: RunMoments, mask: Bool[np.ndarray, "x y z"], order: Float[np.ndarray, "x y z"]
) -> RunSeries:
    """The second pass.

    Args:
        blocks: The same frames as for the first.
        moments: What the first gave.
        mask: Not empty.
        order: Where a voxel comes in the carpet: the highest first.
    """
    mean, deviation = moments.mean[mask], moments.deviation[mask]
    level = float(np.median(mean))
    scale = _SCALE / level if level > 0 else math.nan
    varies = deviation > 0
    picked = _spread_evenly(order[mask])
    frames = list(_walk(blocks, mask, mean, deviation, varies, picked))
    signal = np.array([frame.mean for frame in frames])
    changes = np.array([frame.change for frame in frames[1:]])
    samples = np.stack([frame.samples for frame in frames], axis=1) * scale
    usual = float(mean.mean())
    return RunSeries(
        global_signal=100 * signal / usual if usual > 0 else signal,
        dvars=scale * changes,
        dvars_std=_standardise(scale * changes, samples),
        global_correlation=float(np.mean([frame.standard**2 for frame in frames])) if varies.any() else None,
        carpet=_to_z(samples),
    )


@dataclass(frozen=True, slots=True)
class _Frame:
    mean: float
    change: float
    standard: float
    samples: Float[np.ndarray, " voxel"]


def _walk(
    blocks: Blocks, mask: np.ndarray, mean: np.ndarray, deviation: np.ndarray, varies: np.ndarray, picked: np.ndarray
) -> Iterator[_Frame]:
    before: np.ndarray | None = None
    for raw in blocks():
        for frame in clean(raw)[0]:
            inside = frame[mask].astype(np.float64)
            change = 0.0 if before is None else math.sqrt(float(np.mean((inside - before) ** 2)))
            standard = float(np.mean((inside - mean)[varies] / deviation[varies])) if varies.any() else 0.0
            yield _Frame(float(inside.mean()), change, standard, inside[picked])
            before = inside


def _spread_evenly(order: Float[np.ndarray, " voxel"]) -> np.ndarray:
    """Indices of at most so many voxels, the highest of `order` first."""
    ranked = np.argsort(-order, kind="stable")
    return ranked[np.linspace(0, len(ranked) - 1, min(_NUM_SAMPLES, len(ranked))).round().astype(int)]


def _standardise(dvars: np.ndarray, samples: Float[np.ndarray, "voxel frame"]) -> np.ndarray | None:
    """DVARS over what it is expected to be, `sqrt(2 (1 - rho)) sd` averaged over voxels; sd from the quartiles."""
    if samples.shape[1] < 3:
        return None
    low, high = np.percentile(samples, [25, 75], axis=1)
    deviation = (high - low) / _NORMAL_IQR
    centred = samples - samples.mean(axis=1, keepdims=True)
    power = np.sum(centred**2, axis=1)
    varies = (deviation > 0) & (power > 0)
    if not varies.any():
        return None
    rho = np.sum(centred[:, 1:] * centred[:, :-1], axis=1)[varies] / power[varies]
    return dvars / float(np.mean(np.sqrt(2 * (1 - rho)) * deviation[varies]))


def _to_z(samples: Float[np.ndarray, "voxel frame"]) -> Float[np.ndarray, "voxel frame"]:
    centred = samples - samples.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0).astype(np.float32)

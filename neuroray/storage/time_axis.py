"""The fourth axis: how long a frame takes, and signs that it is not time or that the recording stood still."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Num

_SECONDS_OF_UNIT = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
# No scanner repeats a whole-head volume faster than 20 per second or slower than every half minute. In milliseconds and
# microseconds the same range does not overlap, so that an implausible number tells its own unit.
_PLAUSIBLE_S = (0.05, 30.0)
# Frames far apart in time show the same head (0.999 in the tests' real BOLD), slices far apart in space do not (0.40 to
# 0.77 there, 0.83 at most in the MNI152 template).
_STILL_CORRELATION = 0.95
_MOVED_CORRELATION = 0.9


def interpret_repetition_time(value: float, unit: str | None) -> tuple[float | None, tuple[str, ...]]:
    """The repetition time in s, and what a person should know about how it was found.

    Files often carry milliseconds under "s" or without a unit (2520), or seconds under "ms". A number that is
    plausible in its declared unit (seconds where none is declared) is taken so. One that is not is read in the only
    unit in which it is plausible, and flagged. One that is plausible in none gives None, and is flagged.

    Args:
        value: The header's number.
        unit: "s", "ms", "us", or None where the header names none.
    """
    if not math.isfinite(value) or value <= 0:
        return None, ("the header gives no repetition time",)
    declared_s = value * _SECONDS_OF_UNIT[unit or "s"]
    if _is_plausible(declared_s):
        default = unit is None and value == 1.0
        note = "the repetition time of 1 has no unit: it may never have been set"
        return _rounded(declared_s), ((note,) if default else ())
    said = f"{value:g} {unit}" if unit else f"{value:g} without a unit"
    for other, factor in _SECONDS_OF_UNIT.items():
        if _is_plausible(value * factor):
            seconds = _rounded(value * factor)
            return seconds, (f"the repetition time of {said} was read as {other}: {seconds:g} s",)
    return None, (f"the repetition time of {said} is not plausible in any unit and was left out",)


def find_frozen_frames(voxels: Num[np.ndarray, "time x y z"]) -> list[tuple[int, int]]:
    """First and last index of each run of frames that are equal in every voxel."""
    runs: list[tuple[int, int]] = []
    for frame in range(1, len(voxels)):
        if not np.array_equal(voxels[frame], voxels[frame - 1]):
            continue
        if runs and runs[-1][1] == frame - 1:
            runs[-1] = (runs[-1][0], frame)
        else:
            runs.append((frame - 1, frame))
    return runs


def find_time_among_space(voxels: Num[np.ndarray, "time x y z"]) -> int | None:
    """The spatial axis (0 to 2) that looks like time while the first axis looks like space; None where nothing does.

    Along time the same head is seen again and again; along space it changes. For each axis, the voxels at a quarter of
    it are correlated with those at its middle (not at three quarters: left and right mirror each other).
    """
    if _correlation_across(voxels, 0) > _MOVED_CORRELATION:
        return None
    across_space = [_correlation_across(voxels, axis) for axis in (1, 2, 3)]
    stillest = int(np.argmax(across_space))
    return stillest if across_space[stillest] > _STILL_CORRELATION else None


def _correlation_across(voxels: np.ndarray, axis: int) -> float:
    num_places = voxels.shape[axis]
    if num_places < 4:
        return 0.0 if axis else 1.0
    near, far = (voxels.take(num_places * quarter // 4, axis=axis).ravel().astype(np.float64) for quarter in (1, 2))
    near -= near.mean()
    far -= far.mean()
    scale = math.sqrt(float(near @ near) * float(far @ far))
    return float(near @ far) / scale if scale > 0 else 0.0


def _is_plausible(seconds: float) -> bool:
    shortest, longest = _PLAUSIBLE_S
    return shortest <= seconds <= longest


def _rounded(seconds: float) -> float:
    # Headers hold float32: 2.52 would come out as 2.5199999809. Seven digits are all that it says.
    return float(f"{seconds:.7g}")

"""Between the numbers that a file stores and the values they stand for: `value = stored * slope + intercept`."""

from __future__ import annotations

import numpy as np
from jaxtyping import Num

from neuroray.storage.scan import Encoding, ScanError

# Below this many steps between zero and the farthest value, rounding a value to float32 moves it by at most
# 2**20 * 2**-24 = 1/16 of a step, so that the stored integer is found again by rounding.
_FLOAT32_STEPS = 2.0**20
_FLOAT64_STEPS = 2.0**49  # the same 1/16 of a step in float64
_OFF_STEP_TOLERANCE = 0.125  # twice that 1/16: the way back rounds once more
_FLOAT32_SCALES = (1e-30, 1e30)  # well inside float32's range, with room for the stored numbers themselves


def check_scale(encoding: Encoding, name: str) -> None:
    """Refuses scales that no float can carry out, so that integers always come back as they were stored.

    Raises:
        ScanError: the stored integers (64 bits of them), or the intercept beside the slope, are so large that
            neighbouring values are one number in float64.
    """
    stored = np.dtype(encoding.dtype)
    if stored.kind != "f" and not encoding.is_identity and _count_steps(encoding) > _FLOAT64_STEPS:
        raise ScanError(
            f"{name}: float64 cannot tell apart the values that the header's scale gives",
            given=f"slope {encoding.slope:g}, intercept {encoding.intercept:g}, stored as {stored.name}",
            fix="the scale in the header (scl_slope, scl_inter) is damaged, or the file has to be converted to float64",
        )


def choose_dtype(encoding: Encoding) -> np.dtype:
    """The values' dtype: the stored one where nothing is scaled, else float32, or float64 where that is too coarse."""
    stored = np.dtype(encoding.dtype).newbyteorder("=")
    if encoding.is_identity:
        return stored
    if stored.kind == "f" or stored.itemsize > 2:
        return np.dtype(np.float64)
    smallest, largest = _FLOAT32_SCALES
    in_range = smallest < abs(encoding.slope) < largest and abs(encoding.intercept) < largest
    return np.dtype(np.float32 if in_range and _count_steps(encoding) < _FLOAT32_STEPS else np.float64)


def decode(stored: Num[np.ndarray, "*shape"], encoding: Encoding, out: Num[np.ndarray, "*shape"]) -> None:
    """Writes the values of `stored` into `out`, which has the dtype of `choose_dtype`."""
    if encoding.is_identity:
        out[...] = stored
        return
    # float64 in between: the product of a float32 slope and a stored number is exact there.
    out[...] = stored.astype(np.float64) * encoding.slope + encoding.intercept


def encode(values: Num[np.ndarray, "*shape"], encoding: Encoding, name: str) -> Num[np.ndarray, "*shape"]:
    """The stored numbers that stand for `values`, in the encoding's dtype.

    Integers that were stored come back exactly; scaled floats to float64's rounding.

    Raises:
        ScanError: values that this encoding cannot hold: outside its range, or between its steps.
    """
    dtype = np.dtype(encoding.dtype)
    if encoding.is_identity and values.dtype == dtype.newbyteorder("="):
        return values.astype(dtype)
    steps = (values.astype(np.float64) - encoding.intercept) / encoding.slope
    if dtype.kind == "f":
        return steps.astype(dtype)
    whole = np.rint(steps)
    limits = np.iinfo(dtype)
    in_range = np.isfinite(steps).all() and whole.min() >= limits.min and whole.max() <= limits.max
    if not in_range or np.abs(whole - steps).max() > _OFF_STEP_TOLERANCE:
        raise ScanError(
            f"{name}: the values do not fit the encoding of the file that the scan came from",
            given=f"values between {values.min():g} and {values.max():g}",
            expected=f"steps of {encoding.slope:g} from {encoding.intercept:g}, stored as {dtype.name}",
            fix="write_map writes any values as float32 on the same grid",
        )
    return whole.astype(dtype)


def _count_steps(encoding: Encoding) -> float:
    """Steps between zero and the farthest value."""
    return float(np.iinfo(np.dtype(encoding.dtype)).max) + abs(encoding.intercept / encoding.slope)

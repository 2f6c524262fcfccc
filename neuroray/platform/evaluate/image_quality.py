"""How near one volume is to another: PSNR, SSIM and mean absolute error, in the brain and in the whole volume."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy import ndimage

from neuroray.platform.evaluate.metrics import EvaluationError, Metric

IMAGE_METRICS: Final = {
    "psnr_brain": Metric(label="PSNR, brain", better="higher", unit="dB"),
    "psnr_whole": Metric(label="PSNR, whole volume", better="higher", unit="dB"),
    "ssim_brain": Metric(label="SSIM, brain", better="higher"),
    "ssim_whole": Metric(label="SSIM, whole volume", better="higher"),
    "l1_brain": Metric(label="L1, brain", better="lower"),
    "l1_whole": Metric(label="L1, whole volume", better="lower"),
}
"""What `compare_volumes` measures, of values in [0, 1]."""
SSIM_STATED: Final = "3D, Gaussian window of 11 voxels with sigma 1.5, data range 1, no padding"

_WINDOW, _SIGMA = 11, 1.5
# Wang et al. 2004: k1 = 0.01, k2 = 0.03, times the data range of 1, squared.
_C1, _C2 = 0.01**2, 0.03**2
# Equal volumes have no noise at all; 100 dB, as in training.
_LEAST_ERROR = 1e-10


def compare_volumes(
    made: Float[np.ndarray, "x y z"], truth: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"]
) -> dict[str, float]:
    """All of `IMAGE_METRICS`.

    Args:
        made: In [-1, 1], as the models take and give volumes; measured in [0, 1].
        truth: The same.
        brain: Of the truth. SSIM in the brain is the mean of the map over those of its voxels that have a whole window.

    Raises:
        EvaluationError: shapes that differ, no brain, or volumes smaller than the window.
    """
    if not made.shape == truth.shape == brain.shape or not brain.any():
        given = f"{made.shape}, {truth.shape}, {int(brain.sum())} voxels of brain"
        raise EvaluationError("volumes cannot be compared", given=given, expected="one grid, with a brain on it")
    one, other = ((volume.astype(np.float64) + 1) / 2 for volume in (made, truth))
    error = np.abs(one - other)
    similarity = map_ssim(one, other)
    inside = brain[tuple(slice(_WINDOW // 2, -(_WINDOW // 2)) for _ in range(3))]
    return {
        "psnr_brain": tell_psnr(float(np.square(error[brain]).mean())),
        "psnr_whole": tell_psnr(float(np.square(error).mean())),
        "ssim_brain": float(similarity[inside].mean()) if inside.any() else float("nan"),
        "ssim_whole": float(similarity.mean()),
        "l1_brain": float(error[brain].mean()),
        "l1_whole": float(error.mean()),
    }


def tell_psnr(mean_squared_error: float) -> float:
    """Decibels, of a data range of 1; 100 at most."""
    return float(-10 * np.log10(max(mean_squared_error, _LEAST_ERROR)))


def map_ssim(one: Float[np.ndarray, "x y z"], other: Float[np.ndarray, "x y z"]) -> Float64[np.ndarray, "u v w"]:
    """Structural similarity (Wang et al. 2004) around each voxel that has a whole window; ten less along each axis.

    The 3D window is a product of three Gaussians, so three passes of 11 taps do what one of 1331 would. Covariances are
    those of the population, as in the paper and in MONAI.

    Args:
        one: Values in [0, 1].
        other: The same.

    Raises:
        EvaluationError: fewer voxels than the window along some axis.
    """
    if min(one.shape) < _WINDOW:
        raise EvaluationError("a volume is too small for SSIM", given=one.shape, expected=f"{_WINDOW} voxels or more")
    one, other = one.astype(np.float64), other.astype(np.float64)
    mean_one, mean_other = _smooth(one), _smooth(other)
    spread_one = _smooth(one * one) - mean_one**2
    spread_other = _smooth(other * other) - mean_other**2
    shared = _smooth(one * other) - mean_one * mean_other
    brightness = (2 * mean_one * mean_other + _C1) / (mean_one**2 + mean_other**2 + _C1)
    return brightness * (2 * shared + _C2) / (spread_one + spread_other + _C2)


def _smooth(values: Float64[np.ndarray, "x y z"]) -> Float64[np.ndarray, "u v w"]:
    taps = np.exp(-0.5 * (np.arange(-(_WINDOW // 2), _WINDOW // 2 + 1) / _SIGMA) ** 2)
    for axis in range(3):
        values = ndimage.correlate1d(values, taps / taps.sum(), axis=axis)
        # What the filter made up beyond the edge is cut off at once, so that later passes have less to do.
        values = values.take(range(_WINDOW // 2, values.shape[axis] - _WINDOW // 2), axis=axis)
    return values

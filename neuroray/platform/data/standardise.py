"""From stored numbers to z-scores, on the device where they are used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

_FRAMES_AT_ONCE = 8  # float32 copies of that many frames stand beside the batch


def standardise(batch: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Float[Tensor, "batch time x y z"]:
    """The voxels of a batch of windows as z-scores of their scan, background at the scan's lowest.

    z = (stored * slope + intercept - mean) / std, with mean and std over the brain in all frames of the run. Background
    is what the `brain` mask leaves out where the batch has one, else values of 0; it, and padding, are set to the z of
    the smallest value in the brain, so that nothing lies below the brain (as SwiFT, TFF and BrainMT prepare runs).
    So is what is no number, and a frame whose brain is all of one value: it was not acquired.

    Args:
        batch: As `WindowReader` gives it: `voxels`, `frame_mask`, `slope`, `intercept`, `mean`, `std`, `minimum`.
        dtype: Of the result; computed in float32, from stored numbers of more than two bytes in float64.

    Raises:
        ValueError: a scan whose values are all alike.
    """
    voxels = batch["voxels"]
    names = ("slope", "intercept", "mean", "std", "minimum")
    scales = torch.stack([batch[name].double() for name in names], dim=1).tolist()
    exact = torch.float32 if voxels.dtype.itemsize <= 2 or voxels.dtype == torch.float32 else torch.float64
    scores = torch.empty(voxels.shape, dtype=dtype, device=voxels.device)
    for index, (slope, intercept, mean, std, minimum) in enumerate(scales):
        if not std > 0:
            raise ValueError("a scan without spread has no z-scores")
        lowest = (minimum - mean) / std
        brain = batch["brain"][index] if "brain" in batch else None
        for first in range(0, voxels.shape[1], _FRAMES_AT_ONCE):
            stored = voxels[index, first : first + _FRAMES_AT_ONCE]
            values = stored.to(exact, copy=True).mul_(slope / std).add_((intercept - mean) / std)
            background = ~brain if brain is not None else _is_zero(stored, slope, intercept)
            if stored.is_floating_point():
                background = background | ~stored.isfinite()
            values.masked_fill_(background, lowest)
            values[_is_flat(values, background)] = lowest
            scores[index, first : first + _FRAMES_AT_ONCE] = values
        scores[index, ~batch["frame_mask"][index]] = lowest
    return scores


def _is_flat(values: Float[Tensor, "time x y z"], background: Bool[Tensor, "*time x y z"]) -> Bool[Tensor, " time"]:
    """Frames of which all brain voxels are equal."""
    least = values.masked_fill(background, torch.inf).amin((1, 2, 3))
    most = values.masked_fill(background, -torch.inf).amax((1, 2, 3))
    return least == most


def _is_zero(stored: Num[Tensor, "time x y z"], slope: float, intercept: float) -> Bool[Tensor, "time x y z"]:
    """Where the value is 0; asked of the stored numbers, for rounding may make almost 0 of it."""
    zero = -intercept / slope
    if not stored.is_floating_point():
        # 2**53: whole numbers beyond it are not told apart.
        if abs(zero - round(zero)) > 1e-6 or abs(zero) > 2**53:
            return torch.zeros_like(stored, dtype=torch.bool)
        zero = round(zero)
    return stored == zero

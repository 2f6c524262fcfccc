"""Second moments: how the channels of the frame encoder's tokens vary together over the frames of a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def count_moments(num_channels: int) -> int:
    """Of so many channels: each with itself and with every other one once."""
    return num_channels * (num_channels + 1) // 2


def find_held(voxels: Float[Tensor, "batch time x y z"]) -> Bool[Tensor, "batch time"]:
    """Frames with something in them: padding and frames that were not acquired are of one value."""
    flat = voxels.flatten(2)
    return flat.amax(2) > flat.amin(2)


def second_moments(
    frames: Float[Tensor, "batch time channel place"], held: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch moment"]:
    """Covariances over the held frames between channels at the same place, averaged over places.

    Bilinear pooling (Lin, RoyChowdhury and Maji 2015), over time: what connectivity is for regions, this is for the
    channels of a frame encoder, whose tokens see most of a small brain. Population covariances, in float32; the upper
    triangle, row by row. A window with one held frame or none has 0.
    """
    with torch.autocast(frames.device.type, enabled=False):
        values, counted = frames.float(), held[:, :, None, None].to(torch.float32)
        number = held.sum(1).clamp(min=1).to(torch.float32)[:, None, None]
        mean = (values * counted).sum(1, keepdim=True) / number[..., None]
        centred = ((values - mean) * counted).permute(0, 2, 1, 3).flatten(2)  # batch channel (time place)
        products = centred @ centred.transpose(1, 2) / (number * frames.shape[-1])
    row, column = torch.triu_indices(*products.shape[1:], device=products.device)
    return products[:, row, column]

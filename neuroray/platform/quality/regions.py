"""Where the head and the air around it are in a scan that nobody has segmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from neuroray.platform.evaluate.faces import find_head

# Air is counted from here on, so that partial volume and ghosts close to the skin are none of it.
_AIR_DISTANCE_MM = 8.0
_SILENT = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Parts of a scan that measures are taken over.

    Attributes:
        kind: What `inside` is: the brain where a mask of it is stored, else all of the head (for runs: what the mean
            image shows).
        inside: What is measured.
        head: All that is not air.
        air: Far from the head; empty where the background was set to zero.
    """

    kind: Literal["brain", "head"]
    inside: Bool[np.ndarray, "x y z"]
    head: Bool[np.ndarray, "x y z"]
    air: Bool[np.ndarray, "x y z"]


def find_regions(
    volume: Float[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    brain: Bool[np.ndarray, "x y z"] | None = None,
) -> Regions:
    """Head and air of a volume without NaN; `inside` is the brain where its mask is given."""
    head = find_head(volume)
    reach = [max(1, round(_AIR_DISTANCE_MM / spacing)) for spacing in spacing_mm]
    near = ndimage.grey_dilation(head.astype(np.uint8), size=[2 * length + 1 for length in reach]).astype(bool)
    air = ~near
    # Air that is zero all over was made so by somebody: it says nothing about noise.
    if not air.any() or np.mean(volume[air] == 0) > _SILENT:
        air = np.zeros_like(head)
    if brain is not None and brain.any():
        return Regions(kind="brain", inside=brain, head=head, air=air)
    return Regions(kind="head", inside=head, head=head, air=air)

"""Where the head and the air around it are in a scan that nobody has segmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

# Fat, vessels and the bright spots of a coil must not set the scale.
_BRIGHTEST = 0.998
_NUM_BINS = 256
# Otsu's threshold lies between air and white matter; skin, bone marrow and cortex near the coil's far end lie lower.
_BELOW_OTSU = 0.5
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


def find_head(volume: Float[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """The largest bright part, with what it encloses; all False in an empty volume."""
    threshold = _BELOW_OTSU * otsu_threshold(volume)
    # What is cut off at the image's edge goes on behind it, so it is not worn away there.
    bright = ndimage.binary_dilation(ndimage.binary_erosion(volume > threshold, border_value=1))
    labels, count = ndimage.label(bright)
    if not count:
        return np.zeros(volume.shape, bool)
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    # Closed from each side, for sinuses and the throat are open to the outside in three dimensions.
    for axis in range(3):
        for plane in range(volume.shape[axis]):
            index = (slice(None),) * axis + (plane,)
            largest[index] = ndimage.binary_fill_holes(largest[index])
    return largest


def otsu_threshold(volume: Float[np.ndarray, ...]) -> float:
    """The value that parts a histogram into two with the least spread within (Otsu, IEEE SMC 1979)."""
    highest = np.quantile(volume, _BRIGHTEST)
    counts, edges = np.histogram(np.clip(volume, None, highest), _NUM_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1 + np.argmax(np.nan_to_num(between))])

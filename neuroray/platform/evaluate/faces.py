"""Where a head is in a scan, and which parts of it a picture may show.

No picture may tell whose head it is. Whole heads keep their faces, so what lies in front and low is never drawn: all
in front of 58 % of the head's length (counted from the back, behind the orbits) and below a plane that rises from
80 mm under the top of the head there to 34 mm at its front, over the brows of a head that looks up by 15 degrees, and
nothing below the skull base. Where the top of the head lies outside the image, depth cannot be told: then all in front
is left out. Of a scan with a brain mask, stored or made by setting all else to 0, what is inside
it is shown and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from neuroray.storage.profiles.masks import is_masked

NO_ORIENTATION = "no orientation"
"""Begins the flag of a scan whose header does not say how it lies: a face could be anywhere in it."""
_DEPTH_BEHIND_MM, _DEPTH_IN_FRONT_MM, _SKULL_BASE_DEPTH_MM = 80.0, 34.0, 150.0
# Of the largest area of a plane: pillows and noise are not the head's end.
_SMALLEST_AREA = 0.02
# Of a head's length from the back; and never nearer to its front than this, for a head whose back is cut off.
BEHIND_FACE, FACE_LENGTH_MM = 0.58, 90.0
_CUT_FRACTION = 0.25
# The largest brains on record with the fluid around them; a mask that holds more holds more than a brain.
_LARGEST_BRAIN_ML = 2000.0
# Fat, vessels and the bright spots of a coil must not set the scale.
_BRIGHTEST = 0.998
_NUM_BINS = 256
# Otsu's threshold lies between air and white matter; skin, bone marrow and cortex near the coil's far end lie lower.
_BELOW_OTSU = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """The part of a scan that may be shown.

    Attributes:
        allowed: Voxels.
        low_mm: Corner of the head's box in the grid's own millimetres (index times spacing), along x, y, z.
        high_mm: The opposite corner.
        is_depth_known: Whether the top of the head is in the image.
    """

    allowed: Bool[np.ndarray, "x y z"]
    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]
    is_depth_known: bool


def is_lost(flags: Sequence[str]) -> bool:
    """Whether a scan's flags say that its header does not tell how it lies."""
    return any(NO_ORIENTATION in flag for flag in flags)


def find_visible(
    head: Bool[np.ndarray, "x y z"], spacing_mm: Sequence[float], brain: Bool[np.ndarray, "x y z"] | None = None
) -> Visible | None:
    """What may be shown of a scan; None where there is no head in it.

    Args:
        head: As `find_head` gives it.
        spacing_mm: Along x, y, z.
        brain: A stored mask. One that is too large for a brain is taken for none.
    """
    if brain is not None and _is_too_large(brain, spacing_mm):
        brain = None
    shown = head if brain is None else brain
    spans = [_find_span(shown, axis) for axis in range(3)]
    if not all(len(span) for span in spans):
        return None
    low = [float((span[0] - 0.5) * size) for span, size in zip(spans, spacing_mm, strict=True)]
    high = [float((span[-1] + 0.5) * size) for span, size in zip(spans, spacing_mm, strict=True)]
    is_depth_known = (touch_fraction(head) or 0.0) < _CUT_FRACTION
    box = {"low_mm": (low[0], low[1], low[2]), "high_mm": (high[0], high[1], high[2])}
    if brain is not None:
        return Visible(allowed=brain, is_depth_known=is_depth_known, **box)
    _, y, z = (np.arange(length) * size for length, size in zip(head.shape, spacing_mm, strict=True))
    limit_mm = min(low[1] + BEHIND_FACE * (high[1] - low[1]), high[1] - FACE_LENGTH_MM)
    depth = high[2] - z
    forward = np.clip((y - limit_mm) / max(high[1] - limit_mm, 1e-6), 0, 1)
    deepest = _DEPTH_BEHIND_MM + forward * (_DEPTH_IN_FRONT_MM - _DEPTH_BEHIND_MM) if is_depth_known else 0 * forward
    hidden = (y > limit_mm)[:, None] & (depth[None, :] > deepest[:, None])
    hidden |= (depth > _SKULL_BASE_DEPTH_MM)[None, :]
    allowed = np.broadcast_to(np.logical_not(hidden)[None], head.shape)
    return Visible(allowed=allowed, is_depth_known=is_depth_known, **box)


def find_masked_brain(
    volume: Float[np.ndarray, "x y z"], spacing_mm: Sequence[float]
) -> Bool[np.ndarray, "x y z"] | None:
    """What is left of a scan of which somebody has set all but the brain to 0; None for any other."""
    foreground = volume != 0
    if not foreground.any() or not is_masked(foreground) or _is_too_large(foreground, spacing_mm):
        return None
    return foreground


def find_head(volume: Float[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """The largest bright part, with what it encloses; all False in an empty volume."""
    threshold = _BELOW_OTSU * otsu_threshold(volume)
    # What is cut off at the image's edge goes on behind it, so it is not worn away there.
    bright = ndimage.binary_dilation(ndimage.binary_erosion(volume > threshold, border_value=1))
    labels = np.zeros(volume.shape, np.int32)
    if not ndimage.label(bright, output=labels):
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


def touch_fraction(head: Bool[np.ndarray, "x y z"]) -> float | None:
    """Area of the head in the uppermost plane over its largest area: 0 where there is air above it."""
    areas = head.sum(axis=(0, 1))
    return float(areas[-1] / areas.max()) if areas.any() else None


def _is_too_large(brain: Bool[np.ndarray, "x y z"], spacing_mm: Sequence[float]) -> bool:
    return float(brain.sum() * np.prod(spacing_mm)) > 1000 * _LARGEST_BRAIN_ML


def _find_span(shown: Bool[np.ndarray, "x y z"], axis: int) -> np.ndarray:
    areas = shown.sum(axis=tuple(other for other in range(3) if other != axis))
    return np.flatnonzero(areas > _SMALLEST_AREA * areas.max())

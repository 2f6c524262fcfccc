"""Signs that a volume is no whole, T1-weighted head: cropped, of another contrast, CT, noise or a phantom."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from neuroray.platform.evaluate.faces import find_head

# Of what is looked at: a head is examined as well at 2 mm, in an eighth of the time that it takes at 1 mm.
_EXAMINED_SPACING_MM = 2.0
# From the top of the head down: brain at every depth, and neither neck nor jaw.
_BRAIN_REACH_MM = 110.0
# Below the head's surface lie scalp, skull, fluid and cortex; from here on mostly white matter and ventricles.
_DEEP_MM = 25.0
_RIM_MM, _INNER_MM = (10.0, 20.0), (25.0, 35.0)
_FEWEST_VOXELS = 100
# Air is -1000 Hounsfield units; magnitude images have no negative values but for a little ringing of resampling.
_CT_AIR, _CT_SHARE = -200.0, 0.05
# Skull-stripped infants to heads with a neck.
_HEAD_LITRES = (0.5, 9.0)
# In 11 real whole heads and 48 simulated scans with and without a skull the balance lies below -0.18, contrast above
# 0.53 and rise above 1.01; the balance of T2, EPI and inverted T1 above 0.1, the contrast of CT, PD and phantoms below
# 0.3, the rise of FLAIR without a bright scalp below 0.97.
_HIGHEST_BALANCE = -0.05
_BRIGHT_TAIL = 0.05
_LEAST_CONTRAST = 0.35
_LEAST_RISE = 0.98
# A plane through a sphere of this radius, so far from its end, has this share of the largest area.
_HEAD_RADIUS_MM = 70.0
_CUT_SHARE = 0.08
_SIDES = (("right", "left"), ("front", "back"), ("top", "bottom"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSigns:
    """What the numbers of a volume say of the head in it; None where it shows too little of one.

    Attributes:
        litres: Volume of the largest bright part and what it encloses.
        cut_sides: Where it is cut off by the edge of the volume, of those that a whole head is not.
        reach_mm: From its top to the lower edge of the volume.
        balance: Deep in it, how much farther the 95th percentile lies above the median than the 5th below, over their
            distance: below 0 in T1, where fluid is darkest, and white matter, the brightest, is the most.
        contrast: Distance of these over the median.
        rise: Median 25 to 35 mm below the surface over that at 10 to 20 mm: above 1 where white matter is brighter than
            cortex.
    """

    litres: float
    cut_sides: tuple[str, ...]
    reach_mm: float
    balance: float | None
    contrast: float | None
    rise: float | None


def measure_head(volume: Float[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]) -> HeadSigns | None:
    """The signs of a volume in RAS+ order; None where nothing stands out."""
    steps = [max(1, int(_EXAMINED_SPACING_MM / spacing)) for spacing in spacing_mm]
    coarse = np.nan_to_num(np.asarray(volume[:: steps[0], :: steps[1], :: steps[2]], dtype=np.float32))
    sizes = np.array([step * spacing for step, spacing in zip(steps, spacing_mm, strict=True)])
    if not coarse.max() > coarse.min():
        return None
    head = find_head(coarse)
    if not head.any():
        return None
    top = int(np.flatnonzero(head.any(axis=(0, 1)))[-1])
    # Where the head goes on below the volume, its lower edge is no surface.
    padded = np.pad(head, ((1, 1), (1, 1), (0, 1)))
    depth = np.asarray(ndimage.distance_transform_edt(padded, sampling=sizes))[1:-1, 1:-1, :-1]
    depth[:, :, : max(0, top + 1 - int(_BRAIN_REACH_MM / sizes[2]))] = 0
    deep = coarse[depth > _DEEP_MM]
    balance = contrast = None
    if len(deep) >= _FEWEST_VOXELS:
        low, middle, high = (float(value) for value in np.percentile(deep, (5, 50, 95)))
        balance = (high + low - 2 * middle) / (high - low) if high > low else 0.0
        contrast = (high - low) / abs(middle) if middle else math.inf
    rim, inner = (_median_between(coarse, depth, bounds) for bounds in (_RIM_MM, _INNER_MM))
    return HeadSigns(
        litres=float(head.sum() * sizes.prod() / 1e6),
        cut_sides=_find_cuts(head, sizes),
        reach_mm=float((top + 1) * sizes[2]),
        balance=balance,
        contrast=contrast,
        rise=inner / rim if rim and inner is not None and rim > 0 else None,
    )


def find_t1w_oddities(volume: Float[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]) -> tuple[str, ...]:
    """What speaks against a whole T1-weighted head, in plain words; whole heads and stripped brains raise none.

    FLAIR is told from T1 where the scalp is dark or gone; with a bright scalp it may pass.
    """
    if float(np.mean(np.asarray(volume[::2, ::2, ::2]) < _CT_AIR)) > _CT_SHARE:
        return ("values far below 0, as air has in CT (Hounsfield units): this does not look like an MRI scan",)
    signs = measure_head(volume, spacing_mm)
    if signs is None:
        return ("nothing stands out from the background: this does not look like a head",)
    smallest, largest = _HEAD_LITRES
    if not smallest <= signs.litres <= largest:
        return (
            f"what stands out from the background measures {signs.litres:.2g} litres, which is not a head or brain",
        )
    return (*_tell_cuts(signs), *_tell_contrast(signs))


def _tell_cuts(signs: HeadSigns) -> list[str]:
    found = []
    if signs.cut_sides:
        where = " and ".join(signs.cut_sides)
        found.append(f"the head is cut off at the {where} of the volume: parts of the brain may be missing")
    return found


def _tell_contrast(signs: HeadSigns) -> list[str]:
    if signs.balance is None or signs.contrast is None:
        return []
    if signs.contrast < _LEAST_CONTRAST:
        return ["hardly any contrast between tissues: this does not look like a T1-weighted brain (CT? a phantom?)"]
    if signs.balance > _BRIGHT_TAIL:
        return ["fluid looks brighter than white matter: this does not look T1-weighted (T2? EPI? inverted?)"]
    if signs.balance > _HIGHEST_BALANCE:
        return ["tissues are not spread as in a T1-weighted brain: noise, or another kind of image?"]
    if signs.rise is not None and signs.rise < _LEAST_RISE:
        return ["grey matter looks brighter than white matter: this does not look T1-weighted (FLAIR?)"]
    return []


def _find_cuts(head: Bool[np.ndarray, "x y z"], sizes_mm: Float[np.ndarray, 3]) -> tuple[str, ...]:
    """Sides with more of the head in the outermost plane than the end of a whole one has; the neck may be cut."""
    found = []
    for axis, (upper, lower) in enumerate(_SIDES):
        areas = head.sum(axis=tuple(other for other in range(3) if other != axis))
        most = _CUT_SHARE + 2 * sizes_mm[axis] / _HEAD_RADIUS_MM
        # +x is right, +y front, +z top.
        if areas[-1] > most * areas.max():
            found.append(upper)
        is_short = (np.flatnonzero(areas)[-1] + 1) * sizes_mm[axis] < _BRAIN_REACH_MM
        if areas[0] > most * areas.max() and (lower != "bottom" or is_short):
            found.append(lower)
    return tuple(found)


def _median_between(volume: np.ndarray, depth: np.ndarray, bounds_mm: tuple[float, float]) -> float | None:
    values = volume[(depth >= bounds_mm[0]) & (depth < bounds_mm[1])]
    return float(np.median(values)) if len(values) >= _FEWEST_VOXELS else None

"""Where things happen in the template: ventricles, cortex, and the medial temporal region that the disease shrinks."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from neuroray.storage.simulate.template import Template, Volume, load_template, measure_depth

# Atrophy is planned on this grid whatever the spacing of the scans, so that anatomy never depends on how it is scanned.
REGION_SPACING_MM = 2.0

# MNI mm on the right side (x is mirrored): hippocampal head to tail, amygdala, entorhinal and parahippocampal cortex,
# fusiform cortex and the pole.
_MEDIAL_TEMPORAL_MM = (
    (24, -11, -22),
    (28, -19, -17),
    (29, -27, -12),
    (26, -36, -4),
    (21, -3, -21),
    (22, -12, -30),
    (26, -24, -24),
    (38, -16, -27),
    (37, -30, -20),
    (31, 5, -30),
)
_MEDIAL_TEMPORAL_WIDTH_MM = 10.0
_TEMPORAL_HORN_MM = ((32, -6, -25), (34, -12, -21), (36, -19, -17), (36, -26, -12), (34, -33, -7))
_TEMPORAL_HORN_WIDTH_MM = 4.0
_VENTRICLE_BOX_MM = ((-42, 42), (-52, 40), (-6, 34))  # lateral and third ventricles; cisterns lie lower or further back
_VENTRICLE_DEPTH_MM = 22.0  # ... and nearer to the surface


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Soft masks (0 to 1) on the template's `REGION_SPACING_MM` grid.

    Attributes:
        ventricles: Fluid of the lateral and third ventricles.
        cortex: Grey matter that thins with age: all of it but the deep nuclei.
        medial_temporal: Grey matter of hippocampus, amygdala and the cortex around them, both sides.
        temporal_horn: Where the horn beside the hippocampus opens when that shrinks; closed in the template.
        sulcal: Grey matter beside the fluid of sulci, which gives way to it with age.
        periventricular: White matter around the ventricles, which darkens with age.
    """

    ventricles: Volume
    cortex: Volume
    medial_temporal: Volume
    temporal_horn: Volume
    sulcal: Volume
    periventricular: Volume


@functools.lru_cache(maxsize=1)
def load_regions() -> Regions:
    """The regions, kept in memory."""
    template = load_template(REGION_SPACING_MM)
    depth_mm = _depth_in_brain_mm(template)
    ventricles = _find_ventricles(template, depth_mm)
    near_ventricles = ndimage.gaussian_filter(ventricles, 6.0 / REGION_SPACING_MM)
    near_ventricles /= near_ventricles.max()
    cortex = template.grey * _ramp(depth_mm, full=14.0, none=26.0)
    return Regions(
        ventricles=ventricles,
        cortex=cortex,
        sulcal=cortex * np.clip(4 * ndimage.gaussian_filter(template.csf, 1.5 / REGION_SPACING_MM), 0, 1),
        medial_temporal=_near_points(template, _MEDIAL_TEMPORAL_MM, _MEDIAL_TEMPORAL_WIDTH_MM) * template.grey,
        temporal_horn=_near_points(template, _TEMPORAL_HORN_MM, _TEMPORAL_HORN_WIDTH_MM),
        periventricular=np.clip(2.5 * near_ventricles, 0, 1) * template.white * _ramp(depth_mm, full=18.0, none=10.0),
    )


def _depth_in_brain_mm(template: Template) -> Volume:
    """Distance from the outside of the brain and its fluid, inwards."""
    inside = template.bone + template.scalp < 0.5
    inside &= template.grey + template.white + template.csf > 0.5
    padded = np.pad(inside, 1)
    padded[:, :, 0] = padded[:, :, 1]
    return measure_depth(padded)[1:-1, 1:-1, 1:-1] * np.float32(REGION_SPACING_MM)


def _find_ventricles(template: Template, depth_mm: Volume) -> Volume:
    x, y, z = template.coordinates_mm()
    inside = depth_mm > _VENTRICLE_DEPTH_MM
    inside &= (np.abs(x) > 9) | (y > -30)  # the cistern behind the midbrain touches, and is not a ventricle
    for axis, (low, high) in zip((x, y, z), _VENTRICLE_BOX_MM, strict=True):
        inside &= (axis > low) & (axis < high)
    labels = np.zeros(inside.shape, dtype=np.int32)
    ndimage.label((template.csf > 0.35) & inside, output=labels)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    ventricles = np.isin(labels, np.flatnonzero(sizes > 0.1 * sizes.max()))
    around = ndimage.binary_dilation(ventricles) & inside
    return (template.csf * around).astype(np.float32)


def _near_points(template: Template, points: tuple[tuple[int, int, int], ...], width_mm: float) -> Volume:
    """A plateau around each point and its mirror image, falling to half at about the width."""
    x, y, z = template.coordinates_mm()
    x = np.abs(x)
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    for point in points:
        np.minimum(nearest, (x - point[0]) ** 2 + (y - point[1]) ** 2 + (z - point[2]) ** 2, out=nearest)
    return np.exp(-((nearest / width_mm**2) ** 2 * np.float32(np.log(2)))).astype(np.float32)


def _ramp(values: Volume, *, full: float, none: float) -> Volume:
    """A ramp from 0 at `none` to 1 at `full` (either may be the larger)."""
    return np.clip((values - none) / (full - none), 0, 1).astype(np.float32)

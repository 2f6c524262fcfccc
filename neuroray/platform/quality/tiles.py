"""Which parts of a scan may be shown, and the slices that show them.

No picture may tell whose head it is. Whole heads keep their faces, so what lies in front and low is never drawn: all
in front of 58 % of the head's length (counted from the back, behind the orbits) and below a plane that rises from
80 mm under the top of the head there to 34 mm at its front, over the brows of a head that looks up by 15 degrees. Of
the rest no slice is a midline profile, and none goes below the skull base. Where the top of the head lies outside the
image, depth cannot be told: then all in front is left out. Where the header does not say how the scan lies, nothing is
drawn. A scan with a stored brain mask is shown inside the mask alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from neuroray.platform.quality.intensity import touch_fraction

Plane = Literal["axial", "coronal", "sagittal"]
AXES: Final[dict[Plane, int]] = {"sagittal": 0, "coronal": 1, "axial": 2}

_DEPTH_BEHIND_MM, _DEPTH_IN_FRONT_MM, _SKULL_BASE_DEPTH_MM = 80.0, 34.0, 150.0
# Of the largest area of a plane: pillows and noise are not the head's end.
_SMALLEST_AREA = 0.02
# Of a head's length from the back; and never nearer to its front than this, for a head whose back is cut off.
_BEHIND_FACE, _FACE_LENGTH_MM = 0.58, 90.0
_CUT_FRACTION = 0.25
_DEPTHS_MM = (22.0, 32.0, 42.0, 52.0, 62.0, 74.0, 86.0)
_LENGTHS = (0.24, 0.36, 0.48, 0.57)
_MIDLINE_DISTANCES_MM = (-34.0, -14.0, 24.0)
# Of a picture along x, y, z: wide enough for the largest heads, the same for all, so that sizes compare.
_FRAME_MM = (172.0, 212.0, 158.0)
_MARGIN_MM = 4.0
_TONES = 255


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One slice as it goes into the picture.

    Attributes:
        plane: Which way it cuts.
        position_mm: Where, along its axis: depth under the top of the head, distance from its back, or from its midline
            (to the person's right).
        tones: Grey values between the scan's own `window`; x or y runs to the right, z or y upwards (row 0 on top).
        outline: The edge of the brain mask; empty where there is none.
    """

    plane: Plane
    position_mm: float
    tones: UInt8[np.ndarray, "row column"]
    outline: Bool[np.ndarray, "row column"]


def find_visible(
    head: Bool[np.ndarray, "x y z"], spacing_mm: Sequence[float], brain: Bool[np.ndarray, "x y z"] | None = None
) -> Visible | None:
    """What may be shown of a scan; None where there is no head in it."""
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
    limit_mm = min(low[1] + _BEHIND_FACE * (high[1] - low[1]), high[1] - _FACE_LENGTH_MM)
    depth = high[2] - z
    forward = np.clip((y - limit_mm) / max(high[1] - limit_mm, 1e-6), 0, 1)
    deepest = _DEPTH_BEHIND_MM + forward * (_DEPTH_IN_FRONT_MM - _DEPTH_BEHIND_MM) if is_depth_known else 0 * forward
    hidden = (y > limit_mm)[:, None] & (depth[None, :] > deepest[:, None])
    hidden |= (depth > _SKULL_BASE_DEPTH_MM)[None, :]
    allowed = np.broadcast_to(~hidden[None], head.shape)
    return Visible(allowed=allowed, is_depth_known=is_depth_known, **box)


def _find_span(shown: Bool[np.ndarray, "x y z"], axis: int) -> np.ndarray:
    areas = shown.sum(axis=tuple(other for other in range(3) if other != axis))
    return np.flatnonzero(areas > _SMALLEST_AREA * areas.max())


def cut_tiles(
    volume: Float[np.ndarray, "x y z"],
    spacing_mm: Sequence[float],
    visible: Visible,
    window: tuple[float, float],
    brain: Bool[np.ndarray, "x y z"] | None = None,
) -> list[Tile]:
    """Slices of what may be shown, all in frames of the same size in mm.

    Args:
        volume: Without NaN.
        spacing_mm: Along x, y, z.
        visible: What may be shown; the rest becomes black before anything is cut or interpolated.
        window: Values that become black and white.
        brain: A mask to be outlined.
    """
    low, high = window
    shades = np.where(visible.allowed, np.clip((volume - low) / max(high - low, 1e-12), 0, 1), 0).astype(np.float32)
    tiles = []
    for plane, index, position_mm in _choose_planes(visible, spacing_mm, volume.shape):
        axis = AXES[plane]
        picture = _resample(np.take(shades, index, axis=axis), axis, spacing_mm, visible)
        tones = np.round(_TONES * np.clip(picture, 0, 1)).astype(np.uint8)
        outline = np.zeros((0, 0), bool)
        if brain is not None:
            mask = np.take(brain, index, axis=axis).astype(np.float32)
            inside = _resample(mask, axis, spacing_mm, visible) > 0.5
            outline = inside & ~ndimage.binary_erosion(inside)
        tiles.append(Tile(plane=plane, position_mm=position_mm, tones=tones, outline=outline))
    return tiles


def _choose_planes(
    visible: Visible, spacing_mm: Sequence[float], shape: Sequence[int]
) -> list[tuple[Plane, int, float]]:
    """Plane, index along its axis, and position; planes outside the image are left out."""
    low, high = visible.low_mm, visible.high_mm
    middle = (low[0] + high[0]) / 2
    length = min(high[1] - low[1], (high[1] - _FACE_LENGTH_MM - low[1]) / _BEHIND_FACE)
    wanted: list[tuple[Plane, float, float]] = [("axial", high[2] - depth, depth) for depth in _DEPTHS_MM]
    wanted += [("coronal", low[1] + share * length, share * length) for share in _LENGTHS]
    wanted += [("sagittal", middle + distance, distance) for distance in _MIDLINE_DISTANCES_MM]
    planes = []
    for plane, at_mm, position_mm in wanted:
        index = round(at_mm / spacing_mm[AXES[plane]])
        if 0 <= index < shape[AXES[plane]]:
            planes.append((plane, index, position_mm))
    return planes


def _resample(
    picture: Float[np.ndarray, "a b"], axis: int, spacing_mm: Sequence[float], visible: Visible
) -> Float[np.ndarray, "row column"]:
    """One pixel a millimetre, in the same frame for all."""
    across, up = (other for other in range(3) if other != axis)
    # Hung from the top of the head and set against its back: whether the nose is in the image must move nothing.
    middle = (visible.low_mm[0] + visible.high_mm[0]) / 2
    starts = (middle - _FRAME_MM[0] / 2, visible.low_mm[1] - _MARGIN_MM, visible.high_mm[2] + _MARGIN_MM - _FRAME_MM[2])
    columns = (starts[across] + np.arange(int(_FRAME_MM[across])) + 0.5) / spacing_mm[across]
    rows = (starts[up] + _FRAME_MM[up] - np.arange(int(_FRAME_MM[up])) - 0.5) / spacing_mm[up]
    places = np.meshgrid(columns, rows)
    return ndimage.map_coordinates(picture, places, order=1, mode="constant", cval=0.0)

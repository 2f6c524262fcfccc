"""Slices of a scan that show no face: at the same depths in every head, none of them a midline profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from neuroray.platform.evaluate.faces import BEHIND_FACE, FACE_LENGTH_MM, Visible

Plane = Literal["axial", "coronal", "sagittal"]
AXES: Final[dict[Plane, int]] = {"sagittal": 0, "coronal": 1, "axial": 2}

_DEPTHS_MM = (22.0, 32.0, 42.0, 52.0, 62.0, 74.0, 86.0)
_LENGTHS = (0.24, 0.36, 0.48, 0.57)
_MIDLINE_DISTANCES_MM = (-34.0, -14.0, 24.0)
# Of a picture along x, y, z: wide enough for the largest heads, the same for all, so that sizes compare.
_FRAME_MM = (172.0, 212.0, 158.0)
_MARGIN_MM = 4.0
_TONES = 255


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
            outline = inside & np.logical_not(ndimage.binary_erosion(inside))
        tiles.append(Tile(plane=plane, position_mm=position_mm, tones=tones, outline=outline))
    return tiles


def _choose_planes(
    visible: Visible, spacing_mm: Sequence[float], shape: Sequence[int]
) -> list[tuple[Plane, int, float]]:
    """Plane, index along its axis, and position; planes outside the image are left out."""
    low, high = visible.low_mm, visible.high_mm
    middle = (low[0] + high[0]) / 2
    length = min(high[1] - low[1], (high[1] - FACE_LENGTH_MM - low[1]) / BEHIND_FACE)
    wanted: dict[Plane, list[tuple[float, float]]] = {
        "axial": [(high[2] - depth, depth) for depth in _DEPTHS_MM],
        "coronal": [(low[1] + share * length, share * length) for share in _LENGTHS],
        "sagittal": [(middle + distance, distance) for distance in _MIDLINE_DISTANCES_MM],
    }
    planes = []
    for plane, places in wanted.items():
        for at_mm, position_mm in places:
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

"""A scan's slices as one picture, in the window of its cohort."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int8, UInt8
from PIL import Image, ImageDraw, ImageFont

from neuroray.platform.quality.tiles import Plane, Tile

_GAP, _GROUP_GAP = 3, 12
_BACKDROP = (7, 9, 11)
_OUTLINE = (255, 179, 107)
_LABEL = (147, 160, 172)
_LABEL_SIZE = 13
_QUALITY = 82
_FEW: dict[Plane, tuple[int, ...]] = {"axial": (1, 3, 6), "coronal": (0, 2), "sagittal": (1,)}


def draw_tiles(
    tiles: Sequence[Tile], own: tuple[float, float], shown: tuple[float, float], *, all_of_them: bool
) -> bytes:
    """The slices as WebP: two rows with all of them, or one with some.

    Args:
        tiles: Of one scan.
        own: The window that their tones stand for.
        shown: The window to show: values outside it are black and white.
        all_of_them: Two rows: axial, and below coronal and sagittal; else one row.
    """
    by_plane: dict[Plane, list[Tile]] = {"axial": [], "coronal": [], "sagittal": []}
    for tile in tiles:
        by_plane[tile.plane].append(tile)
    if all_of_them:
        rows = [[by_plane["axial"]], [by_plane["coronal"], by_plane["sagittal"]]]
    else:
        rows = [[[by_plane[plane][at] for at in few if at < len(by_plane[plane])] for plane, few in _FEW.items()]]
    painted = [[[_paint(tile, own, shown) for tile in group] for group in row if group] for row in rows]
    strips = [_join(row) for row in painted if row]
    width = max(strip.shape[1] for strip in strips)
    canvas = [np.pad(strip, ((0, _GAP), (0, width - strip.shape[1]), (0, 0)), mode="edge") for strip in strips]
    image = Image.fromarray(np.concatenate(canvas)[:-_GAP])
    _mark_sides(image)
    return _encode(image)


def draw_tile(tile: Tile) -> bytes:
    """One slice alone, as WebP."""
    return _encode(Image.fromarray(tile.tones))


def draw_carpet(carpet: Int8[np.ndarray, "row column"]) -> bytes:
    """Rows of voxels over frames, black to white over 2.5 standard deviations either way, as lossless WebP."""
    content = io.BytesIO()
    Image.fromarray((carpet.astype(np.int16) + 128).clip(0, 255).astype(np.uint8)).save(content, "WEBP", lossless=True)
    return content.getvalue()


def picture_address(picture: bytes) -> str:
    """A picture as an address that an `<img>` takes without a second file."""
    return "data:image/webp;base64," + base64.b64encode(picture).decode()


def _paint(tile: Tile, own: tuple[float, float], shown: tuple[float, float]) -> UInt8[np.ndarray, "row column 3"]:
    values = own[0] + tile.tones / 255 * (own[1] - own[0])
    tones = np.clip((values - shown[0]) / max(shown[1] - shown[0], 1e-12), 0, 1)
    # What may not be shown has the tone 0 and stays the backdrop's, whatever the window.
    grey = np.where(tile.tones == 0, 0, np.round(255 * tones))[..., None]
    painted = np.maximum(grey, np.array(_BACKDROP)).astype(np.uint8)
    if tile.outline.size:
        painted[tile.outline] = _OUTLINE
    return painted


def _join(groups: list[list[np.ndarray]]) -> np.ndarray:
    """Side by side; lower ones hang from the top."""
    height = max(tile.shape[0] for group in groups for tile in group)
    parts: list[np.ndarray] = []
    for group in groups:
        for index, tile in enumerate(group):
            gap = _GROUP_GAP if index == 0 else _GAP
            parts += [_blank(height, gap)] if parts else []
            parts.append(np.concatenate([tile, _blank(height - tile.shape[0], tile.shape[1])]))
    return np.concatenate(parts, axis=1)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _BACKDROP, np.uint8)


def _mark_sides(image: Image.Image) -> None:
    """The person's left is on the picture's left: said on the first slice."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_LABEL_SIZE)
    draw.text((6, 4), "L", fill=_LABEL, font=font)


def _encode(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="WEBP", quality=_QUALITY, method=4)
    return content.getvalue()

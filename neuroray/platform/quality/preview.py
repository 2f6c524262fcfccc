"""A small picture of a file that may be damaged: one axial slice of what can be read of its first frame, no face."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import numpy as np

from neuroray.platform.evaluate.faces import find_head, find_masked_brain, find_visible, is_lost
from neuroray.storage.byte_stream import ByteStream
from neuroray.storage.headers import VolumeHeader
from neuroray.storage.orientation import Orientation
from neuroray.storage.scan import ScanError
from neuroray.storage.volume_files import find_volume_files
from neuroray.storage.volume_reading import read_header

_MAX_BYTES: Final = 64 * 2**20
_MAX_PIXELS: Final = 192
_HEIGHT: Final = 0.6  # of the volume's extent upward: above the eyes, through the brain
_BRIGHTEST_PERCENTILE: Final = 99.5


def draw_preview(path: Path) -> bytes | None:
    """PNG (grey) of an axial slice, the person's left on the left and anterior on top; None where none can be drawn.

    Stored numbers are shown without scaling. Of a file that was cut short, the highest whole slice is taken where the
    usual one is missing. What may show a face is black (see `faces`): where the top of the head is among what is
    missing, all in front. A file whose header does not say how it lies has no picture.
    """
    try:
        plane = _read_plane(path)
    except Exception:  # the file has been refused with its reason: a picture is a courtesy
        return None
    return None if plane is None or plane.min() == plane.max() else _to_png(plane)


def _read_plane(path: Path) -> np.ndarray | None:
    files = find_volume_files(path)
    header = read_header(files)
    if min(header.grid_shape) < 2 or _frame_bytes(header) > _MAX_BYTES:
        return None
    if is_lost(header.flags) or not np.isfinite(header.affine).all():
        return None
    stored, num_read = _read_frame(files.voxels, header)
    orientation = Orientation.from_affine(header.affine)
    is_there = orientation.to_canonical(np.arange(stored.size).reshape(stored.shape, order="F") < num_read)
    whole = np.flatnonzero(is_there.all(axis=(0, 1)))
    if not whole.size:
        return None
    planes = orientation.to_canonical(stored)[:, :, whole[0] : whole[-1] + 1].astype(np.float32)
    planes = np.nan_to_num(planes, posinf=0.0, neginf=0.0)
    spacing_mm = np.linalg.norm(orientation.canonical_affine(header.affine, stored.shape)[:3, :3], axis=0)
    visible = find_visible(find_head(planes), spacing_mm.tolist(), find_masked_brain(planes, spacing_mm.tolist()))
    if visible is None:
        return None
    z = min(range(planes.shape[2]), key=lambda index: abs(whole[0] + index - _HEIGHT * is_there.shape[2]))
    return np.where(visible.allowed[:, :, z], planes[:, :, z], 0.0)


def _read_frame(path: Path, header: VolumeHeader) -> tuple[np.ndarray, int]:
    """The first frame in the file's own order, and how many of its voxels were there; the others are 0."""
    dtype = np.dtype(header.encoding.dtype)
    stored = np.zeros(int(np.prod(header.grid_shape)), dtype)
    content = b""
    with ByteStream(path) as stream:
        if header.voxel_offset <= _MAX_BYTES:
            stream.read(header.voxel_offset)
        try:
            while len(content) < stored.nbytes and (piece := stream.read(min(2**16, stored.nbytes - len(content)))):
                content += piece
        except ScanError:
            pass  # what came before the fault is shown
    num_read = len(content) // dtype.itemsize
    stored[:num_read] = np.frombuffer(content, dtype, num_read)
    return stored.reshape(header.grid_shape, order="F"), num_read


def _frame_bytes(header: VolumeHeader) -> int:
    return int(np.prod(header.grid_shape, dtype=object)) * np.dtype(header.encoding.dtype).itemsize


def _to_png(plane: np.ndarray) -> bytes:
    from matplotlib.image import imsave

    step = -(-max(plane.shape) // _MAX_PIXELS)
    shown = np.rot90(plane[::step, ::step])
    png = io.BytesIO()
    low, high = float(shown.min()), float(np.percentile(shown, _BRIGHTEST_PERCENTILE))
    no_version: Any = {"Software": None}  # the same picture in every version
    imsave(png, shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), format="png", metadata=no_version)
    return png.getvalue()

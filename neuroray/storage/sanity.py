"""What no scan can be: checks of a header before anything is allocated, and of the voxels once they are read."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Num

from neuroray.storage.headers import VolumeHeader
from neuroray.storage.scaling import check_scale, choose_dtype
from neuroray.storage.scan import ScanError
from neuroray.storage.time_axis import find_frozen_frames, find_time_among_space

_CIFTI_INTENTS = range(3000, 3100)
_LABEL_INTENT = 1002
_UNREADABLE_INTENTS = {
    1004: "a matrix per voxel",
    1005: "a matrix per voxel",
    1006: "displacements",
    1007: "a vector per voxel",
    1008: "points of a surface",
    1009: "triangles of a surface",
    1011: "a quaternion per voxel",
    2002: "node indices of a surface",
    2003: "colours",
    2004: "colours",
    2005: "the shape of a surface",
}
_FOLDED_SURFACE_SHAPE = (27307, 1, 6)  # how FreeSurfer folds the 163842 vertices of its finest surface into a NIfTI-1
_FLATTEST_GRID = 1e-4  # determinant over the product of the column lengths: 1 for a right-angled grid
_ZOOM_LIMITS_MM = (1e-4, 1e4)


def check_header(header: VolumeHeader, name: str, *, max_bytes: int) -> None:
    """Refuses what is not a volume of numbers in space, or is too large.

    Raises:
        ScanError: surface or CIFTI data, a wrong number of axes, an empty axis, more than `max_bytes` of decoded voxels
            (or of stored ones), a scale that no float can carry out, an affine that is not finite or collapses the
            grid.
    """
    _check_intent(header, name)
    _check_dims(header, name)
    _check_size(header, name, max_bytes)
    check_scale(header.encoding, name)
    _check_affine(header.affine, name)


def find_header_flags(header: VolumeHeader) -> tuple[str, ...]:
    """What is unusual, yet no fault, in the shape and meaning that a header claims."""
    flags = list(header.flags)
    if header.intent_code == _LABEL_INTENT:
        flags.append("the header says that voxels are labels, not intensities")
    if 1 in header.grid_shape:
        flags.append(f"a single slice: {' x '.join(map(str, header.grid_shape))} voxels")
    if header.has_time_axis and header.num_frames == 1:
        step = f" (step {header.time_step:g})" if header.time_step > 0 else ""
        flags.append(f"a time axis{step} of a single frame: read as 3D, not a time series")
    return tuple(flags)


def clear_non_finite(voxels: Num[np.ndarray, "time x y z"], name: str) -> tuple[str, ...]:
    """Replaces NaN and infinities by 0, in place, and says how many there were.

    Raises:
        ScanError: no voxel is finite, or finite ones are beyond float32.
    """
    if voxels.dtype.kind != "f":
        return ()
    num_cleared, largest = 0, 0.0
    for frame in voxels:
        broken = ~np.isfinite(frame)
        num_broken = int(broken.sum())
        if num_broken:
            frame[broken] = 0
            num_cleared += num_broken
        largest = max(largest, float(frame.max()), -float(frame.min()))
    if num_cleared == voxels.size:
        raise _no_content(name, "no finite number in any voxel")
    if largest > float(np.finfo(np.float32).max):
        raise ScanError(
            f"{name}: voxels hold numbers beyond float32",
            given=f"up to {largest:g}",
            fix="the data type or byte order in the header is wrong, or the file is damaged",
        )
    return (f"{num_cleared} voxels were NaN or infinite and were set to 0",) if num_cleared else ()


def check_has_content(voxels: Num[np.ndarray, "time x y z"], name: str) -> None:
    """Refuses images in which all voxels are equal.

    Raises:
        ScanError: all voxels are zero, or all hold the same number.
    """
    lowest, highest = voxels.min(), voxels.max()
    if lowest == highest:
        raise _no_content(name, "zero in every voxel" if lowest == 0 else f"{float(lowest):g} in every voxel")


def find_time_flags(voxels: Num[np.ndarray, "time x y z"]) -> tuple[str, ...]:
    """Signs that the recording stood still or that its axes are mixed up."""
    flags = [f"frames {first} to {last} (counted from 0) are identical" for first, last in find_frozen_frames(voxels)]
    axis = find_time_among_space(voxels)
    if axis is not None:
        flags.append(f"not a time series as stored: axis {'xyz'[axis]} looks like time, the last axis like space")
    return tuple(flags)


def _check_intent(header: VolumeHeader, name: str) -> None:
    code = header.intent_code
    if code in _CIFTI_INTENTS:
        raise ScanError(
            f"{name}: this is a CIFTI file (grayordinates), not a volume",
            given=f"intent code {code}",
            fix="take the volume it was made from, or separate the volume out of it with wb_command",
        )
    if code in _UNREADABLE_INTENTS:
        raise ScanError(
            f"{name}: the voxels hold {_UNREADABLE_INTENTS[code]}",
            given=f"intent code {code}",
            expected="intensities",
            fix="give the image itself, not what was computed from it",
        )


def _check_dims(header: VolumeHeader, name: str) -> None:
    dims = header.dims
    shape = " x ".join(map(str, dims))
    if any(size < 1 for size in dims) and dims[1:3] != (1, 1):
        raise ScanError(
            f"{name}: an axis has no voxels",
            given=shape,
            expected="at least one voxel along every axis",
            fix="the conversion that made the file failed: run it again",
        )
    if len(dims) not in (3, 4):
        raise ScanError(
            f"{name}: this has {len(dims)} axes",
            given=shape,
            expected="three, or four with time last",
            fix="split the file along its further axes" if len(dims) > 4 else "give the volume, not one image of it",
        )
    if sorted(dims[:3])[1] == 1 or dims[:3] == _FOLDED_SURFACE_SHAPE:
        raise ScanError(
            f"{name}: this is a list of numbers (surface or vector data), not a volume",
            given=shape,
            expected="at least two voxels along two axes",
            fix="give the volume it was sampled from",
        )


def _check_size(header: VolumeHeader, name: str, max_bytes: int) -> None:
    decoded_bytes = math.prod(header.dims) * choose_dtype(header.encoding).itemsize
    needed_bytes = max(decoded_bytes, header.size_bytes)
    if needed_bytes > max_bytes:
        raise ScanError(
            f"{name}: the scan is too large",
            given=f"{' x '.join(map(str, header.dims))} voxels, {needed_bytes} bytes",
            expected=f"at most {max_bytes} bytes",
            fix="if the shape is right, raise the limit (max_bytes); if not, the header is damaged or hostile",
        )


def _check_affine(affine: np.ndarray, name: str) -> None:
    if not np.isfinite(affine).all():
        raise ScanError(
            f"{name}: the affine holds NaN or infinity",
            expected="16 finite numbers",
            fix="the header's orientation is damaged: convert the original images again",
        )
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    smallest, largest = _ZOOM_LIMITS_MM
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    if zooms.min() < smallest or zooms.max() > largest or volume < _FLATTEST_GRID * float(zooms.prod()):
        raise ScanError(
            f"{name}: the affine is singular: it puts different voxels at one place, or nowhere near a head",
            given=f"voxel sizes {', '.join(f'{zoom:g}' for zoom in zooms)} mm, determinant {volume:g}",
            expected="three axes that span space",
            fix="set the header's orientation again (sform), or clear sform_code if the qform is the right one",
        )


def _no_content(name: str, given: str) -> ScanError:
    return ScanError(
        f"{name}: the image is empty",
        given=given,
        expected="voxels that differ",
        fix="the export or a processing step failed: make the file again",
    )

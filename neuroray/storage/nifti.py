"""Scans from NIfTI, Analyze and MGH files, in RAS+ order, and back onto the very grid and header they came with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Num

from neuroray.storage.orientation import Orientation
from neuroray.storage.sanity import check_has_content, clear_non_finite, find_time_flags
from neuroray.storage.scan import Encoding, Scan, ScanError, SourceGrid
from neuroray.storage.time_axis import interpret_repetition_time
from neuroray.storage.volume_files import find_volume_files
from neuroray.storage.volume_reading import ReadVolume, read_volume
from neuroray.storage.volume_writing import (
    VolumeLayout,
    can_hold,
    check_can_hold,
    check_same_grid,
    layout_fresh,
    layout_of_map,
    layout_of_source,
    write_volume,
)

__all__ = ["MAX_BYTES", "ScanError", "map_to_source", "read_scan", "write_map", "write_scan"]

MAX_BYTES = 2 * 2**30
"""The largest scan that is read unless the caller says otherwise: 2 GiB of decoded voxels."""


def read_scan(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Scan:
    """Reads a scan, whole, into RAS+ order.

    NIfTI-1 and -2 (.nii, .nii.gz, .hdr with .img), Analyze and MGH (.mgh, .mgz). A file is read to its end, so that a
    compressed one is compared with its checksum. Memory stays near the size of the decoded scan.

    What a person should know is told in `flags`: no orientation in the header, a repetition time in another unit
    than declared, identical frames, NaN. NaN and infinities are set to 0, so that they cannot spread through a model;
    only there does `write_scan` not give back what was read. One frame in a 4D file is read as 3D.

    Args:
        path: The file; of a pair, either one.
        max_bytes: The most that the decoded voxels may take. Larger claims are refused before anything is allocated,
            and no more than that is ever unpacked. A compressed file that claims to unpack to more than 256 MiB and to
            200 times its own size is refused as well.

    Raises:
        ScanError: the file is missing, damaged, cut short, too large, not a volume, empty of content, or its affine
            makes no sense.
    """
    path = Path(path)
    volume = read_volume(find_volume_files(path), max_bytes=max_bytes)
    header, orientation, encoding = volume.header, volume.orientation, volume.header.encoding
    flags = [*volume.flags, *clear_non_finite(volume.voxels, path.name)]
    check_has_content(volume.voxels, path.name)
    repetition_time_s = None
    if header.num_frames > 1:
        repetition_time_s, time_flags = interpret_repetition_time(header.time_step, header.time_unit)
        flags += [*time_flags, *find_time_flags(volume.voxels)]
    plain = Encoding(dtype=np.dtype(encoding.dtype).name, slope=encoding.slope, intercept=encoding.intercept)
    return Scan(
        voxels=volume.voxels if header.num_frames > 1 else volume.voxels[0],
        affine=orientation.canonical_affine(header.affine, header.grid_shape),
        repetition_time_s=repetition_time_s,
        encoding=None if encoding.is_identity else plain,
        source=_grid_of(volume),
        flags=tuple(flags),
    )


def write_scan(scan: Scan, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a scan so that it lies where it came from: the source's axes, header bytes and stored numbers.

    A scan made in memory gets a new NIfTI-1 header (NIfTI-2 where an axis is too long). The file appears whole or not
    at all; equal scans give equal bytes.

    Args:
        scan: The scan; values that were changed must fit the source's encoding (`write_map` takes any).
        path: .nii or .nii.gz; for a scan read from a pair or an MGH file, a name of that kind.
        overwrite: Whether to replace a file of that name, which may be the source itself.

    Raises:
        ScanError: a file is there, the name is of another format than the header, or voxels, affine or values no longer
            fit the header.
    """
    path = Path(path)
    if scan.source is None:
        layout = _layout_in_memory(scan, path.name)
        check_can_hold(layout, path)
    else:
        layout = layout_of_source(scan.source, path.name)
        check_can_hold(layout, path)
        check_same_grid(scan, layout, path.name)
    write_volume(path, layout, _with_time(scan.voxels), overwrite=overwrite)


def map_to_source(values: Num[np.ndarray, "x y z"], scan: Scan) -> Num[np.ndarray, "i j k"]:
    """A map over the scan's canonical grid, in the axes of the file that the scan came from (a view).

    Raises:
        ScanError: the map has another shape than the scan.
    """
    _check_map_shape(values, scan, "the map")
    return values if scan.source is None else _orientation_of(scan.source).to_file(values)


def write_map(values: Num[np.ndarray, "x y z"], like: Scan, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a map (attention, saliency) as float32 on the grid of the file that `like` was read from.

    The source's header is kept but for shape, data type, scaling and display range, so that viewers lay the map
    over the scan voxel by voxel. Where `path` names another format than the source's (a map in .nii.gz over an .mgz),
    it gets a new NIfTI-1 header on the same grid.

    Args:
        values: The map over the canonical grid of `like`.
        like: The scan that the map explains.
        path: The file to write.
        overwrite: Whether to replace a file of that name.

    Raises:
        ScanError: the map has another shape than the scan, or a file is there already.
    """
    path = Path(path)
    _check_map_shape(values, like, path.name)
    layout = _layout_for_map(like, path)
    check_can_hold(layout, path)
    write_volume(path, layout, np.asarray(values, dtype=np.float32)[np.newaxis], overwrite=overwrite)


def _grid_of(volume: ReadVolume) -> SourceGrid:
    return SourceGrid(
        format=volume.header.format,
        header=volume.header_bytes,
        affine=volume.header.affine,
        axis_order=volume.orientation.axis_order,
        axis_flip=volume.orientation.axis_flip,
        had_time_axis=volume.header.has_time_axis,
    )


def _layout_in_memory(scan: Scan, name: str) -> VolumeLayout:
    return layout_fresh(
        scan.affine,
        scan.grid_shape,
        scan.encoding or Encoding(dtype=scan.voxels.dtype.name),
        name,
        num_frames=scan.num_frames if scan.is_timeseries else None,
        repetition_time_s=scan.repetition_time_s,
    )


def _layout_for_map(like: Scan, path: Path) -> VolumeLayout:
    float32 = Encoding(dtype="float32")
    if like.source is None:
        return layout_fresh(like.affine, like.grid_shape, float32, path.name)
    kept = layout_of_map(like.source, path.name)
    if can_hold(kept, path):
        return kept
    return layout_fresh(
        like.source.affine, like.grid_shape, float32, path.name, orientation=_orientation_of(like.source)
    )


def _orientation_of(source: SourceGrid) -> Orientation:
    return Orientation(axis_order=source.axis_order, axis_flip=source.axis_flip)


def _with_time(voxels: np.ndarray) -> np.ndarray:
    return voxels if voxels.ndim == 4 else voxels[np.newaxis]


def _check_map_shape(values: np.ndarray, scan: Scan, name: str) -> None:
    if values.shape != scan.grid_shape:
        raise ScanError(
            f"{name}: the map has another shape than its scan",
            given=values.shape,
            expected=scan.grid_shape,
            fix="give one value per voxel of the scan's canonical grid, x y z",
        )

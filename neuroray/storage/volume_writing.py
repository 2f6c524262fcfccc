"""A volume laid out for its file: the bytes before the voxels, the voxels in the file's own order, the bytes after."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Num
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from neuroray.storage.byte_stream import check_may_write, write_whole
from neuroray.storage.headers import HEADER_SIZES_BYTES, Format, VolumeHeader, open_header, parse_header
from neuroray.storage.orientation import Orientation
from neuroray.storage.scaling import encode
from neuroray.storage.scan import Encoding, Scan, ScanError, SourceGrid
from neuroray.storage.volume_files import find_suffix, find_volume_files

_SUFFIXES: dict[tuple[Format, bool], tuple[str, ...]] = {
    ("nifti1", False): (".nii", ".nii.gz"),
    ("nifti2", False): (".nii", ".nii.gz"),
    ("nifti1", True): (".hdr", ".img", ".hdr.gz", ".img.gz"),
    ("nifti2", True): (".hdr", ".img", ".hdr.gz", ".img.gz"),
    ("analyze", True): (".hdr", ".img", ".hdr.gz", ".img.gz"),
    ("mgh", False): (".mgh", ".mgz"),
}
_IDENTITY = Orientation(axis_order=(0, 1, 2), axis_flip=(False, False, False))
_SLICES_AT_ONCE = 16
_MAX_NIFTI1_AXIS = 32767
_ALIGNED = 2  # NIfTI's code for "aligned to something else": all that is known of an affine made in memory
_SAME_PLACE_MM = 1e-3  # float32 headers place voxels to about 1e-5 mm; a thousandth is nobody's displacement


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeLayout:
    """All of a file but its voxels.

    Attributes:
        before: The bytes in front of the voxels (of a pair: the .hdr file).
        after: The bytes behind them.
        header: `before`, parsed.
        orientation: How the file's axes follow from the canonical ones.
    """

    before: bytes
    after: bytes
    header: VolumeHeader
    orientation: Orientation


def layout_of_source(source: SourceGrid, name: str) -> VolumeLayout:
    """The very header that a scan came with."""
    header = parse_header(source.header, source.format, name)
    split = HEADER_SIZES_BYTES["mgh"] if source.format == "mgh" else len(source.header)
    return VolumeLayout(
        before=source.header[:split],
        after=source.header[split:],
        header=header,
        orientation=Orientation(axis_order=source.axis_order, axis_flip=source.axis_flip),
    )


def layout_of_map(source: SourceGrid, name: str) -> VolumeLayout:
    """The header that a scan came with, changed in what a single float32 frame needs: shape, data type, no scaling."""
    layout = layout_of_source(source, name)
    header = open_header(source.header, source.format)
    if isinstance(header, MGHHeader):
        header["dims"][3] = 1
        header.set_data_dtype(np.float32)
    else:
        header["dim"][0] = 3
        header["dim"][4:] = 1
        header.set_data_dtype(np.float32)
        header["scl_slope"], header["scl_inter"] = 1, 0
        header["cal_min"], header["cal_max"] = 0, 0
    fields = header.binaryblock[:90] if source.format == "mgh" else header.binaryblock
    before = fields + layout.before[len(fields) :]
    return dataclasses.replace(layout, before=before, header=parse_header(before, source.format, name))


def layout_fresh(
    affine: Float[np.ndarray, "4 4"],
    canonical_shape: tuple[int, int, int],
    encoding: Encoding,
    name: str,
    *,
    orientation: Orientation = _IDENTITY,
    num_frames: int | None = None,
    repetition_time_s: float | None = None,
) -> VolumeLayout:
    """A new NIfTI-1 header (NIfTI-2 where an axis is too long for it), in mm and s.

    Args:
        affine: Voxel to world in mm, of the file's axes.
        canonical_shape: Voxels along x, y, z.
        encoding: How the numbers are to be stored.
        name: The file's name, for errors.
        orientation: How the file's axes follow from the canonical ones.
        num_frames: Frames along time; None for 3D.
        repetition_time_s: Time between frames.

    Raises:
        ScanError: NIfTI has no such data type.
    """
    shape = orientation.file_shape(canonical_shape) + (() if num_frames is None else (num_frames,))
    is_long = max(shape) > _MAX_NIFTI1_AXIS
    header: Any = Nifti2Header(check=False) if is_long else Nifti1Header(check=False)
    try:
        header.set_data_dtype(np.dtype(encoding.dtype))
    except HeaderDataError as error:
        raise ScanError(
            f"{name}: NIfTI has no such data type",
            given=encoding.dtype,
            expected="integers of 8 to 64 bits, float32 or float64",
            fix="convert the voxels first (bool: to uint8, float16: to float32)",
        ) from error
    header.set_data_shape(shape)
    header.set_sform(affine, code=_ALIGNED)
    zooms = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    header.set_zooms((*zooms, repetition_time_s or 0.0)[: len(shape)])
    header.set_xyzt_units("mm", "sec" if repetition_time_s else "unknown")
    header["scl_slope"], header["scl_inter"] = encoding.slope, encoding.intercept
    header["vox_offset"] = header.single_vox_offset
    before = header.binaryblock + bytes(4)
    parsed = parse_header(before, "nifti2" if is_long else "nifti1", name)
    return VolumeLayout(before=before, after=b"", header=parsed, orientation=orientation)


def can_hold(layout: VolumeLayout, path: Path) -> bool:
    """Whether a file of that name can carry this header."""
    return find_suffix(path.name) in _SUFFIXES[layout.header.format, layout.header.is_pair]


def check_can_hold(layout: VolumeLayout, path: Path) -> None:
    """Refuses names that stand for another container.

    Raises:
        ScanError: the name's ending is that of another format, or of none.
    """
    if not can_hold(layout, path):
        container = f"{layout.header.format} {'pair' if layout.header.is_pair else 'file'}"
        raise ScanError(
            f"{path.name}: the header of this scan is that of a {container}",
            given=f"the ending {find_suffix(path.name) or path.suffix!r}",
            expected=" or ".join(_SUFFIXES[layout.header.format, layout.header.is_pair]),
            fix="choose such a name; or drop the header with dataclasses.replace(scan, source=None) for a new NIfTI",
        )


def check_same_grid(scan: Scan, layout: VolumeLayout, name: str) -> None:
    """Refuses voxels that no longer lie on the grid of the header.

    Raises:
        ScanError: another shape, another number of frames, or an affine that puts voxels elsewhere.
    """
    header, orientation = layout.header, layout.orientation
    shape = orientation.canonical_shape(header.grid_shape)
    expected_affine = orientation.canonical_affine(header.affine, header.grid_shape)
    same_place = np.allclose(scan.affine, expected_affine, rtol=0, atol=_SAME_PLACE_MM)
    if scan.grid_shape != shape or scan.num_frames != header.num_frames or not same_place:
        raise ScanError(
            f"{name}: the scan no longer lies on the grid of the file that it came from",
            given=f"{scan.num_frames} frames of {scan.grid_shape}, affine {scan.affine[:3].round(3).tolist()}",
            expected=f"{header.num_frames} frames of {shape}, affine {expected_affine[:3].round(3).tolist()}",
            fix="write it without that file's header: dataclasses.replace(scan, source=None, encoding=None)",
        )


def write_volume(path: Path, layout: VolumeLayout, voxels: Num[np.ndarray, "time x y z"], *, overwrite: bool) -> None:
    """Writes the file, or the pair, whole.

    Raises:
        ScanError: a file is there already, or the values do not fit the header's encoding.
    """
    files = find_volume_files(path)
    with contextlib.ExitStack() as stack:
        # A pair's header is opened first and so appears last: where it is, the voxels are.
        for target in {files.header, files.voxels}:
            check_may_write(target, overwrite=overwrite)
        file = stack.enter_context(write_whole(files.header, overwrite=overwrite))
        file.write(layout.before)
        if files.is_pair:
            file = stack.enter_context(write_whole(files.voxels, overwrite=overwrite))
            file.write(bytes(layout.header.voxel_offset))
        _write_voxels(file, layout, voxels, path.name)
        file.write(layout.after)


def _write_voxels(file: IO[bytes], layout: VolumeLayout, voxels: np.ndarray, name: str) -> None:
    encoding = layout.header.encoding
    for frame in layout.orientation.to_file(voxels):
        for start in range(0, frame.shape[2], _SLICES_AT_ONCE):
            slab = encode(frame[:, :, start : start + _SLICES_AT_ONCE], encoding, name)
            file.write(slab.tobytes(order="F"))

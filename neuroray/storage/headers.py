"""What the header of a volume file says, whichever of the four formats it is in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

from neuroray.storage.header_affine import NO_ORIENTATION, convert_to_mm, read_nifti_affine
from neuroray.storage.scan import Encoding, ScanError

Format = Literal["nifti1", "nifti2", "analyze", "mgh"]
ByteOrder = Literal["<", ">"]

# The bytes that a header of each format spans at least; extensions and footers come on top.
HEADER_SIZES_BYTES: dict[Format, int] = {"nifti1": 348, "nifti2": 540, "analyze": 348, "mgh": 284}
_MGH_FIELDS_BYTES = 90
_NO_PLAIN_NUMBERS = {
    1: "single bits",
    32: "complex numbers",
    128: "colours (RGB)",
    1536: "128-bit floats",
    1792: "complex numbers",
    2048: "complex numbers",
    2304: "colours (RGBA)",
}
_TIME_UNITS = {0: None, 8: "s", 16: "ms", 24: "us"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeHeader:
    """The part of a header that decides how voxels are read, in the file's own axes.

    Attributes:
        format: The container.
        is_pair: Whether the voxels lie in a file of their own (.hdr and .img).
        dims: Voxels along every axis, as the header claims them; nothing checked yet.
        encoding: How numbers are stored; its dtype carries the file's byte order.
        voxel_offset: Bytes before the first voxel in the file that holds the voxels.
        affine: Voxel to world, in mm.
        time_step: The header's number for the fourth axis (0 or NaN where it has none).
        time_unit: "s", "ms", "us"; None where the header names none.
        intent_code: NIfTI's code for what the numbers mean; 0 in other formats.
        flags: What a person should know of the header.
    """

    format: Format
    is_pair: bool
    dims: tuple[int, ...]
    encoding: Encoding
    voxel_offset: int
    affine: np.ndarray
    time_step: float
    time_unit: str | None
    intent_code: int = 0
    flags: tuple[str, ...] = ()

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Voxels along i, j, k."""
        i, j, k = self.dims[:3]
        return i, j, k

    @property
    def num_frames(self) -> int:
        """Frames along time; 1 where there is no such axis."""
        return math.prod(self.dims[3:])

    @property
    def has_time_axis(self) -> bool:
        """Whether the header names a fourth axis, be it of one frame."""
        return len(self.dims) > 3

    @property
    def size_bytes(self) -> int:
        """What the voxels take as they are stored."""
        return math.prod(self.dims) * np.dtype(self.encoding.dtype).itemsize


def parse_header(raw: bytes, format_: Format, name: str) -> VolumeHeader:
    """Typed fields from a header's bytes; `raw` may go on after the header.

    Raises:
        ScanError: the bytes are no header of that format, or name a data type or an affine that makes no sense.
    """
    if format_ == "mgh":
        return _parse_mgh(raw, name)
    return _parse_analyze(raw, name) if format_ == "analyze" else _parse_nifti(raw, name)


def open_header(raw: bytes, format_: Format) -> Any:
    """The nibabel header that lays named fields over these bytes, without any of its corrections."""
    size = HEADER_SIZES_BYTES[format_]
    if format_ == "mgh":
        fields = _MGH_FIELDS_BYTES  # the rest, up to the voxels, is unused; a footer follows the voxels
        return MGHHeader(raw[:fields] + raw[size:], check=False)
    order = find_byte_order(raw, 540 if format_ == "nifti2" else 348) or "<"
    if format_ == "analyze":
        return Spm2AnalyzeHeader(raw[:size], order, check=False)
    return _nifti_class(raw)(raw[:size], order, check=False)


def find_byte_order(raw: bytes, header_size: int) -> ByteOrder | None:
    """The byte order in which the first four bytes say `header_size`; None where they do not."""
    if int.from_bytes(raw[:4], "little") == header_size:
        return "<"
    return ">" if int.from_bytes(raw[:4], "big") == header_size else None


def nifti_magic(raw: bytes) -> bytes:
    """The bytes that say which NIfTI this is."""
    return raw[4:8] if find_byte_order(raw, 540) else raw[344:348]


def _nifti_class(raw: bytes) -> type[Any]:
    classes = {
        b"n+1\0": Nifti1Header,
        b"ni1\0": Nifti1PairHeader,
        b"n+2\0": Nifti2Header,
        b"ni2\0": Nifti2PairHeader,
    }
    return classes[nifti_magic(raw)]


def _parse_nifti(raw: bytes, name: str) -> VolumeHeader:
    is_second = find_byte_order(raw, 540) is not None
    magic = nifti_magic(raw)
    expected = (b"n+2\0", b"ni2\0") if is_second else (b"n+1\0", b"ni1\0")
    if magic not in expected:
        raise ScanError(
            f"{name}: the header's magic bytes are not NIfTI's",
            given=repr(magic),
            expected=" or ".join(map(repr, expected)),
            fix="the file is damaged or of another format: export it again from where it came from",
        )
    header = open_header(raw, "nifti2" if is_second else "nifti1")
    is_pair = magic in (b"ni1\0", b"ni2\0")
    encoding, scale_flags = _read_encoding(header, name)
    affine, affine_flags = read_nifti_affine(header, name)
    units = int(header["xyzt_units"])
    affine, unit_flags = convert_to_mm(affine, units & 7)
    return VolumeHeader(
        format="nifti2" if is_second else "nifti1",
        is_pair=is_pair,
        dims=_read_dims(header, name),
        encoding=encoding,
        voxel_offset=_read_voxel_offset(header, is_pair, name),
        affine=affine,
        time_step=float(header["pixdim"][4]),
        time_unit=_read_time_unit(units & 56, header, name),
        intent_code=int(header["intent_code"]),
        flags=affine_flags + unit_flags + scale_flags,
    )


def _parse_analyze(raw: bytes, name: str) -> VolumeHeader:
    header = open_header(raw, "analyze")
    encoding, scale_flags = _read_encoding(header, name)
    return VolumeHeader(
        format="analyze",
        is_pair=True,
        dims=_read_dims(header, name),
        encoding=encoding,
        voxel_offset=_read_voxel_offset(header, True, name),
        affine=header.get_best_affine(),
        time_step=float(header["pixdim"][4]),
        time_unit=None,
        flags=(NO_ORIENTATION, *scale_flags),
    )


def _parse_mgh(raw: bytes, name: str) -> VolumeHeader:
    if raw[:4] != b"\0\0\0\1":
        raise ScanError(
            f"{name}: the header is not that of an MGH file",
            given=f"version {int.from_bytes(raw[:4], 'big')}",
            expected="version 1",
            fix="the file is damaged or of another format",
        )
    header = open_header(raw, "mgh")
    has_orientation = int.from_bytes(raw[28:30], "big") == 1
    with np.errstate(all="ignore"):
        affine = header.get_affine()
    dims = tuple(int(size) for size in header["dims"])
    return VolumeHeader(
        format="mgh",
        is_pair=False,
        dims=dims if dims[3] != 1 else dims[:3],
        encoding=Encoding(dtype=_read_dtype(header, name, field="type")),
        voxel_offset=HEADER_SIZES_BYTES["mgh"],
        affine=np.asarray(affine, dtype=np.float64),
        time_step=float(header["tr"]),
        time_unit="ms",
        flags=() if has_orientation else ("no orientation in the header: FreeSurfer's coronal axes were assumed",),
    )


def _read_dims(header: Any, name: str) -> tuple[int, ...]:
    claimed = [int(size) for size in header["dim"]]
    if not 1 <= claimed[0] <= 7:
        raise ScanError(
            f"{name}: the header names an impossible number of axes",
            given=claimed[0],
            expected="3 or 4",
            fix="the file is damaged: export it again from where it came from",
        )
    dims = claimed[1 : claimed[0] + 1]
    while len(dims) > 4 and dims[-1] == 1:
        dims.pop()
    return tuple(dims)


def _read_dtype(header: Any, name: str, *, field: str = "datatype") -> str:
    code = int(header[field])
    if field == "datatype" and code in _NO_PLAIN_NUMBERS:
        raise ScanError(
            f"{name}: the voxels are not plain numbers",
            given=_NO_PLAIN_NUMBERS[code],
            expected="integers or floats of at most 64 bits, one per voxel",
            fix="convert the file: magnitude of complex data, one channel of colours, float64 of wider floats",
        )
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    if dtype.kind not in "iuf":
        raise ScanError(
            f"{name}: the header names an unknown data type",
            given=f"code {code}",
            fix="the file is damaged: export it again from where it came from",
        )
    return dtype.str


def _read_encoding(header: Any, name: str) -> tuple[Encoding, tuple[str, ...]]:
    dtype = _read_dtype(header, name)
    declared = float(header["scl_slope"])
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError as error:
        raise ScanError(
            f"{name}: the header scales by a number but shifts by none",
            given=f"scl_slope {declared:g}, scl_inter {float(header['scl_inter']):g}",
            expected="two finite numbers, or a slope of 0 for no scaling",
            fix="set scl_inter to 0 if the values look right without it",
        ) from error
    if slope is None:
        flags = () if declared == 0 else (f"a scaling slope of {declared:g} was taken as no scaling",)
        return Encoding(dtype=dtype), flags
    return Encoding(dtype=dtype, slope=float(slope), intercept=float(intercept or 0.0)), ()


def _read_voxel_offset(header: Any, is_pair: bool, name: str) -> int:
    offset = float(header["vox_offset"])
    smallest = 0 if is_pair else header.single_vox_offset
    if offset == 0:
        return smallest
    if not math.isfinite(offset) or offset != int(offset) or offset < smallest:
        raise ScanError(
            f"{name}: the header says that voxels begin where they cannot",
            given=f"vox_offset {offset:g}",
            expected=f"at least {smallest}",
            fix="the file is damaged: export it again from where it came from",
        )
    return int(offset)


def _read_time_unit(code: int, header: Any, name: str) -> str | None:
    if code in _TIME_UNITS:
        return _TIME_UNITS[code]
    if int(header["dim"][0]) > 3 and int(header["dim"][4]) > 1:
        raise ScanError(
            f"{name}: the fourth axis is not time",
            given={32: "Hz", 40: "ppm", 48: "rad/s"}.get(code, f"unit code {code}"),
            expected="seconds, milliseconds or microseconds",
            fix="spectra are not read; if it is time, set the header's unit (xyzt_units)",
        )
    return None

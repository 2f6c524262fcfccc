"""A volume file taken apart, with every claim of its header checked before memory is spent on it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from neuroray.storage.byte_stream import ByteStream
from neuroray.storage.headers import (
    HEADER_SIZES_BYTES,
    Format,
    VolumeHeader,
    find_byte_order,
    nifti_magic,
    parse_header,
)
from neuroray.storage.orientation import Orientation
from neuroray.storage.sanity import check_header, find_header_flags
from neuroray.storage.scaling import choose_dtype, decode
from neuroray.storage.scan import ScanError
from neuroray.storage.volume_files import VolumeFiles, refuse_foreign

_MAX_EXTRA_BYTES = 16 * 2**20  # of header extensions, and of what follows the voxels (FreeSurfer's footer)
# Stored slices are taken over some at a time: small beside a scan, enough to fill cache lines along the other axis.
_SLAB_BYTES = 4 * 2**20
_SLAB_SLICES = 32
# Slices of a round size would all fall on the same lines of the processor's cache; a gap between them prevents that.
_GAP_BYTES = 128
_LARGE_SLICE_BYTES = 2**14
_PACKED_ENDINGS = (".gz", ".mgz")
# Head scans pack to a tenth, masked ones to a fiftieth. What unpacks further is let through only where it is small.
_MOST_UNPACKED = 200
_HARMLESS_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadVolume:
    """What a volume file held.

    Attributes:
        voxels: Values in RAS+ order; always with a time axis.
        header: The header, parsed.
        header_bytes: All bytes of the file, or of a pair's .hdr, that are not voxels.
        orientation: How the canonical axes follow from the file's.
        flags: What a person should know of the file and its header.
    """

    voxels: Num[np.ndarray, "time x y z"]
    header: VolumeHeader
    header_bytes: bytes
    orientation: Orientation
    flags: tuple[str, ...]


def read_volume(files: VolumeFiles, *, max_bytes: int) -> ReadVolume:
    """Reads header and voxels, to the end of the file.

    Raises:
        ScanError: the container is damaged, the header makes no sense, or more than `max_bytes` would be decoded.
    """
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(ByteStream(files.header))
        raw, format_ = _read_raw_header(stream)
        header = parse_header(raw, format_, stream.name)
        _check_is_named_so(header, files)
        _check_has_no_mat(header, files)
        check_header(header, stream.name, max_bytes=max_bytes)
        flags = [*find_header_flags(header), *_find_packing_flags(stream)]
        if header.is_pair:
            raw += stream.read_rest(_MAX_EXTRA_BYTES)
            stream = stack.enter_context(ByteStream(files.voxels))
            flags += _find_packing_flags(stream)
            _skip_to_voxels(stream, header, already=0)
        else:
            raw += _skip_to_voxels(stream, header, already=len(raw))
        orientation = Orientation.from_affine(header.affine)
        voxels = _read_voxels(stream, header, orientation)
        rest = stream.read_rest(_MAX_EXTRA_BYTES)
    if format_ == "mgh":
        raw += rest
        header = parse_header(raw, format_, stream.name)  # once more: the footer holds the repetition time
    elif rest:
        flags.append(f"{len(rest)} bytes after the last voxel were ignored")
    return ReadVolume(voxels=voxels, header=header, header_bytes=raw, orientation=orientation, flags=tuple(flags))


def read_header(files: VolumeFiles) -> VolumeHeader:
    """The header alone, unchecked: what it claims may be nonsense.

    Raises:
        ScanError: there is no such file, or no header in it.
    """
    with ByteStream(files.header) as stream:
        raw, format_ = _read_raw_header(stream)
        return parse_header(raw, format_, stream.name)


def _read_raw_header(stream: ByteStream) -> tuple[bytes, Format]:
    is_mgh = stream.name.lower().endswith((".mgh", ".mgz"))
    raw = stream.read(HEADER_SIZES_BYTES["mgh" if is_mgh else "nifti1"])
    if is_mgh:
        if len(raw) < HEADER_SIZES_BYTES["mgh"] or raw[:1] != b"\0":
            raise refuse_foreign(raw, stream.name)
        return raw, "mgh"
    if find_byte_order(raw, HEADER_SIZES_BYTES["nifti2"]):
        missing = HEADER_SIZES_BYTES["nifti2"] - len(raw)
        return raw + stream.read_exactly(missing, "its header"), "nifti2"
    if not find_byte_order(raw, HEADER_SIZES_BYTES["nifti1"]):
        raise refuse_foreign(raw, stream.name)
    if len(raw) < HEADER_SIZES_BYTES["nifti1"]:
        stream.read_exactly(1, "its header")
    is_analyze = ".hdr" in stream.name.lower()[-7:] and nifti_magic(raw) not in (b"n+1\0", b"ni1\0")
    return raw, "analyze" if is_analyze else "nifti1"


def _check_is_named_so(header: VolumeHeader, files: VolumeFiles) -> None:
    if header.is_pair == files.is_pair:
        return
    held = "only a header, whose voxels lie in an .img file" if header.is_pair else "header and voxels in one file"
    raise ScanError(
        f"{files.header.name}: the name does not fit the content",
        given=f"a file that says it holds {held}",
        expected=".hdr with .img for a pair, .nii or .nii.gz for one file",
        fix="rename it, or convert it again",
    )


def _check_has_no_mat(header: VolumeHeader, files: VolumeFiles) -> None:
    """Analyze files of SPM carry their orientation in a MATLAB file; read without it, they may come out mirrored."""
    beside = files.header.with_name(f"{files.header.name.split('.hdr')[0]}.mat")
    if header.format == "analyze" and beside.exists():
        raise ScanError(
            f"{files.header.name}: the orientation of this Analyze file lies in {beside.name}, which is not read",
            expected="NIfTI, which holds its own orientation",
            fix="convert it to NIfTI with SPM",
        )


def _find_packing_flags(stream: ByteStream) -> list[str]:
    if stream.name.lower().endswith(_PACKED_ENDINGS) == stream.is_compressed:
        return []
    return [f"{stream.name} is {'compressed' if stream.is_compressed else 'not compressed'}, unlike its name says"]


def _skip_to_voxels(stream: ByteStream, header: VolumeHeader, *, already: int) -> bytes:
    """The bytes up to the first voxel, after a look at whether the file can hold what its header claims."""
    if header.voxel_offset > _MAX_EXTRA_BYTES:
        raise ScanError(
            f"{stream.name}: the header claims to be very long",
            given=f"{header.voxel_offset} bytes before the first voxel",
            expected=f"at most {_MAX_EXTRA_BYTES}",
            fix="the file is damaged: export it again from where it came from",
        )
    claimed = header.voxel_offset + header.size_bytes
    if stream.is_compressed and claimed > max(_HARMLESS_BYTES, _MOST_UNPACKED * stream.file_size_bytes):
        raise ScanError(
            f"{stream.name}: the scan is too large for the size of its file",
            given=f"{stream.file_size_bytes} bytes that claim to unpack to {claimed}",
            expected=f"at most {_HARMLESS_BYTES} bytes, or {_MOST_UNPACKED} times the file's size",
            fix="this is what a gzip bomb looks like; if you trust it, unpack it first and give the .nii",
        )
    if claimed > stream.largest_size_bytes:
        raise ScanError(
            f"{stream.name}: the file is too short for what its header claims",
            given=f"a file of {stream.file_size_bytes} bytes",
            expected=f"{claimed} bytes{' when unpacked' if stream.is_compressed else ''}",
            fix="the file was cut short, or its header is damaged: copy or download it again",
        )
    return stream.read_exactly(header.voxel_offset - already, "its header")


def _read_voxels(stream: ByteStream, header: VolumeHeader, orientation: Orientation) -> np.ndarray:
    """`time x y z` in RAS+ order, filled a few slices at a time as the file runs: nothing is held twice."""
    shape = (header.num_frames, *orientation.canonical_shape(header.grid_shape))
    voxels = np.empty(shape, choose_dtype(header.encoding))
    i, j, num_slices = header.grid_shape
    dtype = np.dtype(header.encoding.dtype)
    slice_bytes = i * j * dtype.itemsize
    step = max(1, min(num_slices, _SLAB_SLICES, _SLAB_BYTES // slice_bytes))
    gap = _GAP_BYTES if slice_bytes >= _LARGE_SLICE_BYTES else 0
    slab = np.empty((step, slice_bytes + gap), np.uint8)
    for frame in orientation.to_file(voxels):
        for start in range(0, num_slices, step):
            out = frame[:, :, start : start + step]
            stored = slab[: out.shape[2], :slice_bytes]
            for piece in stored if gap else [stored.reshape(-1)]:
                stream.read_into(piece.data, "its voxels")
            decode(stored.view(dtype).reshape(-1, j, i).transpose(2, 1, 0), header.encoding, out)
    return voxels

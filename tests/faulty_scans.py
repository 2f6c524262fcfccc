"""Scans that go wrong in known ways, made out of the real ones in `tests/data/pumi`; run by tests of every layer."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

DATA = Path(__file__).parent / "data"
PUMI_T1 = DATA / "pumi/sub-001/anat/sub-001_T1w.nii.gz"
PUMI_BOLD = DATA / "pumi/sub-001/func/sub-001_task-rest_bold.nii.gz"

_MIB = bytes(2**20)


def make_faulty_scan(name: str, folder: Path) -> Path:
    """Writes the faulty scan of that file name (a key of `MAKERS`) into `folder`."""
    path = folder / name
    MAKERS[name](path)
    return path


def write_bomb(path: Path, header: bytes, num_mib: int) -> None:
    """A header, then zeros, packed about a thousandfold: gzip members are joined end to end, so this takes no time."""
    member = gzip.compress(_MIB, 9, mtime=0)
    with path.open("wb") as file:
        file.write(gzip.compress(header, mtime=0))
        for _ in range(num_mib):
            file.write(member)


def patch(content: bytes, offset: int, replacement: bytes) -> bytes:
    """The content with some bytes in the middle replaced."""
    return content[:offset] + replacement + content[offset + len(replacement) :]


def header_bytes(shape: tuple[int, ...], dtype: type = np.int16) -> bytes:
    """A NIfTI-1 header and the four bytes that say that no extension follows."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), code=1)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


def _t1() -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(PUMI_T1)


def _bold() -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(PUMI_BOLD)


def _save(voxels: np.ndarray, like: nib.Nifti1Image, path: Path, affine: np.ndarray | None = None) -> nib.Nifti1Image:
    image = nib.Nifti1Image(voxels, like.affine if affine is None else affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return image


def _pack(content: bytes, path: Path) -> None:
    path.write_bytes(gzip.compress(content, 1, mtime=0))


def _cut_short(path: Path) -> None:
    content = PUMI_T1.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])


def _wrong_magic(path: Path) -> None:
    path.write_bytes(patch(gzip.decompress(PUMI_T1.read_bytes()), 344, b"xyz\0"))


def _huge_dims(path: Path) -> None:
    claimed = np.array([3, 32767, 32767, 32767], "<i2").tobytes()
    path.write_bytes(patch(gzip.decompress(PUMI_T1.read_bytes()), 40, claimed))


def _bomb(path: Path) -> None:
    write_bomb(path, header_bytes((1000, 1000, 2000), np.uint8), 1908)


def _slope_nan(path: Path) -> None:
    _pack(patch(gzip.decompress(PUMI_T1.read_bytes()), 112, np.float32(np.nan).tobytes()), path)


def _no_orientation(path: Path) -> None:
    _pack(patch(gzip.decompress(PUMI_T1.read_bytes()), 252, bytes(4)), path)


def _nan_border(path: Path) -> None:
    image = _t1()
    voxels = image.get_fdata(dtype=np.float32)
    voxels[:20] = np.nan
    _save(voxels, image, path)


def _flipped(path: Path) -> None:
    image = _t1()
    nib.save(image.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]])), path)


def _permuted(path: Path) -> None:
    image = _t1()
    nib.save(image.as_reoriented(np.array([[1, 1], [2, 1], [0, 1]])), path)


def _four_axes_one_frame(path: Path) -> None:
    image = _t1()
    _save(np.asarray(image.dataobj)[..., np.newaxis], image, path)


def _milliseconds(path: Path) -> None:
    content = gzip.decompress(PUMI_BOLD.read_bytes())
    content = patch(content, 76 + 4 * 4, np.float32(2520).tobytes())  # pixdim[4]
    _pack(patch(content, 123, bytes([2 | 16])), path)  # xyzt_units: mm, ms


def _time_first(path: Path) -> None:
    image = _bold()
    _save(np.moveaxis(np.asarray(image.dataobj), -1, 0), image, path)


def _frozen(path: Path) -> None:
    image = _bold()
    voxels = np.asarray(image.dataobj).copy()
    voxels[..., 5:] = voxels[..., 4:5]
    frozen = nib.Nifti1Image(voxels, image.affine, image.header)
    nib.save(frozen, path)


def _damaged_middle(path: Path) -> None:
    content = bytearray(PUMI_T1.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _wrong_checksum(path: Path) -> None:
    """Voxels that unpack without complaint, and differ from those that were packed."""
    content = gzip.decompress(PUMI_T1.read_bytes())
    packer = zlib.compressobj(1, wbits=31)
    packed = bytearray(packer.compress(content) + packer.flush())
    packed[-8:-4] = zlib.crc32(content[:-1]).to_bytes(4, "little")
    path.write_bytes(packed)


MAKERS: dict[str, Callable[[Path], None]] = {
    "T1_gz_truncated60pct.nii.gz": _cut_short,
    "T1_gz_damaged_middle.nii.gz": _damaged_middle,
    "T1_gz_wrong_checksum.nii.gz": _wrong_checksum,
    "T1_wrong_magic.nii": _wrong_magic,
    "T1_huge_dims.nii": _huge_dims,
    "gz_bomb_2GB_zeros.nii.gz": _bomb,
    "T1_slope_nan.nii.gz": _slope_nan,
    "T1_no_sform_no_qform.nii.gz": _no_orientation,
    "T1_float_nan_border.nii.gz": _nan_border,
    "T1_LAS_flipped_same_world.nii.gz": _flipped,
    "T1_permuted_axes.nii.gz": _permuted,
    "T1_4D_one_frame.nii.gz": _four_axes_one_frame,
    "bold_TR_ms_units.nii.gz": _milliseconds,
    "bold_time_first_axis.nii.gz": _time_first,
    "bold_frozen_frames.nii.gz": _frozen,
}

"""Small volumes in every format and encoding that is read, written by nibabel or byte by byte."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

# Runs P, S, R, turned out of the axes, with three voxel sizes.
OBLIQUE = np.array(
    [[0.12, -0.1, 1.9, -31.0], [-2.35, 0.3, 0.2, 47.0], [0.25, 2.2, -0.15, -22.0], [0, 0, 0, 1]], dtype=np.float64
)
SHAPE = (7, 5, 6)


def stored_numbers(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Numbers over the whole range of an integer type; floats with all their digits."""
    generator = np.random.default_rng(5)
    if np.dtype(dtype).kind == "f":
        return generator.normal(300, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    numbers = generator.integers(limits.min, limits.max, shape, dtype=np.dtype(dtype).newbyteorder("="), endpoint=True)
    numbers.flat[:2] = limits.min, limits.max
    return numbers.astype(dtype)


def write_nifti(
    path: Path,
    stored: np.ndarray,
    *,
    version: int = 1,
    slope: float = 1.0,
    intercept: float = 0.0,
    pair: bool = False,
    byte_order: str = "<",
    affine: np.ndarray = OBLIQUE,
    extension: bytes = b"",
    time_step: float = 0.0,
    units: int = 2 | 8,
) -> Path:
    """Header, extension and stored numbers, exactly as given: nothing is rescaled."""
    kinds = {
        (1, False): nib.nifti1.Nifti1Header,
        (1, True): nib.nifti1.Nifti1PairHeader,
        (2, False): nib.nifti2.Nifti2Header,
        (2, True): nib.nifti2.Nifti2PairHeader,
    }
    header = kinds[version, pair](endianness=byte_order)
    header.set_data_dtype(stored.dtype.newbyteorder("="))
    header.set_data_shape(stored.shape)
    header.set_sform(affine, code=2)
    header["pixdim"][1:4] = nib.affines.voxel_sizes(affine)
    header["pixdim"][4] = time_step
    header["xyzt_units"] = units
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["descrip"], header["aux_file"], header["cal_max"] = b"kept as it is", b"aux", 812.5
    header["vox_offset"] = 0 if pair else header.single_vox_offset + len(extension)
    flag = (b"\1" if extension else b"\0") + bytes(3)
    voxels = stored.astype(stored.dtype.newbyteorder(byte_order)).tobytes(order="F")
    if not pair:
        _write(path, header.binaryblock + flag + extension + voxels)
        return path
    _write(path, header.binaryblock + flag + extension)
    _write(partner(path), voxels)
    return path


def comment(text: bytes, byte_order: str = "<") -> bytes:
    """A NIfTI extension that holds a comment, filled up to a multiple of 16 bytes."""
    size = -(-(len(text) + 8) // 16) * 16
    order = "little" if byte_order == "<" else "big"
    return size.to_bytes(4, order) + (6).to_bytes(4, order) + text.ljust(size - 8, b"\0")


def write_mgh(path: Path, stored: np.ndarray, *, footer: bytes = b"", good_ras: bool = True) -> Path:
    """An MGH file with the given bytes after its voxels."""
    image = nib.MGHImage(stored, OBLIQUE)
    image.update_header()
    fields = bytearray(image.header.binaryblock[:90])
    fields[28:30] = int(good_ras).to_bytes(2, "big")
    voxels = stored.astype(stored.dtype.newbyteorder(">")).tobytes(order="F")
    _write(path, bytes(fields).ljust(284, b"\0") + voxels + footer)
    return path


def mgh_footer(repetition_time_ms: float) -> bytes:
    """TR, flip angle, TE, TI and field of view, then a tag as FreeSurfer writes them."""
    return np.array([repetition_time_ms, 1.2, 30.0, 0.0, 256.0], ">f4").tobytes() + b"\0\0\0\3\0\0\0\6recon\0"


def write_analyze(path: Path, stored: np.ndarray, *, slope: float = 0.0, byte_order: str = "<") -> Path:
    """An Analyze pair as SPM2 wrote it."""
    header = nib.spm2analyze.Spm2AnalyzeHeader(endianness=byte_order)
    header.set_data_dtype(stored.dtype.newbyteorder("="))
    header.set_data_shape(stored.shape)
    header["pixdim"][1:4] = 2.0, 2.5, 3.0
    header["scl_slope"] = slope
    _write(path, header.binaryblock)
    voxels = stored.astype(stored.dtype.newbyteorder(byte_order)).tobytes(order="F")
    _write(partner(path), voxels)
    return path


def partner(path: Path) -> Path:
    """The .img of an .hdr."""
    return path.with_name(path.name.replace(".hdr", ".img"))


def open_with_nibabel(path: Path) -> nib.spatialimages.SpatialImage:
    """The same file by nibabel."""
    if path.name.startswith("analyze"):
        return nib.Spm2AnalyzeImage.from_filename(path)
    return nib.load(path)


def unpacked(path: Path) -> bytes:
    """The content of a file, without its compression."""
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _write(path: Path, content: bytes) -> None:
    packed = path.name.endswith((".gz", ".mgz"))
    path.write_bytes(gzip.compress(content, 1, mtime=0) if packed else content)


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "plain.nii": lambda path: write_nifti(path, stored_numbers("int16")),
    "packed.nii.gz": lambda path: write_nifti(path, stored_numbers("uint8")),
    "extension.nii.gz": lambda path: write_nifti(path, stored_numbers("int16"), extension=comment(b"who did what")),
    "two_extensions.nii": lambda path: write_nifti(
        path, stored_numbers("int16"), extension=comment(b"first") + comment(b"second " * 9)
    ),
    "scaled_int16.nii.gz": lambda path: write_nifti(path, stored_numbers("int16"), slope=0.37, intercept=-1024.5),
    "scaled_uint8.nii": lambda path: write_nifti(path, stored_numbers("uint8"), slope=17.5),
    "scaled_far_from_zero.nii": lambda path: write_nifti(path, stored_numbers("int16"), slope=1e-3, intercept=1e6),
    "scaled_off_zero.nii": lambda path: write_nifti(path, stored_numbers("int16"), slope=0.01, intercept=1e5),
    "scaled_int32.nii": lambda path: write_nifti(path, stored_numbers("int32"), slope=-0.25, intercept=3.0),
    "slope_zero.nii": lambda path: write_nifti(path, stored_numbers("uint16"), slope=0.0, intercept=7.0),
    "big_endian.nii": lambda path: write_nifti(
        path, stored_numbers("int16"), byte_order=">", slope=0.5, extension=comment(b"big", ">")
    ),
    "float32.nii.gz": lambda path: write_nifti(path, stored_numbers("float32")),
    "float64.nii": lambda path: write_nifti(path, stored_numbers("float64")),
    "int64.nii": lambda path: write_nifti(path, stored_numbers("int64")),
    "series.nii.gz": lambda path: write_nifti(path, stored_numbers("int16", (*SHAPE, 4)), time_step=2.0),
    "one_frame.nii.gz": lambda path: write_nifti(path, stored_numbers("int16", (*SHAPE, 1)), time_step=2.0),
    "trailing_axes.nii.gz": lambda path: write_nifti(path, stored_numbers("int16", (*SHAPE, 4, 1)), time_step=2.0),
    "second.nii": lambda path: write_nifti(path, stored_numbers("int16"), version=2, slope=1e-9),
    "second_big.nii.gz": lambda path: write_nifti(
        path, stored_numbers("uint16"), version=2, byte_order=">", extension=comment(b"second", ">")
    ),
    "pair.hdr": lambda path: write_nifti(path, stored_numbers("int16"), pair=True, slope=0.5, extension=comment(b"x")),
    "packed_pair.hdr.gz": lambda path: write_nifti(path, stored_numbers("int16"), pair=True),
    "second_pair.hdr": lambda path: write_nifti(path, stored_numbers("float32"), pair=True, version=2),
    "analyze.hdr": lambda path: write_analyze(path, stored_numbers("int16")),
    "analyze_big.hdr": lambda path: write_analyze(path, stored_numbers("uint8"), slope=0.125, byte_order=">"),
    "plain.mgh": lambda path: write_mgh(path, stored_numbers("int16")),
    "footer.mgz": lambda path: write_mgh(path, stored_numbers("uint8"), footer=mgh_footer(0.0)),
    "series.mgz": lambda path: write_mgh(path, stored_numbers("float32", (*SHAPE, 3)), footer=mgh_footer(2520.0)),
    "no_orientation.mgz": lambda path: write_mgh(path, stored_numbers("int32"), good_ras=False),
}

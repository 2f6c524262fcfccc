import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from faulty_scans import header_bytes, patch, write_bomb
from volume_samples import SHAPE, partner, stored_numbers, write_analyze, write_mgh, write_nifti

from neuroray.errors import NeurorayError
from neuroray.storage.nifti import ScanError, read_scan


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _write(content: bytes):
    return lambda path: path.write_bytes(content)


def _shape(*dims: int):
    claimed = np.array([len(dims), *dims], "<i2").tobytes()
    return _write(patch(header_bytes((2, 2, 2)), 40, claimed) + bytes(10_000))


def _field(offset: int, value: bytes):
    body = stored_numbers("int16", (4, 4, 4)).tobytes(order="F")
    return _write(patch(header_bytes((4, 4, 4)), offset, value) + body)


def _voxels(stored: np.ndarray, **options: object):
    return lambda path: write_nifti(path, stored, **options)


def _affine(affine: np.ndarray):
    return _voxels(stored_numbers("int16"), affine=affine)


_SINGULAR = np.diag([2.0, 2.0, 0.0, 1.0])
_FLAT = np.array([[2.0, 0, 2, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
_NAN = np.diag([2.0, np.nan, 2.0, 1.0])
_CONSTANT = np.full(SHAPE, 7, np.int16)

REFUSED = {
    "empty file": ("a.nii", _empty, "the file is empty"),
    "text": ("a.nii", _write(b"see the other folder\n" * 40), "but text"),
    "git lfs": ("a.nii.gz", _write(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "Git LFS"),
    "git annex": ("a.nii.gz", _write(b"/annex/objects/MD5E-s1--0.nii.gz\n"), "git-annex"),
    "dicom": ("a.nii", _write(bytes(128) + b"DICM" + bytes(900)), "dcm2niix"),
    "gifti": ("a.func.gii", _write(b'<?xml version="1.0"?><GIFTI>'), "surface"),
    "xml": ("a.nii", _write(b'<?xml version="1.0"?><GIFTI/>'), "XML"),
    "cifti by name": ("a.dtseries.nii", _field(68, np.int16(3002).tobytes()), "CIFTI"),
    "cifti by intent": ("a.nii", _field(68, np.int16(3006).tobytes()), "CIFTI"),
    "surface by intent": ("a.nii", _field(68, np.int16(1008).tobytes()), "surface"),
    "vectors by intent": ("a.nii", _field(68, np.int16(1007).tobytes()), "a vector per voxel"),
    "zip": ("a.nii.gz", _write(b"PK\3\4" + bytes(400)), "packed with zip"),
    "bzip2": ("a.nii", _write(b"BZh9" + bytes(400)), "packed with bzip2"),
    "unknown ending": ("a.png", _write(b"x"), "does not end like that of a scan"),
    "header cut short": ("a.nii", _write(header_bytes((4, 4, 4))[:100]), "ends within its header"),
    "voxels cut short": ("a.nii", _write(header_bytes((4, 4, 4)) + bytes(99)), "too short for what its header claims"),
    "packed voxels cut short": (
        "a.nii.gz",
        _write(gzip.compress(header_bytes((4, 4, 4)) + bytes(99))),
        "ends within its voxels",
    ),
    "one image": ("a.nii", _shape(50, 50), "2 axes"),
    "five axes": ("a.nii", _shape(4, 4, 4, 1, 3), "5 axes"),
    "nothing along one axis": ("a.nii", _shape(50, 0, 50), "no voxels"),
    "less than nothing along one axis": ("a.nii", _shape(50, -3, 50), "no voxels"),
    "nine axes": ("a.nii", _field(40, np.int16(9).tobytes()), "impossible number of axes"),
    "a vector": ("a.nii", _shape(1000, 1, 1), "surface or vector data"),
    "freesurfer's long vector": ("a.nii", _shape(-1, 1, 1), "surface or vector data"),
    "freesurfer's folded surface": ("a.nii", _shape(27307, 1, 6), "surface or vector data"),
    "colours": ("a.nii", _field(70, np.int16(128).tobytes()), "colours"),
    "complex numbers": ("a.nii", _field(70, np.int16(32).tobytes()), "complex"),
    "wide floats": ("a.nii", _field(70, np.int16(1536).tobytes()), "128-bit"),
    "unknown data type": ("a.nii", _field(70, np.int16(77).tobytes()), "unknown data type"),
    "single bits": ("a.nii", _field(70, np.int16(1).tobytes()), "single bits"),
    "voxels inside the header": ("a.nii", _field(108, np.float32(12).tobytes()), "begin where they cannot"),
    "voxels nowhere": ("a.nii", _field(108, np.float32(np.nan).tobytes()), "begin where they cannot"),
    "voxels far away": ("a.nii", _field(108, np.float32(2**30).tobytes()), "header claims to be very long"),
    "slope without intercept": ("a.nii", _field(112, np.float32([2, np.nan]).tobytes()), "shifts by none"),
    "intercept that drowns the slope": (
        "a.nii",
        _voxels(stored_numbers("int16"), version=2, slope=1e-12, intercept=1e6),
        "cannot tell apart",
    ),
    "a spectrum": ("a.nii", _voxels(stored_numbers("int16", (4, 4, 4, 3)), units=2 | 40), "not time"),
    "singular affine": ("a.nii", _affine(_SINGULAR), "singular"),
    "flat affine": ("a.nii", _affine(_FLAT), "singular"),
    "NaN in the affine": ("a.nii", _affine(_NAN), "NaN"),
    "impossible quaternion": (
        "a.nii",
        _field(252, np.int16([1, 0]).tobytes() + np.float32([3, 3, 3]).tobytes()),
        "qform",
    ),
    "constant": ("a.nii", _voxels(_CONSTANT), "7 in every voxel"),
    "constant once NaN are gone": ("a.nii", _voxels(np.where(np.eye(4)[..., None], np.nan, 0).repeat(4, 2)), "zero in"),
    "all NaN": ("a.nii", _voxels(np.full(SHAPE, np.nan, np.float32)), "no finite number"),
    "beyond float32": ("a.nii", _voxels(stored_numbers("float64") * 1e300), "beyond float32"),
    "single file called a pair": ("a.hdr", _write(header_bytes((4, 4, 4)) + bytes(128)), "does not fit the content"),
    "pair without voxels": (
        "a.hdr",
        lambda path: partner(write_nifti(path, stored_numbers("int16"), pair=True)).unlink(),
        "a.img: there is no such file",
    ),
    "half of a pair called a file": (
        "a.nii",
        _field(344, b"ni1\0"),
        "does not fit the content",
    ),
    "mgh of another version": ("a.mgz", _write(gzip.compress(b"\0\0\0\2" + bytes(300))), "version 2"),
    "mgh that is text": ("a.mgh", _write(b"not an image" * 40), "but text"),
    "mgh with an empty axis": (
        "a.mgh",
        lambda path: path.write_bytes(patch(write_mgh(path, stored_numbers("int16")).read_bytes(), 8, bytes(4))),
        "no voxels",
    ),
    "analyze whose orientation lies elsewhere": (
        "a.hdr",
        lambda path: write_analyze(path, stored_numbers("int16")).with_suffix(".mat").write_bytes(b"MATLAB 5.0"),
        "a.mat",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_fault_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    name, make, words = REFUSED[case]
    make(tmp_path / name)
    with pytest.raises(ScanError) as caught:
        read_scan(tmp_path / name)
    assert words in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert isinstance(caught.value, NeurorayError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["missing.nii.gz", "missing.hdr"])
def test_a_missing_file_is_a_scan_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="there is no such file"):
        read_scan(tmp_path / name)


def test_a_folder_and_a_broken_link_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / ".git/annex/objects/none")
    with pytest.raises(ScanError, match="not a file"):
        read_scan(tmp_path / "folder.nii")
    with pytest.raises(ScanError, match="datalad get"):
        read_scan(tmp_path / "link.nii.gz")


def test_the_limit_holds_for_decoded_values(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", stored_numbers("uint8"), slope=0.5)
    decoded_bytes = 4 * 7 * 5 * 6
    assert read_scan(path, max_bytes=decoded_bytes).voxels.nbytes == decoded_bytes
    with pytest.raises(ScanError, match="too large"):
        read_scan(path, max_bytes=decoded_bytes - 1)


def _refusal_and_peak(path: Path) -> tuple[ScanError, int]:
    tracemalloc.start()
    try:
        with pytest.raises(ScanError) as caught:
            read_scan(path)
        return caught.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_stream_that_outgrows_its_header_is_not_unpacked(tmp_path: Path) -> None:
    header = header_bytes((64, 64, 64), np.uint8)
    write_bomb(tmp_path / "a.nii.gz", header, num_mib=400)
    error, peak = _refusal_and_peak(tmp_path / "a.nii.gz")
    assert "goes on long after" in str(error)
    assert peak < 40 * 2**20  # 16 MiB of what follows an image, once in pieces and once joined, and buffers


def test_a_bomb_with_as_many_voxels_as_the_limit_allows_takes_no_memory(tmp_path: Path) -> None:
    write_bomb(tmp_path / "a.nii.gz", header_bytes((1024, 1024, 1024), np.uint8), num_mib=1024)
    error, peak = _refusal_and_peak(tmp_path / "a.nii.gz")
    assert "bomb" in str(error)
    assert peak < 2**20

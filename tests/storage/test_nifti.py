import dataclasses
import gzip
import tempfile
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from faulty_scans import PUMI_BOLD, PUMI_T1, header_bytes, patch, write_bomb
from hypothesis import given, settings
from hypothesis import strategies as st
from storage.volume_samples import (
    OBLIQUE,
    SAMPLES,
    SHAPE,
    comment,
    mgh_footer,
    stored_numbers,
    unpacked,
    write_analyze,
    write_mgh,
    write_nifti,
)

from neuroray.errors import NeurorayError
from neuroray.storage.nifti import ScanError, map_to_source, read_scan, write_map, write_scan
from neuroray.storage.scan import Encoding, Scan

# Values are rounded to float32 once: half a unit in 2**-23.
FLOAT32_ROUNDING = 2.0**-23
# Headers keep affines in float32, and nibabel's MGH affine is computed in it: 50 mm * 2**-23 * a few operations.
AFFINE_TOLERANCE_MM = 5e-5


def _partner(path: Path) -> Path:
    return path.with_name(path.name.replace(".hdr", ".img"))


def _nibabel(path: Path) -> nib.spatialimages.SpatialImage:
    if path.name.startswith("analyze"):
        return nib.Spm2AnalyzeImage.from_filename(path)
    return nib.load(path)


# ----- reading


@pytest.mark.parametrize("name", SAMPLES)
def test_values_and_places_are_those_that_nibabel_reads(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path / name)
    scan = read_scan(path)
    image = nib.funcs.squeeze_image(_nibabel(path))
    expected = nib.as_closest_canonical(image)
    values = np.asarray(expected.dataobj, dtype=np.float64)
    if scan.is_timeseries:
        values = np.moveaxis(values, -1, 0)
    scale = np.abs(values).max()
    assert scan.voxels.shape == values.shape
    assert np.abs(scan.voxels.astype(np.float64) - values).max() <= FLOAT32_ROUNDING * scale
    assert np.abs(scan.affine - expected.affine).max() < AFFINE_TOLERANCE_MM
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
    assert scan.voxels.flags.c_contiguous
    assert scan.voxels.dtype.isnative


@pytest.mark.parametrize("name", SAMPLES)
def test_reading_and_writing_gives_every_byte_back(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path / name)
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / name
    write_scan(read_scan(path), again)
    assert unpacked(again) == unpacked(path)
    if _partner(path) != path:
        assert unpacked(_partner(again)) == unpacked(_partner(path))
    assert {file.name for file in again.parent.iterdir()} == {again.name, _partner(again).name}


@pytest.mark.parametrize("path", [PUMI_T1, PUMI_BOLD], ids=["T1w", "bold"])
def test_real_scans_come_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    write_scan(read_scan(path), tmp_path / path.name)
    assert unpacked(tmp_path / path.name) == unpacked(path)


@st.composite
def volumes(draw: st.DrawFn) -> dict[str, object]:
    dtype = draw(st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "uint32"]))
    shape = tuple(draw(st.lists(st.sampled_from([2, 3, 5, 9]), min_size=3, max_size=4)))
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-2.0, 1.5])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = np.diag(signs)[:, order]
    return {
        "stored": stored_numbers(dtype, shape),
        "slope": draw(st.floats(1e-6, 1e6, width=32)) * draw(st.sampled_from([-1, 1])),
        "intercept": draw(st.floats(-1e6, 1e6, width=32)),
        "version": draw(st.sampled_from([1, 2])),
        "byte_order": draw(st.sampled_from(["<", ">"])),
        "affine": affine,
        "time_step": draw(st.sampled_from([0.0, 2.0])),
    }


@given(volume=volumes())
@settings(deadline=None, max_examples=100)
def test_scaled_integers_come_back_exactly_whatever_the_scale(volume: dict) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_nifti(Path(folder) / "a.nii", **volume)
        try:
            scan = read_scan(path)
        except ScanError as error:  # a slope so small beside the intercept that all values are one number
            assert "empty" in error.fault
            return
        write_scan(scan, Path(folder) / "b.nii")
        assert (Path(folder) / "b.nii").read_bytes() == path.read_bytes()


def test_scaled_floats_come_back_to_the_rounding_of_float64(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", stored_numbers("float32"), slope=0.3, intercept=5.0)
    write_scan(read_scan(path), tmp_path / "b.nii")
    before, after = nib.load(path), nib.load(tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes()[:352] == path.read_bytes()[:352]
    # The sum with the intercept is rounded at 2**-53 of about 100, then the quotient to float32 again.
    assert np.allclose(before.get_fdata(), after.get_fdata(), rtol=2**-23, atol=0)


def test_an_unscaled_file_keeps_its_dtype_and_a_scaled_one_says_how_it_was_stored(tmp_path: Path) -> None:
    plain = read_scan(write_nifti(tmp_path / "a.nii", stored_numbers("int16")))
    assert (plain.voxels.dtype, plain.encoding) == (np.int16, None)
    scaled = read_scan(write_nifti(tmp_path / "b.nii", stored_numbers("int16"), slope=0.5, intercept=3, byte_order=">"))
    assert scaled.voxels.dtype == np.float32
    assert scaled.encoding == Encoding(dtype="int16", slope=0.5, intercept=3.0)
    wide = read_scan(write_nifti(tmp_path / "c.nii", stored_numbers("int32"), slope=0.5))
    assert wide.voxels.dtype == np.float64


@pytest.mark.parametrize(("name", "seconds"), [("series.nii.gz", 2.0), ("series.mgz", 2.52), ("plain.nii", None)])
def test_repetition_time_is_in_seconds_in_every_format(name: str, seconds: float | None, tmp_path: Path) -> None:
    assert read_scan(SAMPLES[name](tmp_path / name)).repetition_time_s == seconds


def test_real_bold_is_a_series_of_the_right_place_and_time() -> None:
    scan = read_scan(PUMI_BOLD)
    assert scan.voxels.shape == (20, 46, 46, 26)
    assert scan.repetition_time_s == 2.52
    assert scan.zooms_mm == pytest.approx((5, 5, 5), abs=1e-6)  # float32 headers
    assert scan.flags == ()


@pytest.mark.parametrize(("unit", "factor", "word"), [(1, 1e-3, "metres"), (3, 1e3, "micrometres")])
def test_lengths_come_out_in_millimetres(unit: int, factor: float, word: str, tmp_path: Path) -> None:
    affine = np.diag([factor, factor, factor, 1.0]) @ OBLIQUE
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored_numbers("int16"), affine=affine, units=unit))
    reference = read_scan(write_nifti(tmp_path / "b.nii", stored_numbers("int16")))
    assert scan.affine == pytest.approx(reference.affine, rel=1e-6, abs=1e-5)  # float32 headers
    assert any(word in flag for flag in scan.flags)


def test_millimetres_that_are_called_metres_stay_millimetres(tmp_path: Path) -> None:
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored_numbers("int16"), units=1))
    assert max(scan.zooms_mm) < 3
    assert any("metres, which is not plausible" in flag for flag in scan.flags)


def test_two_orientations_that_disagree_are_flagged(tmp_path: Path) -> None:
    image = nib.Nifti1Image(stored_numbers("int16"), OBLIQUE)
    image.set_sform(OBLIQUE, code=1)
    image.set_qform(np.diag([-2.0, 2.0, 2.0, 1.0]), code=1)
    nib.save(image, tmp_path / "a.nii")
    assert any("disagree" in flag for flag in read_scan(tmp_path / "a.nii").flags)
    image.set_qform(np.diag([-2.0, 2.0, 2.0, 1.0]), code=4)
    nib.save(image, tmp_path / "b.nii")
    assert read_scan(tmp_path / "b.nii").flags == ()


def test_infinite_voxels_are_set_to_zero_and_counted(tmp_path: Path) -> None:
    stored = stored_numbers("float32")
    stored[0, 0, :3] = np.nan, np.inf, -np.inf
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored))
    assert any(flag.startswith("3 voxels") for flag in scan.flags)
    assert np.isfinite(scan.voxels).all()
    assert (scan.voxels == 0).sum() == 3


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_compression_is_told_from_the_content(name: str, tmp_path: Path) -> None:
    content = unpacked(write_nifti(tmp_path / "right.nii", stored_numbers("int16")))
    (tmp_path / name).write_bytes(content if name.endswith("gz") else gzip.compress(content))
    scan = read_scan(tmp_path / name)
    assert np.array_equal(scan.voxels, read_scan(tmp_path / "right.nii").voxels)
    assert any("unlike its name says" in flag for flag in scan.flags)


@pytest.mark.parametrize("name", ["pair.hdr", "packed_pair.hdr.gz", "analyze.hdr"])
def test_a_pair_is_read_by_either_name(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path / name)
    assert np.array_equal(read_scan(path).voxels, read_scan(_partner(path)).voxels)


# ----- refusals


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
    "single bits": ("a.nii", _field(70, np.int16(1).tobytes()), "unknown data type"),
    "voxels inside the header": ("a.nii", _field(108, np.float32(12).tobytes()), "begin where they cannot"),
    "voxels nowhere": ("a.nii", _field(108, np.float32(np.nan).tobytes()), "begin where they cannot"),
    "voxels far away": ("a.nii", _field(108, np.float32(2**30).tobytes()), "header claims to be very long"),
    "slope without intercept": ("a.nii", _field(112, np.float32([2, np.nan]).tobytes()), "shifts by none"),
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
        lambda path: _partner(write_nifti(path, stored_numbers("int16"), pair=True)).unlink(),
        "a.img: there is no such file",
    ),
    "half of a pair called a file": (
        "a.nii",
        lambda path: write_nifti(path, stored_numbers("int16"), pair=True),
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


def test_reading_holds_little_more_than_the_scan(tmp_path: Path) -> None:
    stored = stored_numbers("int16", (96, 96, 96))
    path = write_nifti(tmp_path / "a.nii.gz", stored, slope=0.5)
    tracemalloc.start()
    voxels = read_scan(path).voxels
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The decoded 3.4 MiB once; a slab of 1 MiB, its values in float64 (4 MiB) and once more scaled.
    assert peak < voxels.nbytes + 13 * 2**20


# ----- writing


def test_a_scan_made_in_memory_is_read_back_equal(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    voxels = generator.normal(size=(5, 7, 6, 9)).astype(np.float32)
    affine = np.diag([2.0, 2.5, 3.0, 1.0])
    affine[:3, 3] = -7, -8, -9
    write_scan(Scan(voxels=voxels, affine=affine, repetition_time_s=0.72), tmp_path / "a.nii.gz")
    again = read_scan(tmp_path / "a.nii.gz")
    assert np.array_equal(again.voxels, voxels)
    assert np.array_equal(again.affine, affine)
    assert again.repetition_time_s == 0.72
    assert again.flags == ()
    assert nib.load(tmp_path / "a.nii.gz").header.get_xyzt_units() == ("mm", "sec")


def test_equal_scans_give_equal_bytes(tmp_path: Path) -> None:
    scan = Scan(voxels=stored_numbers("int16"), affine=np.eye(4))
    write_scan(scan, tmp_path / "a.nii.gz")
    write_scan(scan, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_long_axis_gets_a_nifti_2_header(tmp_path: Path) -> None:
    voxels = np.arange(40_000 * 4, dtype=np.int32).reshape(40_000, 2, 2)
    write_scan(Scan(voxels=voxels, affine=np.eye(4)), tmp_path / "a.nii")
    assert np.array_equal(read_scan(tmp_path / "a.nii").voxels, voxels)
    assert isinstance(nib.load(tmp_path / "a.nii"), nib.Nifti2Image)


def test_an_encoding_is_kept_without_a_source(tmp_path: Path) -> None:
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored_numbers("int16"), slope=0.37, intercept=4.0))
    write_scan(dataclasses.replace(scan, source=None), tmp_path / "b.nii")
    again = read_scan(tmp_path / "b.nii")
    assert np.array_equal(again.voxels, scan.voxels)
    assert again.encoding is not None
    assert again.encoding.dtype == "int16"


@pytest.mark.parametrize("dtype", [np.float16, np.bool_, np.complex64])
def test_a_dtype_that_nifti_has_not_is_refused(dtype: type, tmp_path: Path) -> None:
    scan = Scan(voxels=np.eye(4)[..., None].repeat(4, 2).astype(dtype), affine=np.eye(4))
    with pytest.raises(ScanError):
        write_scan(scan, tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", stored_numbers("int16"))
    scan, before = read_scan(path), path.read_bytes()
    changed = dataclasses.replace(scan, voxels=scan.voxels[::-1])
    with pytest.raises(ScanError, match="already"):
        write_scan(changed, path)
    assert path.read_bytes() == before
    write_scan(changed, path, overwrite=True)
    assert np.array_equal(read_scan(path).voxels, changed.voxels)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_a_failed_write_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    source = write_nifti(tmp_path / f"s{name[1:]}", stored_numbers("int16"), slope=0.5, pair=name == "a.hdr")
    scan = read_scan(source)
    voxels = scan.voxels.copy()
    voxels[-1, -1, -1] = 1e9  # found only when the last voxels are encoded
    with pytest.raises(ScanError, match="do not fit the encoding"):
        write_scan(dataclasses.replace(scan, voxels=voxels), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {source.name, _partner(source).name}


def test_a_failed_overwrite_keeps_the_old_file(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", stored_numbers("int16"), slope=0.5)
    scan, before = read_scan(path), path.read_bytes()
    with pytest.raises(ScanError, match="do not fit"):
        write_scan(dataclasses.replace(scan, voxels=scan.voxels + np.float32(0.2)), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_values_between_the_steps_of_an_unscaled_file_are_refused(tmp_path: Path) -> None:
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored_numbers("int16")))
    with pytest.raises(ScanError, match="write_map"):
        write_scan(dataclasses.replace(scan, voxels=scan.voxels * 0.5), tmp_path / "b.nii")


@pytest.mark.parametrize("name", ["a.mgz", "a.hdr", "a.img", "a.txt"])
def test_a_name_of_another_format_is_refused(name: str, tmp_path: Path) -> None:
    scan = read_scan(write_nifti(tmp_path / "s.nii", stored_numbers("int16")))
    for written in (scan, dataclasses.replace(scan, source=None)):
        with pytest.raises(ScanError):
            write_scan(written, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["s.nii"]


@pytest.mark.parametrize(
    "change",
    [
        lambda scan: {"voxels": scan.voxels[1:]},
        lambda scan: {"voxels": np.stack([scan.voxels, scan.voxels])},
        lambda scan: {"affine": scan.affine + np.eye(4, k=3)},
    ],
)
def test_a_scan_that_left_its_grid_is_refused(change, tmp_path: Path) -> None:
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored_numbers("int16")))
    with pytest.raises(ScanError, match="no longer lies on the grid"):
        write_scan(dataclasses.replace(scan, **change(scan)), tmp_path / "b.nii")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="folder to write into"):
        write_scan(Scan(voxels=stored_numbers("int16"), affine=np.eye(4)), tmp_path / "none" / "a.nii")


# ----- maps


_MAP_NAMES = [*SAMPLES, "series.nii.gz over", "packed.nii.gz over"]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_map_lies_on_the_grid_of_its_source(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path / name)
    scan = read_scan(path)
    values = np.random.default_rng(1).normal(size=scan.grid_shape).astype(np.float32)
    (tmp_path / "maps").mkdir()
    map_path = tmp_path / "maps" / name
    write_map(values, scan, map_path)
    source, written = _nibabel(path), _nibabel(map_path)
    assert written.shape == source.shape[:3]
    assert np.array_equal(written.affine, source.affine)
    assert written.get_data_dtype() == np.float32
    assert np.array_equal(written.get_fdata(dtype=np.float32), map_to_source(values, scan))
    again = read_scan(map_path)
    assert np.array_equal(again.voxels, values)
    assert np.array_equal(again.affine, scan.affine)


@pytest.mark.parametrize("name", ["series.mgz", "analyze.hdr", "pair.hdr"])
def test_a_map_in_another_format_lies_on_the_same_grid(name: str, tmp_path: Path) -> None:
    scan = read_scan(SAMPLES[name](tmp_path / name))
    values = np.random.default_rng(1).normal(size=scan.grid_shape).astype(np.float32)
    write_map(values, scan, tmp_path / "map.nii.gz")
    written = nib.load(tmp_path / "map.nii.gz")
    assert scan.source is not None
    assert np.allclose(written.affine, scan.source.affine, rtol=0, atol=AFFINE_TOLERANCE_MM)
    assert np.array_equal(written.get_fdata(dtype=np.float32), map_to_source(values, scan))


def test_a_map_keeps_the_extensions_of_its_source(tmp_path: Path) -> None:
    extension = comment(b"who did what")
    scan = read_scan(write_nifti(tmp_path / "a.nii", stored_numbers("int16"), slope=0.5, extension=extension))
    write_map(np.ones(scan.grid_shape), scan, tmp_path / "map.nii")
    written = nib.load(tmp_path / "map.nii")
    assert written.header.extensions[0].get_content().rstrip(b"\0") == b"who did what"
    assert bytes(written.header["descrip"]).rstrip(b"\0") == b"kept as it is"
    assert (written.get_fdata() == 1).all()


def test_a_map_over_a_scan_made_in_memory_lies_on_its_grid(tmp_path: Path) -> None:
    scan = Scan(voxels=stored_numbers("int16"), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    values = np.random.default_rng(1).normal(size=scan.grid_shape)
    write_map(values, scan, tmp_path / "map.nii")
    assert np.array_equal(read_scan(tmp_path / "map.nii").voxels, values.astype(np.float32))


def test_a_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    scan = read_scan(PUMI_T1)
    with pytest.raises(ScanError, match="another shape"):
        write_map(np.zeros((2, 2, 2)), scan, tmp_path / "map.nii")


def test_a_footer_is_kept_whatever_it_holds(tmp_path: Path) -> None:
    footer = mgh_footer(2000.0) + bytes(range(256))
    path = write_mgh(tmp_path / "a.mgh", stored_numbers("int16", (*SHAPE, 2)), footer=footer)
    write_scan(read_scan(path), tmp_path / "b.mgh")
    assert (tmp_path / "b.mgh").read_bytes().endswith(footer)

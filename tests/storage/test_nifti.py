import gzip
import tempfile
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from faulty_scans import PUMI_BOLD, PUMI_T1
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_samples import OBLIQUE, SAMPLES, open_with_nibabel, partner, stored_numbers, unpacked, write_nifti

from neuroray.storage.nifti import read_scan, write_scan
from neuroray.storage.scan import Encoding

# Values are rounded to float32 once: half a unit in 2**-23.
FLOAT32_ROUNDING = 2.0**-23
# Headers keep affines in float32, and nibabel's MGH affine is computed in it: 50 mm * 2**-23 * a few operations.
AFFINE_TOLERANCE_MM = 5e-5


@pytest.mark.parametrize("name", SAMPLES)
def test_values_and_places_are_those_that_nibabel_reads(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path / name)
    scan = read_scan(path)
    image = nib.funcs.squeeze_image(open_with_nibabel(path))
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
    if partner(path) != path:
        assert unpacked(partner(again)) == unpacked(partner(path))
    assert {file.name for file in again.parent.iterdir()} == {again.name, partner(again).name}


_FLAGGED = {
    "one_frame.nii.gz": "single frame",
    "analyze.hdr": "no orientation",
    "analyze_big.hdr": "no orientation",
    "no_orientation.mgz": "no orientation",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_only_what_is_unusual_is_flagged(name: str, tmp_path: Path) -> None:
    flags = read_scan(SAMPLES[name](tmp_path / name)).flags
    assert len(flags) == (name in _FLAGGED)
    assert all(_FLAGGED[name] in flag for flag in flags)


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
        "slope": draw(st.floats(2.0**-20, 2.0**20, width=32)) * draw(st.sampled_from([-1, 1])),
        "intercept": draw(st.floats(-(2.0**20), 2.0**20, width=32)),
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
        write_scan(read_scan(path), Path(folder) / "b.nii")
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
    assert np.array_equal(read_scan(path).voxels, read_scan(partner(path)).voxels)


def test_reading_holds_little_more_than_the_scan(tmp_path: Path) -> None:
    stored = stored_numbers("int16", (96, 96, 96))
    path = write_nifti(tmp_path / "a.nii.gz", stored, slope=0.5)
    tracemalloc.start()
    voxels = read_scan(path).voxels
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The decoded 3.4 MiB once; a slab of 1 MiB, its values in float64 (4 MiB) and once more scaled.
    assert peak < voxels.nbytes + 13 * 2**20

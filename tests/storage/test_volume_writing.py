import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from faulty_scans import PUMI_T1
from volume_samples import (
    SAMPLES,
    SHAPE,
    comment,
    mgh_footer,
    open_with_nibabel,
    partner,
    stored_numbers,
    write_mgh,
    write_nifti,
)

from neuroray.storage.nifti import ScanError, map_to_source, read_scan, write_map, write_scan
from neuroray.storage.scan import Scan

# Headers keep affines in float32, and nibabel's MGH affine is computed in it: 50 mm * 2**-23 * a few operations.
AFFINE_TOLERANCE_MM = 5e-5


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
    assert {path.name for path in tmp_path.iterdir()} == {source.name, partner(source).name}


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


@pytest.mark.parametrize("name", SAMPLES)
def test_a_map_lies_on_the_grid_of_its_source(name: str, tmp_path: Path) -> None:
    path = SAMPLES[name](tmp_path / name)
    scan = read_scan(path)
    values = np.random.default_rng(1).normal(size=scan.grid_shape).astype(np.float32)
    (tmp_path / "maps").mkdir()
    map_path = tmp_path / "maps" / name
    write_map(values, scan, map_path)
    source, written = open_with_nibabel(path), open_with_nibabel(map_path)
    assert written.shape == source.shape[:3]
    assert np.array_equal(written.affine, source.affine)
    assert written.get_data_dtype().newbyteorder("=") == np.float32
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

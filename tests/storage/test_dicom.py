"""DICOM series come in with their geometry and without a person's name; what is no single image is refused."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dcm2niix")
pytest.importorskip("pydicom")

from dicom_samples import COMMENT, PATIENT_ID, PERSON, write_series

from neuroray.storage import dicom
from neuroray.storage.bids import ScanFile
from neuroray.storage.fetching import fetch_file, unpack
from neuroray.storage.nifti import read_scan
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.sources import list_source

LIMIT_BYTES = 2**24


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4000, (9, 11, 7)).astype(np.uint16)


def take(file: ScanFile) -> Scan:
    fetched = unpack(file, fetch_file(file, max_bytes=LIMIT_BYTES), max_bytes=LIMIT_BYTES)
    try:
        return read_scan(fetched.path)
    finally:
        fetched.discard()
        assert not fetched.path.exists()


def test_a_series_becomes_a_scan_in_ras_with_its_spacing(voxels: np.ndarray, tmp_path: Path):
    write_series(tmp_path / "anna/t1", voxels)
    [scan] = [take(listed.file) for listed in list_source(str(tmp_path)).scans]
    # DICOM's axes run to the left and to the back.
    np.testing.assert_array_equal(scan.voxels, voxels[::-1, ::-1])
    assert scan.zooms_mm == pytest.approx((2, 2, 3))
    np.testing.assert_allclose(scan.affine @ [8, 10, 0, 1], [10, 12, 0, 1])  # the first voxel written


def test_no_name_id_or_comment_comes_through(voxels: np.ndarray, tmp_path: Path):
    write_series(tmp_path / "anna/t1", voxels)
    [file] = [listed.file for listed in list_source(str(tmp_path)).scans]
    fetched = unpack(file, fetch_file(file, max_bytes=LIMIT_BYTES), max_bytes=LIMIT_BYTES)
    kept = fetched.path.read_bytes() + repr((file, fetched.sidecar)).encode()
    fetched.discard()
    for secret in (PERSON, "Doe", PATIENT_ID, COMMENT, "1970", "101112", "2020"):
        assert secret.encode() not in kept
    assert fetched.sidecar["MagneticFieldStrength"] == 3


def test_series_of_one_folder_are_told_apart_and_named_by_folders(voxels: np.ndarray, tmp_path: Path):
    write_series(tmp_path / "sub-1/ses-a/dicom", voxels, number=3)
    write_series(tmp_path / "sub-1/ses-a/dicom", voxels[:, :, :5], number=4, protocol="ep2d_bold")
    write_series(tmp_path / "sub-1/ses-a/other", voxels[:, :, :6], number=5)
    (tmp_path / "sub-1").rename(tmp_path / "p1")  # a BIDS folder keeps its DICOM files in sourcedata
    files = [listed.file for listed in list_source(str(tmp_path)).scans]
    assert {(file.subject, file.session) for file in files} == {("p1", "a")}
    assert {take(file).grid_shape[2]: file.suffix for file in files} == {7: "T1w", 5: "bold", 6: "T1w"}
    assert len({file.scan_id for file in files}) == 3


def test_a_changed_slice_changes_the_digest(voxels: np.ndarray, tmp_path: Path):
    write_series(tmp_path / "t1", voxels)
    [file] = [listed.file for listed in list_source(str(tmp_path)).scans]
    before = fetch_file(file, max_bytes=LIMIT_BYTES).sha256
    assert fetch_file(file, max_bytes=LIMIT_BYTES).sha256 == before
    one = sorted((tmp_path / "t1").iterdir())[3]
    content = bytearray(one.read_bytes())
    content[-1] ^= 1
    one.write_bytes(content)
    assert fetch_file(file, max_bytes=LIMIT_BYTES).sha256 != before


def test_files_cut_short_are_refused_without_what_dcm2niix_prints(voxels: np.ndarray, tmp_path: Path):
    write_series(tmp_path / "t1", voxels)
    [file] = [listed.file for listed in list_source(str(tmp_path)).scans]
    for path in (tmp_path / "t1").iterdir():
        path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ScanError, match=r"^t1: ") as caught:
        take(file)
    assert "Doe" not in str(caught.value)


def test_without_dcm2niix_the_error_says_what_to_install(
    voxels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_series(tmp_path / "t1", voxels)
    monkeypatch.setitem(__import__("sys").modules, "dcm2niix", None)
    with pytest.raises(ScanError, match=r"pip install 'neuroray\[dicom\]'"):
        list_source(str(tmp_path))
    assert dicom.converter_version() == ""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from contracts.stored_scans import assert_same_scan, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuroray.storage.nifti import read_scan, write_scan
from neuroray.storage.scan import Encoding, Scan
from neuroray.storage.store import ScanStore

REAL_T1 = Path(__file__).parents[1] / "data" / "pumi" / "sub-001" / "anat" / "sub-001_T1w.nii.gz"


def stored_dtype(scans: ScanStore, path: str) -> str:
    return json.loads(scans.location.read_bytes(f"{path}/voxels/zarr.json"))["data_type"]


def decode(stored: np.ndarray, encoding: Encoding, dtype: str) -> np.ndarray:
    return (stored.astype(np.float64) * encoding.slope + encoding.intercept).astype(dtype)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "int64"]),
    value_dtype=st.sampled_from(["float32", "float64"]),
    slope=st.floats(-1e6, 1e6, allow_subnormal=False).filter(bool),
    intercept=st.floats(-1e6, 1e6),
    seed=st.integers(0, 2**32),
)
def test_values_come_back_bit_for_bit_whatever_the_scale(
    tmp_path: Path, dtype: str, value_dtype: str, slope: float, intercept: float, seed: int
):
    limits = np.iinfo(dtype)
    stored = np.random.default_rng(seed).integers(limits.min, limits.max, (3, 7, 5), dtype=dtype, endpoint=True)
    encoding = Encoding(dtype=dtype, slope=slope, intercept=intercept)
    scan = Scan(voxels=decode(stored, encoding, value_dtype), affine=np.eye(4), encoding=encoding)
    scans = ScanStore.create(tmp_path / "store")
    write(scans, scan, "a")
    assert_same_scan(scans.read("a"), scan)


@pytest.mark.parametrize("slope", [0.0137, 1 / 3, 2.0, -0.5, float(np.float32(0.36295640))])
@pytest.mark.parametrize("intercept", [0.0, -1024.0, 3.3])
def test_integers_of_the_file_are_kept_as_integers(tmp_path: Path, slope: float, intercept: float):
    every_number = np.arange(-(2**15), 2**15, dtype=np.int16).reshape(64, 32, 32)
    encoding = Encoding(dtype="int16", slope=slope, intercept=intercept)
    scans = ScanStore.create(tmp_path / "store")
    record = write(scans, Scan(voxels=decode(every_number, encoding, "float64"), affine=np.eye(4), encoding=encoding))
    assert stored_dtype(scans, record.path) == "int16"


def test_one_value_off_the_steps_keeps_them_all_as_values(tmp_path: Path):
    encoding = Encoding(dtype="int16", slope=0.5)
    voxels = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    voxels[2, 3, 4] = np.nextafter(np.float32(29.5), np.float32(30))
    scans = ScanStore.create(tmp_path / "store")
    scan = Scan(voxels=voxels, affine=np.eye(4), encoding=encoding)
    record = write(scans, scan, "a")
    assert stored_dtype(scans, record.path) == "float32"
    assert_same_scan(scans.read("a"), scan)


def test_a_real_scan_goes_back_into_its_file(tmp_path: Path):
    scan = read_scan(REAL_T1)
    scans = ScanStore.create(tmp_path / "store")
    write(scans, scan, "a")
    write_scan(scan, tmp_path / "straight.nii.gz")
    write_scan(scans.read("a"), tmp_path / "through the store.nii.gz")
    straight, through = read_scan(tmp_path / "straight.nii.gz"), read_scan(tmp_path / "through the store.nii.gz")
    assert_same_scan(through, straight)
    np.testing.assert_array_equal(through.voxels, scan.voxels, strict=True)

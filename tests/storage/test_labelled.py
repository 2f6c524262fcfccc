"""`open_scan`: axes with names, places in mm and s, and nothing read before it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroray.storage.faults import StoreError
from neuroray.storage.labelled import open_scan
from neuroray.storage.scan import Encoding, Scan
from neuroray.storage.store import ScanStore

AFFINE = np.array([[2.0, 0, 0, -8], [0, 3.0, 0, -15], [0, 0, 4.0, -12], [0, 0, 0, 1]])
OBLIQUE = np.array([[2.0, 0.1, 0, -8], [-0.1, 3.0, 0.2, -15], [0, -0.2, 4.0, -12], [0, 0, 0, 1]])


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    store = ScanStore.create(tmp_path)
    stored = np.random.default_rng(0).integers(0, 900, (11, 7, 9, 5)).astype(np.int16)
    values = (stored * 0.25 - 3).astype(np.float32)
    encoding = Encoding(dtype="int16", slope=0.25, intercept=-3)
    series = Scan(voxels=values, affine=AFFINE, repetition_time_s=0.72, encoding=encoding)
    store.write(series, scan_id="run", subject="01", modality="bold")
    store.write(Scan(voxels=values[0], affine=OBLIQUE), scan_id="t1", subject="01", modality="T1w")
    store.write(Scan(voxels=values, affine=AFFINE), scan_id="no-time", subject="01", modality="bold")
    return store


def test_values_and_places_are_those_of_the_scan(store: ScanStore):
    array = open_scan(f"{store.uri}#run")
    scan = store.read("run")
    assert array.dims == ("time", "x", "y", "z")
    assert array.dtype == scan.voxels.dtype
    np.testing.assert_array_equal(array.values, scan.voxels)
    assert array.time.values[:3].tolist() == [0, 0.72, 1.44]
    assert (array.x.values[1], array.y.values[2], array.z.values[3]) == (-6, -9, 0)
    assert (array.time.attrs["units"], array.z.attrs["units"]) == ("s", "mm")
    near = array.sel(x=0.4, y=0.2, z=-0.5, method="nearest").values
    np.testing.assert_array_equal(near, scan.voxels[:, 4, 5, 3])


def test_an_oblique_scan_is_placed_along_its_middle_lines_and_keeps_its_affine(store: ScanStore):
    array = open_scan(f"{store.uri}#t1")
    assert array.dims == ("x", "y", "z")
    assert array.z.values[4] == pytest.approx((OBLIQUE @ [3, 4, 4, 1])[2])
    np.testing.assert_array_equal(array.attrs["affine"], OBLIQUE)


def test_without_a_repetition_time_frames_are_counted_and_said_to_be(store: ScanStore):
    array = open_scan(f"{store.uri}#no-time")
    assert array.time.values.tolist() == list(range(11))
    assert array.attrs["time_unit"] == "frames"


def test_only_the_frames_asked_for_are_read(store: ScanStore, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[slice, ...]] = []
    plain = ScanStore.read_block
    monkeypatch.setattr(ScanStore, "read_block", lambda self, i, s: (seen.append(s), plain(self, i, s))[1])
    monkeypatch.setattr(ScanStore, "chunk_shape", lambda self, scan_id: (2, 7, 9, 5))
    array = open_scan(f"{store.uri}#run")
    assert seen == []
    np.testing.assert_array_equal(array[4:6].values, store.read_window("run", 4, 6))
    assert [(one[0].start, one[0].stop) for one in seen] == [(4, 6)]


def test_a_scan_opened_stays_what_it_was(store: ScanStore):
    array = open_scan(f"{store.uri}#t1")
    before = store.read("t1").voxels
    store.write(Scan(voxels=before + 1, affine=OBLIQUE), scan_id="t1", subject="01", modality="T1w")
    np.testing.assert_array_equal(array.values, before)
    np.testing.assert_array_equal(open_scan(f"{store.uri}#t1").values, before + 1)


def test_an_address_without_a_scan_is_told(store: ScanStore):
    with pytest.raises(StoreError, match="STORE#SCAN_ID"):
        open_scan(store.uri)
    with pytest.raises(StoreError, match="no scan 'nobody'"):
        open_scan(f"{store.uri}#nobody")

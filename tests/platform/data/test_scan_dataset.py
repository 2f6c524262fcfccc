from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuroray.platform.data.dataset import scan_dataset
from neuroray.storage.bids import Participant
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore, StoreError

pytestmark = pytest.mark.ray


def test_a_row_per_scan_in_the_order_given_whatever_its_shape(ray_session: Any, store: ScanStore) -> None:
    wanted = ["scan-2", "scan-0", "scan-4"]
    rows = scan_dataset(store.uri, store.version, wanted).take_all()
    assert [row["scan_id"] for row in rows] == wanted
    for row in rows:
        scan = store.read(row["scan_id"])
        assert row["voxels"].dtype == np.float32
        assert np.array_equal(row["voxels"], scan.voxels)
        assert np.array_equal(row["affine"], scan.affine)
        assert tuple(row["spacing_mm"]) == scan.zooms_mm
        assert (row["subject"], row["diagnosis"], row["age_years"]) == (f"s{row['scan_id'][-1]}", None, None)


def test_the_version_stays_the_one_of_the_start(ray_session: Any, store: ScanStore) -> None:
    dataset = scan_dataset(store.uri, None, ["scan-0"])
    old = store.read("scan-0")
    person = Participant(subject="s0", age_years=40.0, sex="F", diagnosis="patient")
    store.write(
        Scan(voxels=old.voxels + 1, affine=old.affine),
        scan_id="scan-0",
        subject="s0",
        modality="T1w",
        participant=person,
    )
    (row,) = dataset.take_all()
    assert np.array_equal(row["voxels"], old.voxels)
    (row,) = scan_dataset(store.uri, None, ["scan-0"]).take_all()
    assert np.array_equal(row["voxels"], old.voxels + 1)
    assert (row["age_years"], row["sex"], row["diagnosis"]) == (40.0, "F", "patient")


def test_an_unknown_scan_is_refused_before_anything_is_read(ray_session: Any, store: ScanStore) -> None:
    with pytest.raises(StoreError, match="no scan nobody"):
        scan_dataset(store.uri, None, ["scan-0", "nobody"])

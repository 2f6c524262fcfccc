from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from neuroray.platform.data.collate import size_bytes
from neuroray.platform.data.plan import PlanError, ReadItem
from neuroray.platform.data.readers import FeatureReader, RowCache, ScanReader
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore, StoreError

FINGERPRINT = "5a" * 32


def make_features(seed: int) -> FeatureSet:
    return FeatureSet(
        features=np.random.default_rng(seed).standard_normal((6, 4), dtype=np.float32),
        mask=np.arange(6) < 5,
        position_mm=np.linspace(-10, 10, 6, dtype=np.float32),
        slice_index=np.array([3, 4, 5, 6, 7, -1]),
    )


@pytest.fixture
def features(store: ScanStore) -> FeatureStore:
    features = FeatureStore(store, FINGERPRINT)
    for seed, record in enumerate(store.records()):
        features.write(record, make_features(seed))
    return features


def test_a_feature_row_is_what_was_written_with_its_label(store: ScanStore, features: FeatureStore) -> None:
    reader = FeatureReader(store.uri, store.version, FINGERPRINT, labels={"scan-1": 1, "scan-2": 61.5})
    written = make_features(1)
    row = reader(ReadItem(scan_id="scan-1"))
    assert {name: values.dtype for name, values in row.items()} == {
        "features": np.float32,
        "mask": np.bool_,
        "position_mm": np.float32,
        "label": np.int64,
    }
    assert np.array_equal(row["features"], written.features)
    assert np.array_equal(row["mask"], written.mask)
    assert np.array_equal(row["position_mm"], written.position_mm)
    assert row["label"] == 1
    measure = reader(ReadItem(scan_id="scan-2"))["label"]
    assert (measure, measure.dtype) == (np.float32(61.5), np.float32)


def test_rows_without_labels_have_no_label(store: ScanStore, features: FeatureStore) -> None:
    assert "label" not in FeatureReader(store.uri, store.version, FINGERPRINT)(ReadItem(scan_id="scan-0"))


def test_a_missing_label_is_told_not_guessed(store: ScanStore, features: FeatureStore) -> None:
    reader = FeatureReader(store.uri, store.version, FINGERPRINT, labels={"scan-1": 1})
    with pytest.raises(PlanError, match="no label for scan-0"):
        reader(ReadItem(scan_id="scan-0"))


def test_a_row_is_read_once_and_nobody_can_spoil_it(store: ScanStore, features: FeatureStore) -> None:
    reader = FeatureReader(store.uri, store.version, FINGERPRINT)
    row = reader(ReadItem(scan_id="scan-0"))
    for path in Path(store.uri, "features").rglob("c"):
        path.rename(path.with_name("gone"))
    assert np.array_equal(reader(ReadItem(scan_id="scan-0"))["features"], row["features"])
    with pytest.raises(ValueError, match="read-only"):
        row["features"][0, 0] = 0
    with pytest.raises(StoreError, match="scan-1"):
        reader(ReadItem(scan_id="scan-1"))


def test_a_pickled_reader_reads_the_same_and_carries_no_rows(store: ScanStore, features: FeatureStore) -> None:
    reader = FeatureReader(store.uri, store.version, FINGERPRINT, labels={"scan-0": 0})
    before = len(pickle.dumps(reader))
    row = reader(ReadItem(scan_id="scan-0"))
    assert len(pickle.dumps(reader)) == before
    again = pickle.loads(pickle.dumps(reader))(ReadItem(scan_id="scan-0"))
    assert all(np.array_equal(again[name], row[name]) for name in row)


def test_a_scan_row_holds_values_and_geometry(store: ScanStore) -> None:
    row = ScanReader(store.uri, store.version, labels={"scan-2": 0})(ReadItem(scan_id="scan-2"))
    scan = store.read("scan-2")
    assert row["voxels"].dtype == np.float32
    assert np.array_equal(row["voxels"], scan.voxels)
    assert np.array_equal(row["affine"], scan.affine)
    assert tuple(row["spacing_mm"]) == scan.zooms_mm


def test_a_window_is_that_part_of_the_run(store: ScanStore) -> None:
    row = ScanReader(store.uri, store.version)(ReadItem(scan_id="scan-4", start=3, stop=8))
    assert np.array_equal(row["voxels"], store.read("scan-4").voxels[3:8])


@pytest.mark.parametrize(
    "item",
    [
        ReadItem(scan_id="scan-2"),
        ReadItem(scan_id="scan-4"),
        ReadItem(scan_id="scan-4", start=0, stop=1),
    ],
)
def test_sizes_are_known_before_reading(store: ScanStore, item: ReadItem) -> None:
    reader = ScanReader(store.uri, store.version, labels={item.scan_id: 1})
    assert reader.size_bytes(item) == size_bytes(reader(item))


def test_the_size_of_features_is_that_of_a_row(store: ScanStore, features: FeatureStore) -> None:
    reader = FeatureReader(store.uri, store.version, FINGERPRINT)
    item = ReadItem(scan_id="scan-3")
    assert reader.size_bytes(item) == size_bytes(reader(item)) == 6 * 4 * 4 + 6 + 6 * 4


@pytest.mark.parametrize("scan_id", ["scan-4", "scan-0"])
def test_a_window_that_is_not_there_is_refused(store: ScanStore, scan_id: str) -> None:
    with pytest.raises(PlanError, match=f"{scan_id} has no such window.*frames 10 to 13"):
        ScanReader(store.uri, store.version)(ReadItem(scan_id=scan_id, start=10, stop=13))


def test_features_have_no_windows(store: ScanStore, features: FeatureStore) -> None:
    with pytest.raises(PlanError, match="no frames"):
        FeatureReader(store.uri, store.version, FINGERPRINT)(ReadItem(scan_id="scan-4", start=0, stop=1))


def test_a_scan_unknown_to_the_pinned_version_is_an_error(store: ScanStore) -> None:
    version = store.version
    store.write(
        Scan(voxels=np.arange(8.0).reshape(2, 2, 2), affine=np.eye(4)), scan_id="later", subject="s", modality="T1w"
    )
    with pytest.raises(StoreError, match=f"no scan later in .* at version {version}"):
        ScanReader(store.uri, version)(ReadItem(scan_id="later"))


def test_a_cache_keeps_the_rows_used_last_within_its_bytes() -> None:
    cache = RowCache(limit_bytes=100)
    items = [ReadItem(scan_id=str(index)) for index in range(4)]
    rows = [{"x": np.full(10, index, np.float32)} for index in range(4)]
    for item, row in zip(items[:2], rows[:2], strict=True):
        cache.put(item, row)
    assert cache.get(items[0]) is rows[0]
    cache.put(items[2], rows[2])
    assert [cache.get(item) is not None for item in items] == [True, False, True, False]
    cache.put(items[3], {"x": np.zeros(26, np.float32)})  # 104 bytes fit nowhere, and drive nothing out
    assert [cache.get(item) is not None for item in items] == [True, False, True, False]


@pytest.mark.s3
def test_a_bucket_is_read_like_a_folder(store: ScanStore, s3_bucket: str) -> None:
    remote = ScanStore.create(f"{s3_bucket}/store")
    remote.write(store.read("scan-4"), scan_id="scan-4", subject="s4", modality="bold")
    features = FeatureStore(remote, FINGERPRINT)
    features.write(remote.record("scan-4"), make_features(4))
    window = ReadItem(scan_id="scan-4", start=2, stop=5)
    row = pickle.loads(pickle.dumps(ScanReader(remote.uri, remote.version)))(window)
    assert np.array_equal(row["voxels"], store.read("scan-4").voxels[2:5])
    row = FeatureReader(remote.uri, remote.version, FINGERPRINT)(ReadItem(scan_id="scan-4"))
    assert np.array_equal(row["features"], make_features(4).features)

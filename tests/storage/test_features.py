from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from contracts.stored_scans import FailingWrites, make_scan, write

from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.store import ScanStore, StoreError

ENCODER = "0123456789abcdef" * 4


def make_features(seed: int = 0, num_slices: int = 7) -> FeatureSet:
    draw = np.random.default_rng(seed)
    index = np.arange(10, 10 + num_slices)
    index[-2:] = -1
    return FeatureSet(
        features=draw.normal(size=(num_slices, 65)).astype(np.float32),
        mask=index >= 0,
        position_mm=(index * 2.5 - 90).astype(np.float32),
        slice_index=index,
    )


def assert_same_features(found: FeatureSet, expected: FeatureSet) -> None:
    for field in dataclasses.fields(FeatureSet):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), strict=True)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def scans(request: pytest.FixtureRequest, tmp_path: Path) -> ScanStore:
    if request.param == "folder":
        return ScanStore.create(tmp_path / "store")
    return ScanStore.create(request.getfixturevalue("s3_bucket") + "/store")


def test_features_are_read_back_bit_for_bit(scans: ScanStore):
    record = write(scans, make_scan("zeros"), "a")
    FeatureStore(scans, ENCODER).write(record, make_features())
    assert_same_features(FeatureStore(ScanStore(scans.uri), ENCODER).read("a"), make_features())


def test_what_is_missing_is_what_has_not_been_written(scans: ScanStore):
    records = [write(scans, make_scan("zeros"), name) for name in ("a", "b", "c")]
    features = FeatureStore(scans, ENCODER)
    assert features.missing(["c", "a"]) == ["c", "a"]
    batch = [features.write(record, make_features(), commit=False) for record in records[:2]]
    assert features.records() == {}
    features.commit(batch)
    assert features.missing(["c", "b", "a", "nobody"]) == ["c", "nobody"]
    assert {name: record.num_channels for name, record in features.records().items()} == {"a": 65, "b": 65}
    with pytest.raises(StoreError, match=r"scan 'c' has no features.*neuroray extract"):
        features.read("c")


def test_features_of_other_voxels_are_not_seen(scans: ScanStore):
    old = write(scans, make_scan("int16 volume", seed=1), "a")
    pinned = ScanStore(scans.uri, version=scans.version)
    FeatureStore(scans, ENCODER).write(old, make_features(1))
    new = write(scans, make_scan("int16 volume", seed=2), "a")
    features = FeatureStore(scans, ENCODER)
    assert features.missing(["a"]) == ["a"]
    with pytest.raises(StoreError, match="has no features"):
        features.read("a")
    features.write(new, make_features(2))
    assert_same_features(features.read("a"), make_features(2))
    assert_same_features(FeatureStore(pinned, ENCODER).read("a"), make_features(1))


def test_features_of_the_same_voxels_on_another_grid_are_not_seen(scans: ScanStore):
    scan = make_scan("int16 volume")
    FeatureStore(scans, ENCODER).write(write(scans, scan, "a"), make_features())
    write(scans, dataclasses.replace(scan, affine=np.diag([3.0, 3.0, 3.0, 1.0])), "a")
    assert FeatureStore(scans, ENCODER).missing(["a"]) == ["a"]


def test_new_labels_keep_the_features(scans: ScanStore):
    FeatureStore(scans, ENCODER).write(write(scans, make_scan("zeros"), "a"), make_features())
    write(scans, make_scan("zeros"), "a", session="2")
    assert FeatureStore(scans, ENCODER).missing(["a"]) == []


def test_encoders_do_not_see_each_other(scans: ScanStore):
    FeatureStore(scans, ENCODER).write(write(scans, make_scan("zeros"), "a"), make_features())
    assert FeatureStore(scans, "f" * 64).missing(["a"]) == ["a"]
    with pytest.raises(StoreError, match="another encoder"):
        FeatureStore(scans, ENCODER[:16] + "f" * 48)
    with pytest.raises(StoreError, match="no digest"):
        FeatureStore(scans, "../../elsewhere")


def test_the_same_features_again_change_nothing(scans: ScanStore):
    record = write(scans, make_scan("zeros"), "a")
    FeatureStore(scans, ENCODER, description={"encoder": "dino"}).write(record, make_features())
    objects = scans.location.list()
    FeatureStore(scans, ENCODER).write(record, make_features())
    assert scans.location.list() == objects


def test_a_crash_at_any_object_leaves_no_features(scans: ScanStore, monkeypatch: pytest.MonkeyPatch):
    record = write(scans, make_scan("zeros"), "a")
    failing = FailingWrites(monkeypatch)
    for crashes in range(100):
        failing.left = crashes
        try:
            FeatureStore(scans, ENCODER).write(record, make_features())
        except StoreError:
            assert FeatureStore(ScanStore(scans.uri), ENCODER).missing(["a"]) == ["a"]
        else:
            break
    assert crashes == 4 + 5 + 1  # a chunk of each array, their metadata and the group's, the manifest
    assert_same_features(FeatureStore(scans, ENCODER).read("a"), make_features())


def test_damage_is_an_error_and_never_features(scans: ScanStore):
    record = FeatureStore(scans, ENCODER).write(write(scans, make_scan("zeros"), "a"), make_features())
    place = scans.location.child("features", ENCODER[:16])
    for key, size_bytes in place.list("sets"):
        intact = place.read_bytes(key)
        place.write_bytes(
            key, intact[: size_bytes // 2] + bytes([intact[size_bytes // 2] ^ 4]) + intact[size_bytes // 2 + 1 :]
        )
        if key.endswith(".json") and not key.endswith("manifest.json"):
            assert_same_features(FeatureStore(scans, ENCODER).read("a"), make_features())
        else:
            with pytest.raises(StoreError, match=f"scan a .*{key}"):
                FeatureStore(scans, ENCODER).read("a")
        place.write_bytes(key, intact)
    place.delete(f"{record.path}/mask/c/0")
    with pytest.raises(StoreError, match="mask/c/0: missing"):
        FeatureStore(scans, ENCODER).read("a")


def test_a_pickled_store_reads_what_another_has_begun(scans: ScanStore):
    record = write(scans, make_scan("zeros"), "a")
    early = pickle.loads(pickle.dumps(FeatureStore(scans, ENCODER)))
    assert early.records() == {}
    late = FeatureStore(scans, ENCODER)
    late.write(record, make_features())
    assert_same_features(early.read("a"), make_features())
    assert_same_features(pickle.loads(pickle.dumps(late)).read("a"), make_features())


def test_looking_for_features_writes_nothing(scans: ScanStore):
    write(scans, make_scan("zeros"), "a")
    objects = scans.location.list()
    assert FeatureStore(scans, ENCODER).missing(["a"]) == ["a"]
    assert scans.location.list() == objects


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": np.ones(3, bool)},
        {"features": np.zeros((7, 65))},
        {"features": np.zeros((7, 0), np.float32)},
        {"mask": np.ones(7, np.uint8)},
        {"slice_index": np.zeros(7, np.float32)},
    ],
)
def test_features_that_do_not_fit_together_are_refused(changes: dict[str, np.ndarray]):
    with pytest.raises(StoreError, match="a set of features has"):
        dataclasses.replace(make_features(), **changes)

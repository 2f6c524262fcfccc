"""Withdrawing a person: nothing of them is left in any version, nothing of anybody else is touched."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable

from neuroray.storage.catalogue_history import find_rows
from neuroray.storage.faults import StoreError
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.locations import Location
from neuroray.storage.participants import Participant
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore
from neuroray.storage.withdrawal import withdraw

LEAVES, STAYS = "zacharias", "mira"
FINGERPRINT = "f" * 64


def make_scan(seed: int) -> Scan:
    voxels = np.random.default_rng(seed).integers(0, 99, (5, 6, 7)).astype(np.int16)
    return Scan(voxels=voxels, affine=np.eye(4))


def write(store: ScanStore, subject: str, name: str, seed: int, **labels) -> None:
    person = Participant(subject=subject, **{"age_years": 91.5, "family_id": f"family-{subject}", **labels})
    store.write(make_scan(seed), scan_id=f"{subject}-{name}", subject=subject, modality="T1w", participant=person)


def fill(uri: str | Path) -> ScanStore:
    """Two people; the one who leaves has the lowest and highest labels, a scan that changed, and features."""
    store = ScanStore.create(uri)
    write(store, LEAVES, "a", 1)
    write(store, STAYS, "a", 2, age_years=50.0)
    write(store, LEAVES, "a", 3, age_years=12.25)
    write(store, LEAVES, "b", 4)
    write(store, STAYS, "b", 5, age_years=51.0)
    features = FeatureStore(store, FINGERPRINT)
    for record in store.records():
        some = FeatureSet(
            features=np.ones((2, 3), np.float32),
            mask=np.array([True, True]),
            position_mm=np.zeros(2, np.float32),
            slice_index=np.arange(2),
        )
        features.write(record, some)
    return store


def read_everything(location: Location) -> bytes:
    return b"\n".join(key.encode() + location.read_bytes(key) for key, _ in location.list())


def check_gone(uri: str, before: dict[int, list[str]]) -> None:
    store = ScanStore(uri)
    left = read_everything(store.location)
    for trace in (LEAVES, "91.5", "12.25"):
        assert trace.encode() not in left, trace
    for version, scan_ids in before.items():
        assert [record.scan_id for record in ScanStore(uri, version=version).records()] == scan_ids
    assert store.verify() == []
    np.testing.assert_array_equal(store.read(f"{STAYS}-a").voxels, make_scan(2).voxels)
    features = FeatureStore(store, FINGERPRINT)
    assert features.read(f"{STAYS}-b").features.sum() == 6


def list_versions(store: ScanStore) -> dict[int, list[str]]:
    """The scans of those who stay, by version."""
    return {
        version: [r.scan_id for r in ScanStore(store.uri, version=version).records() if r.subject == STAYS]
        for version in range(store.version + 1)
    }


def test_nothing_of_the_person_is_left_in_any_version(tmp_path: Path):
    store = fill(tmp_path / "store")
    before = list_versions(store)
    done = withdraw(store, {LEAVES})
    assert (done.num_scans, done.num_rows) == (2, 5)  # three of the scans' catalogue, two of the features'
    check_gone(store.uri, before)


@pytest.mark.s3
def test_in_a_bucket_too(s3_bucket: str):
    store = fill(f"{s3_bucket}/store")
    before = list_versions(store)
    withdraw(store, {LEAVES})
    check_gone(store.uri, before)


def test_the_store_goes_on_and_the_person_may_come_back(tmp_path: Path):
    store = fill(tmp_path / "store")
    withdraw(store, {LEAVES})
    write(store, LEAVES, "c", 6)
    write(store, STAYS, "a", 7, age_years=52.0)
    assert [record.scan_id for record in ScanStore(store.uri).records()] == ["mira-a", "mira-b", "zacharias-c"]
    np.testing.assert_array_equal(ScanStore(store.uri).read("mira-a").voxels, make_scan(7).voxels)


def test_a_merged_catalogue_and_its_checkpoints_are_purged_too(tmp_path: Path):
    store = fill(tmp_path / "store")
    table = DeltaTable(f"{tmp_path}/store/catalogue")
    table.optimize.compact()
    table.create_checkpoint()
    before = list_versions(ScanStore(store.uri))
    withdraw(ScanStore(store.uri), {LEAVES})
    check_gone(store.uri, before)


def test_cut_short_anywhere_the_next_call_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = {name: getattr(Location, name) for name in ("write_bytes", "delete")}
    for allowed in itertools.count(step=4):
        store = fill(tmp_path / str(allowed))
        before = list_versions(store)
        steps = itertools.count()

        def stumble(name: str, steps=steps, allowed=allowed):
            def run(self, *args, **options):
                if next(steps) == allowed:
                    raise StoreError("the power went")
                return plain[name](self, *args, **options)

            return run

        with monkeypatch.context() as patch:
            for name in plain:
                patch.setattr(Location, name, stumble(name))
            try:
                withdraw(store, {LEAVES})
            except StoreError:
                pass
            else:
                break
        # Whatever was cut short, nobody else notices.
        np.testing.assert_array_equal(ScanStore(store.uri).read(f"{STAYS}-a").voxels, make_scan(2).voxels)
        if find_rows(Location(f"{store.uri}/catalogue"), "subject", {LEAVES}):
            withdraw(ScanStore(store.uri), {LEAVES})
            check_gone(store.uri, before)
    assert allowed > 8, "it was cut short at no step"


def test_a_scan_that_passed_to_another_person_stays_theirs(tmp_path: Path):
    store = ScanStore.create(tmp_path / "store")
    store.write(make_scan(1), scan_id="scan", subject=LEAVES, modality="T1w")
    store.write(make_scan(2), scan_id="scan", subject=STAYS, modality="T1w")
    withdraw(store, {LEAVES})
    assert ScanStore(store.uri).verify() == []
    np.testing.assert_array_equal(ScanStore(store.uri).read("scan").voxels, make_scan(2).voxels)
    assert LEAVES.encode() not in read_everything(store.location)
    assert sum(name.endswith(".manifest.json") for _, _, names in os.walk(tmp_path) for name in names) == 1


def test_a_name_that_was_never_there_deletes_nothing(tmp_path: Path):
    store = fill(tmp_path / "store")
    before = read_everything(store.location)
    with pytest.raises(StoreError, match="1 people were never in"):
        withdraw(store, {LEAVES, "nobody"})
    assert read_everything(store.location) == before

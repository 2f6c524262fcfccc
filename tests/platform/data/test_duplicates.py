"""One picture under two names: found across sides by voxels or file, refused before training and before judging."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from contracts.age_cohort import tiny, write_age_cohort

from neuroray.platform.data.duplicates import find_duplicates, tell_duplicates
from neuroray.platform.data.splits import SplitConfig, split_subjects
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.run import check_people, read_folds
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig, RecipeError
from neuroray.storage.store import ScanStore

SPLIT = SplitConfig(stratify_by="age_years", num_bins=3, num_parts=5, num_folds=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store", num_people=30)


def test_equal_voxels_on_two_sides_are_found_and_on_one_side_are_not(store: ScanStore) -> None:
    records = store.records()
    split = split_subjects(records, SPLIT, catalogue_version=store.version)
    assert find_duplicates(records, split) == []
    by_id = {record.scan_id: record for record in records}
    trained, judged = split.train[0], split.test[0]
    same = by_id[trained].voxels_sha256
    leaking = [dataclasses.replace(one, voxels_sha256=same) if one.scan_id == judged else one for one in by_id.values()]
    leaks = find_duplicates(leaking, split)
    assert leaks == [tuple(sorted((trained, judged)))]
    told = tell_duplicates(leaks, split)
    assert f"{trained} (train)" in told
    assert f"{judged} (test)" in told
    beside = [
        dataclasses.replace(one, voxels_sha256=same) if one.scan_id == split.train[1] else one for one in by_id.values()
    ]
    assert find_duplicates(beside, split) == []


def test_one_file_in_two_scans_is_found_and_an_unknown_file_is_no_file(store: ScanStore) -> None:
    records = store.records()
    split = split_subjects(records, SPLIT, catalogue_version=store.version)
    assert all(record.source_sha256 == "" for record in records)
    chosen = {split.val[0], split.test[0], split.test[1]}
    leaking = [dataclasses.replace(one, source_sha256="f") if one.scan_id in chosen else one for one in records]
    assert find_duplicates(leaking, split) == [tuple(sorted(chosen))]


def test_a_copy_under_another_name_is_refused_before_training_and_before_judging(tmp_path: Path) -> None:
    store = write_age_cohort(tmp_path / "store", num_people=30)
    recipe = tiny(split=SPLIT, loop=LoopConfig(num_epochs=1, select_by="val_mae"))
    fit(recipe, store=store.uri, out=str(tmp_path / "before"))
    (fold,) = read_folds(tmp_path / "before")
    records = {record.scan_id: record for record in store.records()}
    check_people(fold, records)
    judged, trained = fold.split.test[0], fold.split.train[0]
    records[judged] = dataclasses.replace(records[judged], voxels_sha256=records[trained].voxels_sha256)
    with pytest.raises(EvaluationError, match="the same picture is on two sides of the split"):
        check_people(fold, records)
    # Everybody is the same picture.
    scan = store.read(trained)
    again = [
        store.write(scan, scan_id=one.scan_id, subject=one.subject, modality="T1w", commit=False)
        for one in store.records()
    ]
    kept = {record.scan_id: record for record in store.records()}
    store.commit([dataclasses.replace(one, age_years=kept[one.scan_id].age_years) for one in again])
    from contracts.age_cohort import MODEL

    from neuroray.platform.train.slice_features import feature_fingerprint
    from neuroray.storage.features import FeatureStore

    features = FeatureStore(store, feature_fingerprint(MODEL))
    found = features.read(trained)
    missing = set(features.missing([record.scan_id for record in store.records()]))
    features.commit([features.write(one, found, commit=False) for one in store.records() if one.scan_id in missing])
    with pytest.raises(RecipeError, match="the same picture is on two sides of the split, under several names"):
        fit(recipe, store=store.uri, out=str(tmp_path / "after"))
    assert not (tmp_path / "after").exists()

"""Pairs of visits: who is paired with whom, on which side, and as what they are dealt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from contracts.brain_cohort import tiny_tokenizer, write_brain_cohort

from neuroray.platform.data.splits import split_subjects
from neuroray.platform.train.recipe import RecipeError
from neuroray.platform.train.visit_pairs import count_diagnoses, name_gap, pair_sides, pair_visits, split_pairs
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_brain_cohort(tmp_path_factory.mktemp("cohort") / "store")


def test_visits_of_one_person_are_paired_in_the_direction_of_time(store: ScanStore) -> None:
    records = store.records()
    forward = pair_visits(records, "forward", with_same=False)
    assert [(pair.previous[:7], pair.previous[8:14], pair.target[8:14]) for pair in forward] == [
        (f"sub-{number:03d}", "ses-01", "ses-02") for number in range(1, 8)
    ]
    assert all(2 <= pair.gap_years <= 8.01 for pair in forward)
    both = pair_visits(records, "both", with_same=True)
    assert len(both) == 7 * 4
    assert sorted(pair.gap_years for pair in both)[7:21] == [0.0] * 14
    assert {(pair.previous, pair.target) for pair in forward} < {(pair.previous, pair.target) for pair in both}


def test_pairs_stay_on_the_side_of_their_person_and_lone_scans_are_left_out(store: ScanStore) -> None:
    records, config = store.records(), tiny_tokenizer().split
    split = split_subjects(records, config, catalogue_version=1)
    found = split_pairs(split, pair_sides(records, split, "both", with_same=False))
    for side in ("train", "val", "test"):
        scans = {scan_id for name in found.side(side) for scan_id in name.split(" ")}
        assert scans == set(split.side(side)) - {"sub-000_ses-01_T1w"}
    assert found.left_out == ("sub-000_ses-01_T1w",)
    assert set(found.labels) == {*found.train, *found.val, *found.test}


@pytest.mark.parametrize(
    ("gap", "name"),
    [(0.0, "same age"), (2.0, "up to 2 years later"), (-4.9, "2 to 5 years earlier"), (7, "over 5 years later")],
)
def test_gaps_are_dealt_as_bins(gap: float, name: str) -> None:
    assert name_gap(gap) == name


def test_a_side_without_pairs_is_refused(tmp_path: Path) -> None:
    store = write_brain_cohort(tmp_path / "store", num_people=4)
    records = [record for record in store.records() if record.session == "01"]
    split = split_subjects(records, tiny_tokenizer().split, catalogue_version=1)
    with pytest.raises(RecipeError, match="the train and the val side have no two visits"):
        pair_sides(records, split, "both", with_same=True)


def test_people_are_counted_by_diagnosis_once_each(store: ScanStore) -> None:
    records = [
        dataclasses.replace(record, diagnosis={"001": "control", "002": "dementia"}.get(record.subject))
        for record in store.records()
    ]
    chosen = {record.scan_id for record in records if record.subject in ("001", "002", "003")}
    assert count_diagnoses(records, chosen) == {"": 1, "control": 1, "dementia": 1}

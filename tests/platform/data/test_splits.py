from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from neuroray.platform.data.splits import SIDES, Split, SplitConfig, SplitError, split_subjects

# Half of the people have no family; the others share 20, so that chains of families over people arise.
FAMILIES = [None] * 20 + list(range(20))


@dataclass(frozen=True)
class Record:
    scan_id: str
    subject: str
    diagnosis: str | None = "control"
    family_id: str | None = None
    age_years: float | None = None
    extra: dict[str, str] = field(default_factory=dict)


def make_cohort(num_subjects: int = 60, patients: int = 20, sessions: int = 1) -> list[Record]:
    return [
        Record(
            scan_id=f"sub-{index:03d}_ses-{session}",
            subject=f"{index:03d}",
            diagnosis="patient" if index < patients else "control",
        )
        for index in range(num_subjects)
        for session in range(sessions)
    ]


def sides_by_scan(split: Split) -> dict[str, str]:
    return {scan_id: side for side in SIDES for scan_id in split.side(side)}


@given(
    links=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(FAMILIES), st.booleans()), min_size=40, max_size=80),
    seed=st.integers(0, 100),
)
@settings(max_examples=25, deadline=None)
def test_no_person_and_no_family_is_on_two_sides(links: list[tuple[int, int | None, bool]], seed: int) -> None:
    records = [
        Record(f"scan-{index}", f"s{subject}", family_id=None if family is None else f"f{family}", diagnosis=label)
        for index, (subject, family, known) in enumerate(links)
        for label in ["control" if known else None]
    ]
    config = SplitConfig(num_parts=3, num_folds=3, seed=seed)
    try:
        split = split_subjects(records, config)
    except SplitError:
        reject()  # so many links that fewer than three groups are left
    side = sides_by_scan(split)
    assert set(side) | set(split.left_out) == {record.scan_id for record in records}
    for first, second in combinations([record for record in records if record.scan_id in side], 2):
        same_family = first.family_id is not None and first.family_id == second.family_id
        if same_family or first.subject == second.subject:
            assert side[first.scan_id] == side[second.scan_id]


def test_a_family_known_only_from_an_unlabelled_scan_still_holds_together() -> None:
    cohort = make_cohort(40, 20)
    bridge = [
        Record("bridge-a", "000", diagnosis=None, family_id="F"),
        Record("bridge-b", "039", diagnosis=None, family_id="F"),
    ]
    for seed in range(10):
        side = sides_by_scan(split_subjects(cohort + bridge, SplitConfig(seed=seed)))
        assert side["sub-000_ses-0"] == side["sub-039_ses-0"]


def test_a_subject_is_not_confused_with_a_family_of_the_same_name() -> None:
    cohort = [replace(record, family_id="000") if record.subject == "001" else record for record in make_cohort()]
    apart = [sides_by_scan(split_subjects(cohort, SplitConfig(seed=seed))) for seed in range(20)]
    assert any(side["sub-000_ses-0"] != side["sub-001_ses-0"] for side in apart)


@given(order=st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_records_does_not_matter(order: random.Random) -> None:
    cohort = make_cohort(sessions=2)
    shuffled = order.sample(cohort, len(cohort))
    assert split_subjects(shuffled, SplitConfig()) == split_subjects(cohort, SplitConfig())


def test_seeds_deal_differently() -> None:
    assert len({split_subjects(make_cohort(), SplitConfig(seed=seed)).test for seed in range(5)}) == 5


@pytest.mark.parametrize("test_parts", [1, 2])
def test_the_tests_of_five_folds_share_nobody(test_parts: int) -> None:
    splits = [split_subjects(make_cohort(), SplitConfig(fold=fold, test_parts=test_parts)) for fold in range(5)]
    tested = [scan_id for split in splits for scan_id in split.test]
    assert len(tested) == len(set(tested)) == 60 * 5 * test_parts // 10
    for split in splits:
        assert Counter(map(len, [split.train, split.val, split.test])) == Counter(
            [60 - 6 - 6 * test_parts, 6, 6 * test_parts]
        )


def test_every_side_holds_the_classes_in_the_cohorts_shares() -> None:
    split = split_subjects(make_cohort(60, 20), SplitConfig(fold=3))
    assert split.counts() == {
        "train": {"control": 32, "patient": 16},
        "val": {"control": 4, "patient": 2},
        "test": {"control": 4, "patient": 2},
    }
    assert split.classes == ("control", "patient")


def test_the_smallest_cohort_that_fits_has_every_class_on_every_side() -> None:
    for seed in range(20):
        for fold in range(5):
            counts = split_subjects(make_cohort(20, 10), SplitConfig(fold=fold, seed=seed)).counts()
            assert all(count >= 1 for side in counts.values() for count in side.values())


def test_scans_without_a_label_are_left_out_and_listed() -> None:
    cohort = make_cohort()
    unlabelled = [replace(cohort[7], diagnosis=None), replace(cohort[40], diagnosis="")]
    split = split_subjects([cohort[i] for i in range(60) if i not in (7, 40)] + unlabelled, SplitConfig())
    assert split.left_out == ("sub-007_ses-0", "sub-040_ses-0")
    assert not set(split.left_out) & set(sides_by_scan(split))
    assert not set(split.left_out) & set(split.labels)


def test_labels_may_come_from_a_further_column() -> None:
    cohort = [replace(record, extra={"scanner": "A" if i % 3 else "B"}) for i, record in enumerate(make_cohort())]
    split = split_subjects(cohort, SplitConfig(stratify_by="scanner"))
    assert split.counts()["test"] == {"A": 4, "B": 2}


def test_a_split_can_go_by_groups_alone() -> None:
    split = split_subjects([replace(record, diagnosis=None) for record in make_cohort()], SplitConfig(stratify_by=None))
    assert sorted(map(len, (split.train, split.val, split.test))) == [6, 6, 48]


def test_a_class_with_too_few_people_is_refused_with_its_name_and_number() -> None:
    with pytest.raises(SplitError, match=r"class patient of diagnosis has too few.*given 7 in 10 parts"):
        split_subjects(make_cohort(60, 7), SplitConfig())


def test_many_scans_of_few_people_do_not_make_a_class_large_enough() -> None:
    with pytest.raises(SplitError, match="given 7 in 10 parts"):
        split_subjects(make_cohort(60, 7, sessions=5), SplitConfig())


def test_a_measure_is_no_class() -> None:
    cohort = [replace(record, age_years=20.5 + i) for i, record in enumerate(make_cohort())]
    with pytest.raises(SplitError, match="age_years is a measure"):
        split_subjects(cohort, SplitConfig(stratify_by="age_years"))


def test_a_label_that_nobody_has_is_refused() -> None:
    with pytest.raises(SplitError, match="no scan has the label handedness"):
        split_subjects(make_cohort(), SplitConfig(stratify_by="handedness"))


def test_a_scan_listed_twice_is_refused() -> None:
    with pytest.raises(SplitError, match="listed twice"):
        split_subjects(make_cohort() + make_cohort()[:1], SplitConfig())


@pytest.mark.parametrize(
    ("given_fields", "told"),
    [
        ({"fold": 5}, "no such fold"),
        ({"test_parts": 5, "val_parts": 5, "num_folds": 1}, "no part is left"),
        ({"test_parts": 3}, "overlap"),
        ({"val_parts": 0}, "needs parts"),
    ],
)
def test_parts_that_do_not_fit_are_refused(given_fields: dict[str, int], told: str) -> None:
    with pytest.raises(SplitError, match=told):
        SplitConfig(**given_fields)


def test_a_split_survives_its_file(tmp_path: Path) -> None:
    cohort = [*make_cohort(sessions=2), Record("lost", "lost", diagnosis=None)]
    split = split_subjects(cohort, SplitConfig(fold=2, shuffle_labels_seed=4), catalogue_version=17)
    split.write_json(tmp_path / "splits.json")
    assert Split.read_json(tmp_path / "splits.json") == split
    written = json.loads((tmp_path / "splits.json").read_text())
    assert written["catalogue_version"] == 17
    assert written["counts"] == split.counts()
    assert written["left_out"] == ["lost"]


def test_a_file_with_a_scan_on_two_sides_is_refused() -> None:
    data = split_subjects(make_cohort(), SplitConfig()).to_json()
    with pytest.raises(SplitError, match="on two sides"):
        Split.from_json({**data, "val": [*data["val"], data["train"][0]]})


def test_shuffled_labels_keep_their_numbers_and_say_nothing_of_the_true_ones() -> None:
    cohort = make_cohort(200, 100, sessions=2)
    truth = {record.scan_id: record.diagnosis for record in cohort}
    splits = [split_subjects(cohort, SplitConfig(shuffle_labels_seed=seed)) for seed in range(5)]
    agreement = [sum(split.labels[scan_id] == truth[scan_id] for scan_id in truth) / 400 for split in splits]
    for split in splits:
        assert Counter(split.labels.values()) == {"patient": 200, "control": 200}
        by_person = {(record.subject, split.labels[record.scan_id]) for record in cohort}
        assert len(by_person) == 200  # both scans of a person carry one label
        assert (
            min(split.counts()["test"].values()) >= 18
        )  # dealt by the shuffled labels: 20 each, give or take one pair
    # 1000 people agree by chance in half; 6 standard errors of 1/(2 sqrt(1000)) make 0.095.
    assert abs(sum(agreement) / 5 - 0.5) < 0.095
    assert len({tuple(split.labels.items()) for split in splits}) == 5


def test_shuffling_labels_does_not_depend_on_the_order_of_records() -> None:
    cohort = make_cohort()
    config = SplitConfig(shuffle_labels_seed=1)
    assert split_subjects(cohort[::-1], config) == split_subjects(cohort, config)


def with_ages(records: list[Record], seed: int = 3) -> list[Record]:
    draw = random.Random(seed)
    return [replace(record, age_years=round(draw.uniform(20, 80), 1)) for record in records]


def test_a_measure_is_dealt_out_evenly_by_its_bins() -> None:
    cohort = with_ages(make_cohort(100))
    ages = {record.scan_id: record.age_years or 0 for record in cohort}
    split = split_subjects(cohort, SplitConfig(stratify_by="age_years", num_bins=5))
    assert split.counts()["test"] == {f"bin {number} of 5": 2 for number in range(1, 6)}
    assert split.counts()["train"] == {f"bin {number} of 5": 16 for number in range(1, 6)}
    by_bin = [[ages[scan] for scan, name in split.bins.items() if name == f"bin {k} of 5"] for k in range(1, 6)]
    assert all(max(low) <= min(high) for low, high in pairwise(by_bin))
    assert {scan_id: float(text) for scan_id, text in split.labels.items()} == ages
    assert split.classes == ()
    assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split


def test_equal_measures_are_never_parted_and_shuffled_ones_are_binned_as_dealt() -> None:
    cohort = [replace(record, age_years=50.0 if index < 70 else 60.0) for index, record in enumerate(make_cohort(100))]
    config = SplitConfig(stratify_by="age_years", num_bins=4, shuffle_labels_seed=1)
    split = split_subjects(cohort, config)
    bins = {(split.labels[scan_id], name) for scan_id, name in split.bins.items()}
    assert bins == {("50.0", "bin 2 of 4"), ("60.0", "bin 4 of 4")}
    assert sum(split.labels[record.scan_id] != str(record.age_years) for record in cohort) > 20


def test_who_lacks_the_label_can_be_dealt_too() -> None:
    cohort = with_ages(make_cohort(60))
    cohort[7] = replace(cohort[7], age_years=None)
    config = SplitConfig(stratify_by="age_years", num_bins=2, keep_unlabelled=True)
    split = split_subjects(cohort, config)
    assert split.left_out == ()
    assert split.dealt_as["sub-007_ses-0"] == "unknown"
    assert "sub-007_ses-0" not in split.labels
    assert sum(counts["unknown"] for counts in split.counts().values()) == 1
    classes = replace(cohort[0], diagnosis=None)
    kept = split_subjects([classes, *cohort[1:]], SplitConfig(keep_unlabelled=True))
    assert kept.classes == ("control", "patient")
    assert kept.dealt_as[classes.scan_id] == "unknown"


def test_a_measure_wants_bins_and_a_class_takes_none() -> None:
    cohort = with_ages(make_cohort())
    with pytest.raises(SplitError, match="num_bins"):
        split_subjects(cohort, SplitConfig(stratify_by="age_years"))
    with pytest.raises(SplitError, match=r"diagnosis is a class, not a measure.*given patient"):
        split_subjects(cohort, SplitConfig(stratify_by="diagnosis", num_bins=3))
    with pytest.raises(SplitError, match=r"bin 1 of 9 of age_years has too few.*fewer num_bins"):
        split_subjects(cohort, SplitConfig(stratify_by="age_years", num_bins=9))
    with pytest.raises(SplitError, match="cut into bins"):
        SplitConfig(stratify_by=None, num_bins=2)


@dataclass(frozen=True)
class SitedRecord(Record):
    site: str | None = None


def make_sited(num_subjects: int = 60) -> list[SitedRecord]:
    """People at three sites in turn; the last two came twice, the second time elsewhere."""
    records = [
        SitedRecord(
            scan_id=f"sub-{index:03d}",
            subject=f"{index:03d}",
            diagnosis="patient" if index % 2 else "control",
            site="abc"[index % 3],
        )
        for index in range(num_subjects)
    ]
    return records + [
        replace(record, scan_id=f"{record.scan_id}-2", site="abc"[("abc".index(str(record.site)) + 1) % 3])
        for record in records[-2:]
    ]


def test_each_fold_holds_a_whole_site_out_and_nobody_who_was_scanned_there() -> None:
    records = make_sited()
    config = SplitConfig(num_parts=5, num_folds=3, hold_out="site")
    people = {record.scan_id: record.subject for record in records}
    tested: list[str] = []
    for fold, site in enumerate("abc"):
        split = split_subjects(records, replace(config, fold=fold))
        assert set(split.test) == {record.scan_id for record in records if record.site == site}
        judged = {people[scan_id] for scan_id in split.test}
        for side in ("train", "val"):
            assert not judged & {people[scan_id] for scan_id in split.side(side)}
        everybody = [*split.train, *split.val, *split.test, *split.left_out]
        assert sorted(everybody) == sorted(people)
        tested += split.test
    assert sorted(tested) == sorted(people)


def test_as_many_folds_as_sites_are_asked_for_and_scans_without_a_site_are_left_out() -> None:
    records = make_sited()
    with pytest.raises(SplitError, match=r"as many folds as sites.*num_folds 5, sites a, b, c.*num_folds 3"):
        split_subjects(records, SplitConfig(num_parts=5, hold_out="site"))
    with pytest.raises(SplitError, match="sites none"):
        split_subjects(make_cohort(), SplitConfig(num_parts=5, hold_out="site"))
    lost = [replace(record, site=None) if index == 0 else record for index, record in enumerate(records)]
    split = split_subjects(lost, SplitConfig(num_parts=5, num_folds=3, hold_out="site"))
    assert "sub-000" in split.left_out


def make_aged() -> list[Record]:
    return [
        replace(record, extra={"age": str(20 + index)}, diagnosis="control" if index % 2 else "patient")
        for index, record in enumerate(make_cohort())
    ]


def test_only_controls_are_learned_from_and_everybody_is_judged() -> None:
    records = make_aged()
    plain = SplitConfig(stratify_by="age", num_bins=2, num_parts=5)
    controls = {record.scan_id for record in records if record.diagnosis == "control"}
    tested: list[str] = []
    for fold in range(5):
        everybody = split_subjects(records, replace(plain, fold=fold))
        split = split_subjects(records, replace(plain, fold=fold, learn_from="diagnosis=control"))
        assert split.test == everybody.test
        assert set(split.train) == set(everybody.train) & controls
        assert set(split.val) == set(everybody.val) & controls
        assert sorted([*split.train, *split.val, *split.test, *split.left_out]) == sorted(everybody.labels)
        (sentence,) = split.tell_left_out("age")
        assert sentence.startswith(f"{len(split.left_out)} scans are not learned from (diagnosis=control)")
        assert Split.from_json(split.to_json()) == split
        tested += split.test
    assert set(tested) - controls


def test_whom_to_learn_from_must_be_a_condition_that_somebody_meets() -> None:
    with pytest.raises(SplitError, match=r"no condition.*COLUMN=VALUE"):
        SplitConfig(learn_from="control")
    with pytest.raises(SplitError, match=r"val and train side is diagnosis=healthy.*control, patient"):
        split_subjects(make_aged(), SplitConfig(stratify_by="age", num_bins=3, learn_from="diagnosis=healthy"))

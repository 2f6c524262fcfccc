"""Rows over pairs: means, differences, regions, ages from one scan, ages read; against numbers worked out here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from neuroray.platform.evaluate.ageing_evidence import JudgedPair, part_by_gap, weigh_rows
from neuroray.platform.evaluate.ageing_findings import compare_with_copy
from neuroray.platform.evaluate.ageing_models import average_models
from neuroray.platform.evaluate.ageing_pictures import choose_pairs
from neuroray.platform.evaluate.ageing_regions import weigh_regions
from neuroray.platform.evaluate.ageing_rows import Told
from neuroray.platform.evaluate.ageing_sweep import choose_ages, sweep_person, weigh_sweep
from neuroray.platform.evaluate.generated_ages import coarsen_volume, fit_ridge_age, weigh_read_ages
from neuroray.platform.evaluate.generated_training import ToldTwice, draw_ages, weigh_downstream
from neuroray.platform.evaluate.visits import Visit, VisitPair, pair_records
from neuroray.storage.records import ScanRecord

DRAWS = {"seed": 0, "num_resamples": 300}
ROWS = ("copy", "model")


def record(subject: str, age_years: float | None, *, family: str | None = None) -> ScanRecord:
    return ScanRecord(
        scan_id=f"{subject}-{age_years}", subject=subject, modality="T1w", path="", shape=(12, 13, 14), dtype="float32",
        zooms_mm=(4.0, 4.0, 4.0), affine=tuple(np.diag([4.0, 4, 4, 1]).ravel()), voxels_sha256="", manifest_sha256="",
        size_bytes=0, written_at="", age_years=age_years, family_id=family,
    )  # fmt: skip


def judge(
    subject: str, gap: float, copy: float, model: float, change: float = 1.0, told: float = 0.5, start: float = 10.0
) -> JudgedPair:
    pair = VisitPair(previous=record(subject, 60.0), target=record(subject, 60.0 + gap))
    return JudgedPair(
        fold=0,
        pair=pair,
        scores={"copy": {"l1_brain": copy}, "model": {"l1_brain": model}},
        volumes_ml={
            "previous": {"ventricles": start},
            "target": {"ventricles": start + change},
            "copy": {"ventricles": start},
            "model": {"ventricles": start + told + 0.25},  # 0.25 is what the tokenizer adds to any scan
        },
        changes_ml={"copy": {"ventricles": 0.0}, "model": {"ventricles": told}},
        predicted_ages_years={"previous": 61.0, "target": 61 + 0.5 * gap, "copy": 61.0, "model": 62 + 0.25 * gap},
        predicted_starts_years={"copy": 61.0, "model": 62.0},
    )


JUDGED = [
    judge("a", 2.0, 0.10, 0.12, change=0.4, told=0.2),
    judge("b", 4.9, 0.20, 0.16, change=1.0, told=0.5),
    judge("c", 5.0, 0.30, 0.20, change=2.0, told=1.0),
    judge("d", 8.0, 0.40, 0.28, change=3.0, told=1.5),
]


def test_differences_are_pair_by_pair_and_parts_are_by_gap() -> None:
    found = weigh_rows(JUDGED, ROWS, **DRAWS)
    assert found.metrics["copy"]["l1_brain"].value == pytest.approx(0.25)
    gain = found.gains["model"]["l1_brain"]
    assert gain.value == pytest.approx((0.02 - 0.04 - 0.10 - 0.12) / 4)
    assert gain.low < gain.value < gain.high
    assert np.isnan(found.metrics["model"]["psnr_brain"].value)  # nobody has it
    parts = part_by_gap(JUDGED)
    assert [len(some) for some in parts.values()] == [2, 2]
    assert weigh_rows(parts["5 years or more"], ROWS, **DRAWS).gains["model"]["l1_brain"].value == pytest.approx(-0.11)


def test_models_of_several_folds_count_once_with_their_mean() -> None:
    first, second = judge("a", 2.0, 0.1, 0.30, told=0.2), judge("a", 2.0, 0.1, 0.10, told=0.6)
    other = judge("b", 2.0, 0.2, 0.25)
    lacking = dataclasses.replace(other, scores={"copy": {"l1_brain": 0.2}})  # a fold without this row
    found = average_models([first, other, second, lacking])
    assert [one.pair.previous.subject for one in found] == ["a", "b"]
    assert found[0].scores["model"]["l1_brain"] == pytest.approx(0.2)
    assert found[0].changes_ml["model"]["ventricles"] == pytest.approx(0.4)
    assert found[0].volumes_ml["model"]["ventricles"] == pytest.approx(10.65)
    assert found[0].predicted_ages_years == pytest.approx(first.predicted_ages_years)
    assert list(found[1].scores) == ["copy"]


def test_few_people_are_never_sure() -> None:
    people = [judge(name, 2.0, 0.2 + 0.01 * index, 0.1) for index, name in enumerate("abcdef")]
    for some, standing in ((people, "better"), (people[:5], ""), (people[:1], "")):
        found = weigh_rows(some, ROWS, **DRAWS)
        assert compare_with_copy(found, "model", "l1_brain", "lower") == standing
    found = weigh_rows(people, ROWS, **DRAWS)
    assert compare_with_copy(found, "model", "l1_brain", "higher") == "worse"
    assert compare_with_copy(found, "model", "psnr_brain", "higher") == ""  # nobody has it


def test_people_are_drawn_whole() -> None:
    twice = [judge("a", 2.0, 0.1, 0.3), judge("a", 3.0, 0.1, 0.3), judge("b", 2.0, 0.1, 0.1)]
    found = weigh_rows(twice, ROWS, **DRAWS).gains["model"]["l1_brain"]
    # With two people the mean is that of one, of the other, or of both.
    assert (found.low, found.high) == pytest.approx((0.0, 0.2))
    assert weigh_rows(twice, ROWS, **DRAWS).num_people == 2


def test_change_is_told_against_its_own_start_and_volumes_as_drawn() -> None:
    found = weigh_regions(JUDGED, ROWS, **DRAWS)["ventricles"]["model"]
    assert found.change["pearson_r"].value == pytest.approx(1.0)
    assert found.change["slope"].value == pytest.approx(0.5)
    assert found.change["mae"].value == pytest.approx(np.mean([0.2, 0.5, 1.0, 1.5]))
    drawn = np.abs([0.2 + 0.25 - 0.4, 0.5 + 0.25 - 1, 1 + 0.25 - 2, 1.5 + 0.25 - 3])
    assert found.volume_error_ml.value == pytest.approx(drawn.mean())
    copied = np.array([0.4, 1.0, 2.0, 3.0])
    assert found.less_copy_ml.value == pytest.approx((drawn - copied).mean())
    assert found.less_copy_long_ml is not None
    assert found.less_copy_long_ml.value == pytest.approx((drawn - copied)[2:].mean())
    copy = weigh_regions(JUDGED, ROWS, **DRAWS)["ventricles"]["copy"]
    assert np.isnan(copy.change["pearson_r"].value)  # nothing ever changes
    assert copy.less_copy_ml.value == 0


def test_a_region_that_cannot_be_measured_is_left_out() -> None:
    lost = [judge("a", 2.0, 0.1, 0.1, start=float("nan")), judge("b", 2.0, 0.1, 0.1)]
    assert weigh_regions(lost, ROWS, **DRAWS) == {}


def test_ages_reach_as_far_as_the_training() -> None:
    card = {"age_range_years": [50.0, 70.0], "gap_range_years": [-6.0, 6.0]}
    assert choose_ages(55.0, card) == pytest.approx([55, 56.2, 57.4, 58.6, 59.8, 61])
    assert choose_ages(68.0, card)[-1] == 70
    assert choose_ages(69.5, card) == ()
    assert choose_ages(40.0, card) == ()


class Widening:
    """Tells a volume whose first value is the years passed, except for a slip."""

    name = "model"

    def __init__(self, slip: float = 0.0) -> None:
        self._slip = slip

    def tell(self, visit: Visit, age_years: float) -> Told:
        years = age_years - visit.age_years
        volume = visit.volume + np.float32(0.1) + np.float32(years + (self._slip if years > 3 else 0)) / 100
        return Told(volume=volume, start=visit.volume + np.float32(0.05))


def see(subject: str, age_years: float, level: float = 0.0) -> Visit:
    volume = np.full((12, 13, 14), level, np.float32)
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    return Visit(record=record(subject, age_years), volume=volume, brain=np.ones(volume.shape, bool), tokens=tokens)


def swept(subject: str, slip: float = 0.0):
    visit = see(subject, 60.0)
    return sweep_person(
        visit,
        (60.0, 62.0, 64.0, 66.0),
        Widening(slip),
        group=subject,
        reconstruction=visit.volume + np.float32(0.05),
        measure=lambda volume, brain, visit: {"ventricles": 100 * float(volume.mean(dtype=np.float64))},
        read_age=lambda volume, visit: 50 + 50 * float(volume.mean(dtype=np.float64)),
    )


def test_rising_slopes_and_the_scans_own_age() -> None:
    people = [swept("a"), swept("b", slip=-3.0)]  # 0, 2, 1, 3: falls once
    found = weigh_sweep(people, JUDGED, "ventricles", num_left_out=1, **DRAWS)
    assert people[0].rises("ventricles")
    assert not people[1].rises("ventricles")
    assert found.rising_share is not None
    assert found.rising_share.value == 0.5
    assert people[0].slope(people[0].volumes_ml["ventricles"]) == pytest.approx(1.0, rel=1e-4)
    assert found.slope_ml["real"].value == pytest.approx(np.mean([0.4 / 2, 1 / 4.9, 2 / 5, 3 / 8]))
    # Told 0.1 from the scan, 0.05 from where changes start, which is 0.05 from the scan; halved onto [0, 1].
    assert found.same_age["l1"].value == pytest.approx(0.025, rel=1e-4)
    assert found.same_age["l1_reconstruction"].value == pytest.approx(0.025, rel=1e-4)
    assert people[0].same_age_change_ml["ventricles"] == pytest.approx(5.0, rel=1e-4)
    assert people[0].reconstruction_error_ml["ventricles"] == pytest.approx(5.0, rel=1e-4)
    assert found.read_slope is not None
    assert people[0].slope(people[0].read_ages_years) == pytest.approx(0.5, rel=1e-4)
    assert found.to_json()["num_left_out"] == 1


def test_all_people_rising_has_an_exact_interval() -> None:
    found = weigh_sweep([swept(name) for name in "abcdefgh"], JUDGED, "ventricles", num_left_out=0, **DRAWS)
    assert found.rising_share is not None
    assert (found.rising_share.value, found.rising_share.kind) == (1.0, "exact")
    assert found.rising_share.low == pytest.approx(0.025 ** (1 / 8))


def test_years_read_per_year_are_against_the_rows_own_start() -> None:
    found = weigh_read_ages(JUDGED, ROWS, "ruler", **DRAWS).rows
    assert found["target"]["years_per_year"].value == pytest.approx(0.5)
    assert found["model"]["years_per_year"].value == pytest.approx(0.25)
    assert found["copy"]["years_per_year"].value == 0
    bias = np.mean([62 + 0.25 * gap - (60 + gap) for gap in (2.0, 4.9, 5.0, 8.0)])
    assert found["model"]["bias"].value == pytest.approx(bias)


def test_the_regression_reads_ages_that_are_in_the_voxels() -> None:
    visits = [see(str(number), 50.0 + number, level=number / 40) for number in range(20)]
    reader = fit_ridge_age(visits, seed=0)
    assert reader is not None
    assert reader.read(see("new", 0.0, level=11.5 / 40).volume, visits[0]) == pytest.approx(61.5, abs=0.3)
    assert fit_ridge_age(visits[:7], seed=0) is None


def test_coarse_voxels_are_means_of_cubes() -> None:
    volume = np.random.default_rng(0).normal(size=(5, 6, 7))
    coarse = coarsen_volume(volume, 2).reshape(2, 3, 3)
    assert coarse[1, 2, 0] == pytest.approx(volume[2:4, 4:6, 0:2].mean())


def test_downstream_errors_are_compared_scan_by_scan() -> None:
    one = ToldTwice(
        ages_years=(50.0, 60.0, 70.0),
        groups=("a", "b", "c"),
        told={"real": (52.0, 60.0, 64.0), "real_and_generated": (51.0, 60.0, 73.0)},
        num_real=5,
        num_generated=10,
    )
    found = weigh_downstream([one, one], **DRAWS)
    assert found.metrics["real"]["mae"].value == pytest.approx(8 / 3)
    assert found.metrics["real_and_generated"]["mae"].value == pytest.approx(4 / 3)
    assert found.less_error.value == pytest.approx((-1 + 0 - 3) / 3)
    assert (found.num_real, found.num_generated, found.num_judged) == (10, 20, 6)


def test_ages_for_training_are_within_reach() -> None:
    card = {"age_range_years": [50.0, 70.0], "gap_range_years": [2.0, 6.0]}
    generator = np.random.default_rng(0)
    drawn = np.array([draw_ages(60.0, card, generator) for _ in range(200)])
    assert drawn.shape == (200, 2)
    assert 62 <= drawn.min() < 62.2
    assert 65.8 < drawn.max() <= 66
    assert draw_ages(69.0, card, generator) == []


def test_pairs_are_of_one_person_and_have_ages() -> None:
    records = [record("a", 70.0), record("a", 60.0), record("b", 61.0), record("c", None), record("c", 50.0)]
    records += [record("d", 55.0), record("d", 55.0)]
    forward = [pair.ages_years for pair in pair_records(records, backward=False)]
    assert forward == [(60.0, 70.0)]
    assert [pair.ages_years for pair in pair_records(records, backward=True)] == [(70.0, 60.0)]


def test_pictures_are_of_the_longest_gap_and_of_the_median_error() -> None:
    assert [one.pair.previous.subject for one in choose_pairs(JUDGED)] == ["d", "b"]
    assert len(choose_pairs(JUDGED[:1])) == 1

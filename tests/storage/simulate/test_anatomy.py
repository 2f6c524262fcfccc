"""What age, disease, sex and kinship do to simulated heads."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from neuroray.storage.simulate.anatomy import Volumes, draw_shape, grow_head, measure_head
from neuroray.storage.simulate.people import CohortConfig, Person, draw_person

CONFIG = CohortConfig(num_subjects=400, seed=11)
PEOPLE = [draw_person(CONFIG, index) for index in range(CONFIG.num_subjects)]


def measure(person: Person, config: CohortConfig = CONFIG, visit_index: int = 0) -> Volumes:
    return measure_head(grow_head(config, person, visit_index))


def at_age(person: Person, age_years: float) -> Person:
    return dataclasses.replace(person, age_years=age_years, visit_ages_years=(age_years,))


@pytest.fixture(scope="module")
def measured() -> list[tuple[Person, Volumes]]:
    return [(person, measure(person)) for person in PEOPLE[:24]]


def test_ventricles_grow_and_grey_matter_shrinks_with_age_in_one_person() -> None:
    volumes = [measure(at_age(PEOPLE[0], age)) for age in (20, 40, 60, 80)]
    ventricles = [volume.ventricles_ml for volume in volumes]
    grey = [volume.grey_ml for volume in volumes]
    assert ventricles == sorted(ventricles)
    assert grey == sorted(grey, reverse=True)
    assert 1.5 < ventricles[-1] / ventricles[0] < 3.5  # adults' ventricles about double between 20 and 80
    assert 0.78 < grey[-1] / grey[0] < 0.93  # some 2 to 3 per cent of grey matter per decade


def test_ventricles_tell_age_in_controls(measured: list[tuple[Person, Volumes]]) -> None:
    controls = [(person.age_years, volumes) for person, volumes in measured if person.diagnosis == "control"]
    ages = [age for age, _ in controls]
    assert np.corrcoef(ages, [volumes.ventricles_ml for _, volumes in controls])[0, 1] > 0.7
    fractions = [volumes.grey_ml / (volumes.grey_ml + volumes.white_ml + volumes.csf_ml) for _, volumes in controls]
    assert np.corrcoef(ages, fractions)[0, 1] < -0.7


def test_the_disease_is_local(measured: list[tuple[Person, Volumes]]) -> None:
    region = {
        diagnosis: np.array(
            [volumes.medial_temporal_ml for person, volumes in measured if person.diagnosis == diagnosis]
        )
        for diagnosis in ("control", "disease")
    }
    spread = np.sqrt((region["control"].var(ddof=1) + region["disease"].var(ddof=1)) / 2)
    assert (region["control"].mean() - region["disease"].mean()) / spread > 1.5
    ill = next(person for person, _ in measured if person.diagnosis == "disease")
    with_it, without = measure(ill), measure(ill, dataclasses.replace(CONFIG, disease_effect=0.0))
    assert with_it.medial_temporal_ml < 0.7 * without.medial_temporal_ml
    elsewhere = without.grey_ml - without.medial_temporal_ml
    assert with_it.grey_ml - with_it.medial_temporal_ml > 0.97 * elsewhere  # five years of ordinary ageing, no more


def test_nothing_folds(measured: list[tuple[Person, Volumes]]) -> None:
    assert min(volumes.min_jacobian for _, volumes in measured) > 0
    extreme = dataclasses.replace(
        at_age(PEOPLE[0], 95.0), diagnosis="disease", severity=1.6, ventricle_offset=0.6, cortex_offset=0.1
    )
    assert measure(extreme).min_jacobian > 0


def test_men_have_larger_heads_and_nothing_else(measured: list[tuple[Person, Volumes]]) -> None:
    sizes = {sex: [np.prod(person.scales) for person in PEOPLE if person.sex == sex] for sex in "FM"}
    assert 1.08 < np.mean(sizes["M"]) / np.mean(sizes["F"]) < 1.17
    by_sex = {sex: [person.brain_age_offset_years for person in PEOPLE if person.sex == sex] for sex in "FM"}
    assert abs(np.mean(by_sex["M"]) - np.mean(by_sex["F"])) < 0.6  # 3 standard errors of 2 years over 200 people each


def test_a_second_visit_finds_the_same_head_grown_older() -> None:
    person = next(person for person in PEOPLE if len(person.visit_ages_years) == 2 and person.diagnosis == "control")
    first, second = grow_head(CONFIG, person, 0), grow_head(CONFIG, person, 1)
    np.testing.assert_array_equal(first.controls, second.controls)
    np.testing.assert_array_equal(first.stretch, second.stretch)
    earlier, later = measure_head(first), measure_head(second)
    assert later.ventricles_ml > earlier.ventricles_ml
    assert later.cortex_ml < earlier.cortex_ml


def test_siblings_share_about_half_of_their_shape() -> None:
    families: dict[str, list[Person]] = {}
    for person in PEOPLE:
        families.setdefault(person.family_id, []).append(person)
    pairs = [members for members in families.values() if len(members) == 2][:12]
    assert all(len(members) <= 2 for members in families.values())
    likeness = [_compare(*pair) for pair in pairs]
    strangers = [_compare(first[0], second[1]) for first, second in itertools.pairwise(pairs)]
    assert np.mean(likeness) == pytest.approx(0.5, abs=0.12)  # 12 pairs of fields with some tens of independent bumps
    assert abs(np.mean(strangers)) < 0.12


def _compare(one: Person, other: Person) -> float:
    fields = [draw_shape(CONFIG, person).ravel() for person in (one, other)]
    return float(np.corrcoef(fields)[0, 1])


def test_groups_are_matched_for_age_and_sex() -> None:
    for size in (4, 40, 400):
        ill = [person for person in PEOPLE[:size] if person.diagnosis == "disease"]
        well = [person for person in PEOPLE[:size] if person.diagnosis == "control"]
        assert len(ill) == len(well)
        assert sum(person.sex == "M" for person in ill) == sum(person.sex == "M" for person in well)
        ages = [np.mean([person.age_years for person in group]) for group in (ill, well)]
        assert abs(ages[0] - ages[1]) < 3.0 / np.sqrt(size / 4)  # pairs differ by 1.4 years, one standard deviation


def test_cognition_has_the_stated_scale_and_no_shortcut() -> None:
    scores = np.array([person.cognition for person in PEOPLE])
    assert scores.mean() == pytest.approx(100, abs=2.5)  # 3 standard errors of 400 people
    assert scores.std() == pytest.approx(15, abs=1.7)
    for other in ("age_years", "severity"):
        values = [getattr(person, other) for person in PEOPLE]
        assert abs(np.corrcoef(scores, values)[0, 1]) < 0.15  # 3 standard errors


def test_the_longitudinal_part_is_as_large_as_asked() -> None:
    for fraction, expected in ((0.0, 0), (0.25, 100), (1.0, 400)):
        config = dataclasses.replace(CONFIG, longitudinal_fraction=fraction)
        visits = [draw_person(config, index).visit_ages_years for index in range(config.num_subjects)]
        assert sum(len(ages) == 2 for ages in visits) == expected
        assert all(2 <= ages[1] - ages[0] <= 8.05 for ages in visits if len(ages) == 2)

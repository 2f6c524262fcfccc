"""Slopes of the gap over years: planted ones found, by person and by the mixed model."""

from __future__ import annotations

import numpy as np
import pytest

from neuroray.platform.brain_age_gap.slopes import measure_slopes, person_slopes


def visits(answer, *, slopes, num_visits=2, noise=0.0, seed=0):
    """Rows and gaps of people whose gap grows by their slope a year."""
    rng = np.random.default_rng(seed)
    rows, gaps = [], []
    for index, slope in enumerate(slopes):
        start, own = rng.uniform(30, 70), rng.normal(0, 4)
        for visit in range(num_visits):
            years = visit * rng.uniform(2, 5)
            rows.append(answer(subject=f"s{index}", scan_id=f"s{index}-{visit}", age_years=start + years))
            gaps.append(own + slope * years + rng.normal(0, noise))
    return rows, np.array(gaps)


def test_each_persons_slope_is_that_of_the_line_through_the_visits(answer):
    rows, gaps = visits(answer, slopes=[0.5, -0.2, 0.0], num_visits=3)
    found = person_slopes(rows, gaps)
    assert [found[f"s{index}"][0] for index in range(3)] == pytest.approx([0.5, -0.2, 0.0])


def test_who_came_once_or_twice_in_a_month_has_none(answer):
    rows = [answer(subject="a"), answer(subject="b"), answer(subject="b", age_years=50.05, scan_id="b2")]
    assert person_slopes(rows, np.array([1.0, 2.0, 3.0])) == {}
    assert measure_slopes(rows, np.zeros(3), ["x"] * 3, pair=None, seed=0, num_resamples=10) is None


def test_planted_slopes_of_two_groups_are_found_by_both_ways(answer):
    slopes = np.where(np.arange(60) % 2 == 0, 0.1, 0.6)
    rows, gaps = visits(answer, slopes=slopes, noise=0.3, seed=1)
    groups = ["control" if int(row.subject[1:]) % 2 == 0 else "patient" for row in rows]
    found = measure_slopes(rows, gaps, groups, pair=("control", "patient"), seed=0, num_resamples=400)
    assert found is not None
    by_group = {group.group: group for group in found.groups}
    for name, planted in (("control", 0.1), ("patient", 0.6)):
        for effect in (by_group[name].mean, by_group[name].mixed):
            assert effect.low < planted < effect.high
            assert effect.high - effect.low < 0.2
    assert found.difference is not None
    for effect in found.difference:
        assert effect.low < 0.5 < effect.high
    assert found.difference[1].p_value < 1e-6


def test_a_group_of_two_is_told_and_not_judged(answer):
    rows, gaps = visits(answer, slopes=[0.1] * 5, noise=0.2)
    groups = ["few" if row.subject in ("s0", "s1") else "many" for row in rows]
    found = measure_slopes(rows, gaps, groups, pair=("many", "few"), seed=0, num_resamples=50)
    assert found is not None
    assert [group.group for group in found.groups] == ["many"]
    assert found.difference is None
    assert "few" in found.notes[0]

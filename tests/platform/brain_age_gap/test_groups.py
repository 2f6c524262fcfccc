"""Comparisons of two groups against formulas written out, and tables with empty cells."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, t

from neuroray.platform.brain_age_gap.groups import compare_groups, judge_table, tabulate_high_gaps


def test_welch_and_hedges_are_their_formulas():
    rng = np.random.default_rng(3)
    controls, cases = rng.normal(0, 2, 63), rng.normal(1.5, 5, 7)
    found = compare_groups(controls, cases)
    assert found is not None
    parts = [values.var(ddof=1) / len(values) for values in (controls, cases)]
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 62 + parts[1] ** 2 / 6)
    half = t.ppf(0.975, degrees) * np.sqrt(sum(parts))
    difference = cases.mean() - controls.mean()
    assert found.difference_years.value == pytest.approx(difference)
    assert found.difference_years.low == pytest.approx(difference - half)
    assert found.difference_years.p_value == pytest.approx(2 * t.sf(abs(difference) / np.sqrt(sum(parts)), degrees))
    pooled = np.sqrt((62 * controls.var(ddof=1) + 6 * cases.var(ddof=1)) / 68)
    # Hedges' own approximation of the factor is good to four digits here.
    assert found.hedges_g.value == pytest.approx(difference / pooled * (1 - 3 / (4 * 68 - 1)), rel=1e-4)
    assert found.hedges_g.low < found.hedges_g.value < found.hedges_g.high


def test_turning_the_groups_round_turns_the_signs_and_no_p():
    rng = np.random.default_rng(4)
    one, two = rng.normal(0, 1, 17), rng.normal(1, 1, 13)
    first, second = compare_groups(one, two), compare_groups(two, one)
    assert first is not None
    assert second is not None
    assert first.hedges_g.value == pytest.approx(-second.hedges_g.value)
    assert first.difference_years.p_value == pytest.approx(second.difference_years.p_value)
    assert first.mann_whitney_p == pytest.approx(second.mann_whitney_p)


def test_one_person_or_no_spread_is_no_comparison():
    assert compare_groups(np.arange(7.0), np.array([1.0])) is None
    assert compare_groups(np.ones(7), np.ones(5)) is None


def test_a_table_is_its_textbook_odds_and_risk():
    found = judge_table("rest", np.array([[20, 10], [30, 60]]))
    assert found.odds_ratio.value == pytest.approx(20 * 60 / (10 * 30))
    assert found.risk_ratio.value == pytest.approx((20 / 30) / (30 / 90))
    error = np.sqrt(1 / 20 + 1 / 10 + 1 / 30 + 1 / 60)
    assert found.odds_ratio.high == pytest.approx(4 * np.exp(1.959964 * error), rel=1e-6)
    statistic = (20 * 60 - 10 * 30) ** 2 * 120 / (30 * 90 * 50 * 70)
    assert found.chi2_p == pytest.approx(chi2.sf(statistic, 1))
    assert not found.is_adjusted


def test_an_empty_cell_gets_a_half_as_all_cells_do():
    found = judge_table("rest", np.array([[5, 0], [3, 9]]))
    assert found.is_adjusted
    assert found.counts == ((5, 0), (3, 9))
    assert found.odds_ratio.value == pytest.approx(5.5 * 9.5 / (0.5 * 3.5))
    assert found.risk_ratio.value == pytest.approx((5.5 / 6) / (3.5 / 13))
    assert np.isfinite([found.odds_ratio.low, found.odds_ratio.high, found.odds_ratio.p_value]).all()


def test_an_empty_margin_has_a_ratio_near_one_and_no_p():
    found = judge_table("low", np.array([[0, 0], [4, 4]]))
    assert found.odds_ratio.value == 1
    assert np.isnan(found.chi2_p)
    assert np.isnan(found.odds_ratio.p_value)


def test_high_gaps_are_counted_against_the_rest_and_against_low_ones():
    gaps = np.array([3.0, 3.0, 3.0, 0.0, 0.0, -3.0, -3.0])
    is_case = np.array([True, True, False, True, False, False, False])
    rest, low = tabulate_high_gaps(gaps, is_case, 2.0)
    assert rest.counts == ((2, 1), (1, 3))
    assert low.counts == ((2, 1), (0, 2))
    assert low.is_adjusted

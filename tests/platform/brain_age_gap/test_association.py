"""Odds ratios against an independent fit, and the cases in which there are none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from neuroray.platform.brain_age_gap.answers import ages_of, predictions_of
from neuroray.platform.brain_age_gap.association import associate, is_separable


def gaps_of(rows):
    return predictions_of(rows) - ages_of(rows)


def cases_of(rows):
    return np.array([row.group == "patient" for row in rows])


def test_odds_ratios_are_those_of_an_independent_maximum_of_the_likelihood(answers):
    rows = answers(130, gap_years=3.0, slope=1.0, intercept=0.0, num_sites=3)
    gaps, is_case = gaps_of(rows), cases_of(rows)
    found = associate(rows, gaps, is_case)
    sites = sorted({row.site for row in rows})
    columns = [gaps, ages_of(rows), [row.sex == "M" for row in rows], np.ones(len(rows))]
    columns += [[row.site == site for row in rows] for site in sites[1:]]
    design = np.stack([np.asarray(column, dtype=float) for column in columns], axis=1)
    scale = np.array([gaps.std(ddof=1), 10.0, *np.ones(design.shape[1] - 2)])
    sign = np.where(is_case, 1, -1)
    best = minimize(lambda beta: np.log1p(np.exp(-sign * (design / scale @ beta))).sum(), np.zeros(6), method="BFGS")
    # A maximum found by differences, to five digits or so.
    assert found.per_sd.value == pytest.approx(np.exp(best.x[0]), rel=1e-3)
    assert found.per_year.value == pytest.approx(np.exp(best.x[0] / gaps.std(ddof=1)), rel=1e-3)
    share = expit(design / scale @ best.x)
    information = (design / scale).T @ ((share * (1 - share))[:, None] * design / scale)
    error = np.sqrt(np.linalg.inv(information)[0, 0])
    assert found.per_sd.low == pytest.approx(np.exp(best.x[0] - 1.959964 * error), rel=2e-3)
    assert found.covariates == ("age", "sex", "site")
    assert (found.num_controls, found.num_cases) == (66, 64)


def test_taking_age_out_of_the_gap_changes_no_odds_ratio_where_age_is_held(answers):
    rows = answers(130, gap_years=2.0)
    gaps, is_case = gaps_of(rows), cases_of(rows)
    without_age = gaps - np.polyval([-0.3, 12.0], ages_of(rows))
    first, second = (associate(rows, values, is_case) for values in (gaps, without_age))
    assert first.per_year.value == pytest.approx(second.per_year.value, rel=1e-5)
    assert first.per_year.p_value == pytest.approx(second.per_year.p_value, rel=1e-4)


def test_small_sites_are_pooled(answers):
    rows = answers(65, gap_years=2.0, num_sites=30)
    found = associate(rows, gaps_of(rows), cases_of(rows))
    # All of them together are one site, so that none is left to be held.
    assert found.covariates == ("age", "sex")
    assert np.isfinite(found.per_sd.value)


def test_a_site_of_patients_alone_gives_site_up_and_says_so(answers, answer):
    import dataclasses

    rows = [
        dataclasses.replace(row, site="ward" if row.group == "patient" else "town")
        for row in answers(65, gap_years=2.0)
    ]
    found = associate(rows, gaps_of(rows), cases_of(rows))
    assert found.covariates == ("age", "sex")
    assert not found.is_separated
    assert "The fit with site was given up" in found.notes[0]
    assert found.per_sd.low < found.per_sd.value < found.per_sd.high


def test_groups_that_the_gap_separates_have_no_odds_ratio(answers):
    rows = answers(64)
    is_case = cases_of(rows)
    found = associate(rows, np.where(is_case, 6.0, -6.0) + gaps_of(rows) / 10, is_case)
    assert found.is_separated
    assert np.isnan(found.per_sd.value)
    assert "separate" in found.notes[-1]


@pytest.mark.parametrize("touches", [False, True])
def test_separation_is_seen_with_and_without_ties_on_the_border(touches):
    values = np.array([-3.0, -2.0, 0.0, 0.0, 1.0, 2.0]) if touches else np.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    is_case = np.array([False, False, False, True, True, True])
    design = np.stack([values, np.ones(6)], axis=1)
    assert is_separable(design, is_case)
    is_case[0] = True
    assert not is_separable(design, is_case)


def test_people_of_unknown_sex_are_left_out_and_counted(answers):
    import dataclasses

    rows = answers(65, gap_years=2.0)
    known = associate(rows[5:], gaps_of(rows)[5:], cases_of(rows)[5:])
    rows = [dataclasses.replace(row, sex=None) if index < 5 else row for index, row in enumerate(rows)]
    found = associate(rows, gaps_of(rows), cases_of(rows))
    assert found.per_sd == known.per_sd
    assert "5 people without a known sex" in found.notes[0]


def test_relatives_widen_the_errors_as_clusters(answers):
    import dataclasses

    rows = answers(65, gap_years=2.0, num_sites=1)
    twice = [
        dataclasses.replace(row, subject=f"{row.subject}{copy}", family_id=row.subject) for copy in "ab" for row in rows
    ]
    alone, doubled = (associate(some, gaps_of(some), cases_of(some)) for some in (rows, twice))
    assert doubled.per_year.value == pytest.approx(alone.per_year.value, rel=1e-6)
    # Every person counted twice would be sure by a factor of root two; clusters take that back (sandwich, so about).
    widths = [np.log(found.per_year.high / found.per_year.low) for found in (alone, doubled)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert "65 families" in doubled.notes[-1]


def test_one_group_alone_is_not_fitted(answers):
    rows = [row for row in answers(65) if row.group == "control"]
    found = associate(rows, gaps_of(rows), cases_of(rows))
    assert np.isnan(found.per_sd.value)
    assert not found.is_separated
    assert "Too few people of a group" in found.notes[0]

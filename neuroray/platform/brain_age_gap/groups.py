"""Two groups and their gaps: difference of means, ranks, standardised difference, and tables of high gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import gammaln
from scipy.stats import chi2_contingency, fisher_exact, mannwhitneyu, norm, ttest_ind

from neuroray.platform.brain_age_gap.effects import Effect, Z

_ADDED = 0.5  # to every cell of a table with an empty one (Haldane 1956, Anscombe 1956)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupComparison:
    """Cases against controls; all tests are two-sided.

    Attributes:
        mean_controls_years: Of the gap.
        mean_cases_years: As above.
        difference_years: Cases less controls; interval and p of Welch's t test.
        mann_whitney_p: Of the ranks.
        hedges_g: Standardised difference without the bias of small samples; interval and p by its normal approximation.
    """

    num_controls: int
    num_cases: int
    mean_controls_years: float
    mean_cases_years: float
    difference_years: Effect
    mann_whitney_p: float
    hedges_g: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class HighGapTable:
    """A 2 x 2 table of high gaps and the diagnosis.

    Attributes:
        name: Who is compared with those of a high gap.
        counts: Rows: high gap, the others; columns: cases, controls.
        odds_ratio: With Wald's interval; p is that of Fisher's exact test.
        risk_ratio: With Wald's interval on the logarithm.
        chi2_p: Without Yates' correction; NaN where a margin is empty.
        is_adjusted: A half was added to every cell, for one was empty; the p values are of the counts themselves.
    """

    name: str
    counts: tuple[tuple[int, int], tuple[int, int]]
    odds_ratio: Effect
    risk_ratio: Effect
    chi2_p: float
    is_adjusted: bool


def compare_groups(controls: Float[np.ndarray, " row"], cases: Float[np.ndarray, " row"]) -> GroupComparison | None:
    """Welch's t test, Mann and Whitney's, and Hedges' g; None with fewer than two of a group or without any spread."""
    if min(len(controls), len(cases)) < 2 or np.ptp(np.concatenate([controls, cases])) == 0:
        return None
    welch: Any = ttest_ind(cases, controls, equal_var=False)
    interval = welch.confidence_interval(0.95)
    ranks: Any = mannwhitneyu(cases, controls, alternative="two-sided")
    return GroupComparison(
        num_controls=len(controls),
        num_cases=len(cases),
        mean_controls_years=float(controls.mean()),
        mean_cases_years=float(cases.mean()),
        difference_years=Effect(
            value=float(cases.mean() - controls.mean()),
            low=float(interval.low),
            high=float(interval.high),
            p_value=float(welch.pvalue),
        ),
        mann_whitney_p=float(ranks.pvalue),
        hedges_g=_hedges_g(controls, cases),
    )


def tabulate_high_gaps(
    gaps: Float[np.ndarray, " row"], is_case: np.ndarray, threshold_years: float
) -> tuple[HighGapTable, ...]:
    """High gaps (above the threshold) against all others, and against low ones (below its negative)."""
    is_case = np.asarray(is_case, dtype=bool)
    high, low = gaps > threshold_years, gaps < -threshold_years
    tables = []
    for name, others in (("rest", ~high), ("low", low)):
        counts = np.array([[int((row & group).sum()) for group in (is_case, ~is_case)] for row in (high, others)])
        tables.append(judge_table(name, counts))
    return tuple(tables)


def judge_table(name: str, counts: np.ndarray) -> HighGapTable:
    """Odds ratio and risk ratio of a table of counts; a half is added to every cell where one is empty."""
    is_adjusted = bool((counts == 0).any())
    (a, b), (c, d) = counts + _ADDED if is_adjusted else counts.astype(float)
    odds_error = np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
    risk_error = np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))
    has_margins = bool((counts.sum(axis=0) > 0).all() and (counts.sum(axis=1) > 0).all())
    fisher: Any = fisher_exact(counts)
    chi2: Any = chi2_contingency(counts, correction=False) if has_margins else None
    return HighGapTable(
        name=name,
        counts=((int(counts[0, 0]), int(counts[0, 1])), (int(counts[1, 0]), int(counts[1, 1]))),
        odds_ratio=_ratio(a * d / (b * c), odds_error, float(fisher.pvalue) if has_margins else float("nan")),
        risk_ratio=_ratio((a / (a + b)) / (c / (c + d)), risk_error),
        chi2_p=float(chi2.pvalue) if chi2 is not None else float("nan"),
        is_adjusted=is_adjusted,
    )


def _ratio(value: float, error: float, p_value: float = float("nan")) -> Effect:
    low, high = np.exp(np.log(value) + np.array([-Z, Z]) * error)
    return Effect(value=float(value), low=float(low), high=float(high), p_value=p_value)


def _hedges_g(controls: np.ndarray, cases: np.ndarray) -> Effect:
    """Cohen's d with pooled deviation times the exact correction for bias; interval of Hedges and Olkin (1985)."""
    n1, n2 = len(cases), len(controls)
    degrees = n1 + n2 - 2
    pooled = np.sqrt(((n1 - 1) * cases.var(ddof=1) + (n2 - 1) * controls.var(ddof=1)) / degrees)
    bias = float(np.exp(gammaln(degrees / 2) - gammaln((degrees - 1) / 2)) * np.sqrt(2 / degrees))
    g = float(bias * (cases.mean() - controls.mean()) / pooled)
    error = float(np.sqrt((n1 + n2) / (n1 * n2) + g**2 / (2 * (n1 + n2))))
    return Effect(value=g, low=g - Z * error, high=g + Z * error, p_value=float(2 * norm.sf(abs(g / error))))

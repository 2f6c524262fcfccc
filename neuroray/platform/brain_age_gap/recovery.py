"""A gap held against the truth of a simulated cohort: its size in the disease group, its sign, and person by person.

The truth of a person's gap is `brain_age_years - age_years` of the ground truth: what a perfect model of ageing would
find. The part of it that is due to the disease is `brain_age_gap_years`. The disease also shrinks the medial temporal
lobe beyond what its gap does, as diseases do; a model that reads that region as age finds more than was planted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroray.platform.brain_age_gap.answers import AgeAnswer, ages_of, first_visits
from neuroray.platform.brain_age_gap.correction import GAP_KINDS, GAP_LABELS, GapKind
from neuroray.platform.brain_age_gap.errors import GapError
from neuroray.platform.brain_age_gap.evidence import GapStudy
from neuroray.platform.evaluate.intervals import Estimate, draw_resamples, estimate

TOLERATED_FRACTION = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredGap:
    """One kind of gap against the truth.

    Attributes:
        difference_years: Mean gap of cases less that of controls, at first visits.
        fraction: Of the planted difference.
        correlation: Of people's gaps with their true ones, everybody together.
        has_sign: The interval of the difference lies on the planted side of 0.
        is_within: The difference lies within a quarter of the planted one.
    """

    kind: GapKind
    difference_years: Estimate
    fraction: Estimate
    correlation: Estimate
    has_sign: bool
    is_within: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """All kinds of gap against what was planted.

    Attributes:
        planted_years: Mean true gap of these cases less that of these controls: disease, and chance among people.
        disease_years: Its part that is due to the disease.
        num_controls: People.
        num_cases: As above.
        found: By kind of gap.
    """

    planted_years: float
    disease_years: float
    num_controls: int
    num_cases: int
    found: tuple[RecoveredGap, ...]


def recover_gap(study: GapStudy, truth: Sequence[Mapping[str, str | float]], *, case: str | None = None) -> Recovery:
    """Compares the gaps of a study with the ground truth of the simulated cohort that it was made on.

    Args:
        study: With controls named.
        truth: Rows of `read_truth`.
        case: The group to compare with controls; the only other one when left out.

    Raises:
        GapError: no controls or no one other group, or people whom the truth does not know.
    """
    case = case or _only_case(study)
    place = {(row.fold, row.scan_id): index for index, row in enumerate(study.answers)}
    people = [row for row in first_visits(study.answers) if row.group in (*study.controls, case)]
    rows = np.array([place[row.fold, row.scan_id] for row in people])
    true_gaps, of_disease = _find_truth(people, truth)
    is_case = np.array([row.group == case for row in people])
    planted = float(true_gaps[is_case].mean() - true_gaps[~is_case].mean())
    disease = float(of_disease[is_case].mean() - of_disease[~is_case].mean())
    resamples = draw_resamples(
        [row.kin for row in people], is_case.tolist(), seed=study.seed, num_resamples=study.num_resamples
    )
    found = []
    for kind in GAP_KINDS:
        gaps = study.gaps(kind)[rows]
        if np.isfinite(gaps).all():
            found.append(_compare(kind, gaps, true_gaps, is_case, planted, resamples))
    return Recovery(
        planted_years=planted,
        disease_years=disease,
        num_controls=int((~is_case).sum()),
        num_cases=int(is_case.sum()),
        found=tuple(found),
    )


def tell_recovery(recovery: Recovery) -> str:
    """In two sentences."""
    best = next((row for row in recovery.found if row.kind == "cole"), None)
    told = (
        f"Planted between {recovery.num_cases} cases and {recovery.num_controls} controls: "
        f"{recovery.planted_years:.2f} years, of which the disease's {recovery.disease_years:.2f}."
    )
    if best is None:
        return told
    kept = "within" if best.is_within else "not within"
    return (
        f"{told} By inversion (Cole), the correction that keeps years, {best.difference_years.value:.2f} years are "
        f"found ({best.difference_years.low:.2f} to {best.difference_years.high:.2f}): {kept} a quarter of it."
    )


def tabulate_recovery(recovery: Recovery) -> dict[str, Any]:
    """As a table of the page."""
    rows = [
        [
            GAP_LABELS[row.kind],
            f"{row.difference_years.value:.2f} ({row.difference_years.low:.2f} to {row.difference_years.high:.2f})",
            f"{row.fraction.value:.0%} ({row.fraction.low:.0%} to {row.fraction.high:.0%})",
            "yes" if row.has_sign else "no",
            "yes" if row.is_within else "no",
            f"{row.correlation.value:.2f} ({row.correlation.low:.2f} to {row.correlation.high:.2f})",
        ]
        for row in recovery.found
    ]
    head = [
        "",
        "Found, years",
        "Of what was planted",
        "Sign",
        "Within a quarter",
        "Correlation with people's true gaps",
    ]
    note = "Raw gaps hold age besides; they are comparable here because cases and controls are matched in age."
    return {"title": "The disease group's gap", "head": head, "rows": rows, "note": note}


def describe_recovery(recovery: Recovery) -> dict[str, Any]:
    """For the report in JSON."""
    return {
        "planted_years": recovery.planted_years,
        "disease_years": recovery.disease_years,
        "num_controls": recovery.num_controls,
        "num_cases": recovery.num_cases,
        "tolerated_fraction": TOLERATED_FRACTION,
        "found": {
            row.kind: {
                "difference_years": row.difference_years.to_json(),
                "fraction": row.fraction.to_json(),
                "correlation": row.correlation.to_json(),
                "has_sign": row.has_sign,
                "is_within": row.is_within,
            }
            for row in recovery.found
        },
    }


def _only_case(study: GapStudy) -> str:
    names = sorted({case.case for case in study.cases})
    if len(names) != 1:
        raise GapError(
            "a planted gap is that of one group against controls",
            given=", ".join(names) or "no group besides the controls",
            fix="--controls control",
        )
    return names[0]


def _find_truth(
    people: Sequence[AgeAnswer], truth: Sequence[Mapping[str, str | float]]
) -> tuple[np.ndarray, np.ndarray]:
    by_visit = {
        (str(row["participant_id"]).removeprefix("sub-"), str(row["session_id"]).removeprefix("ses-")): row
        for row in truth
    }
    keys = [(row.subject.removeprefix("sub-"), (row.session or "").removeprefix("ses-")) for row in people]
    unknown = sum(key not in by_visit for key in keys)
    if unknown:
        raise GapError(
            "the ground truth is not that of the store's cohort", given=f"{unknown} of {len(keys)} visits unknown"
        )
    found = [by_visit[key] for key in keys]
    brain = np.array([float(row["brain_age_years"]) for row in found])
    return brain - ages_of(people), np.array([float(row["brain_age_gap_years"]) for row in found])


def _compare(
    kind: GapKind,
    gaps: np.ndarray,
    true_gaps: np.ndarray,
    is_case: np.ndarray,
    planted: float,
    resamples: np.ndarray,
) -> RecoveredGap:
    def weigh(weights: np.ndarray) -> dict[str, np.ndarray]:
        difference = _mean(gaps, weights * is_case) - _mean(gaps, weights * ~is_case)
        truth = _mean(true_gaps, weights * is_case) - _mean(true_gaps, weights * ~is_case)
        return {
            "difference": difference,
            # Of what was planted in the very people of the resample.
            "fraction": difference / truth,
            "correlation": _correlate(gaps, true_gaps, weights),
        }

    found = estimate(weigh, resamples)
    difference = found["difference"]
    return RecoveredGap(
        kind=kind,
        difference_years=difference,
        fraction=found["fraction"],
        correlation=found["correlation"],
        has_sign=bool(difference.low > 0) if planted > 0 else bool(difference.high < 0),
        is_within=bool(abs(difference.value - planted) <= TOLERATED_FRACTION * abs(planted)),
    )


def _mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ values / weights.sum(axis=1)


def _correlate(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    share = weights / weights.sum(axis=1, keepdims=True)
    one, two = (values - (share @ values)[:, None] for values in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (share * one * two).sum(axis=1) / np.sqrt((share * one**2).sum(axis=1) * (share * two**2).sum(axis=1))

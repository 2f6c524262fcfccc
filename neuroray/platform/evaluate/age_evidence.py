"""What an evaluation of predicted age tells besides: the mean age beside it, bins of age, limits of agreement."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.evidence import Stratum, part_people
from neuroray.platform.evaluate.intervals import Estimate, estimate
from neuroray.platform.evaluate.metrics import regression_metrics
from neuroray.platform.evaluate.number_evidence import (
    FEWEST_PEOPLE,
    JudgedNumber,
    NumberEvaluation,
    draw_people,
    measure_numbers,
)

BIN_YEARS = 5
_OLDEST_DECADE = 80
_AGE_TARGETS = ("age_years", "age")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeBin:
    """People of nearly one age: what was said of them on average, with its interval over people."""

    low_years: float
    high_years: float
    num_scans: int
    mean_age_years: float
    mean_predicted_years: float
    half_width_years: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeEvidence:
    """Of a model that predicts age.

    Attributes:
        gain_years: By how much its mean error is smaller than that of saying the training mean; below 0: larger.
        error_per_year: Slope of the error on true age: below 0, the old are told to be younger and the young older.
        limits_years: Bland and Altman: mean error, and 1.96 standard deviations below and above it.
        bins: Of five years.
        trained_ages_years: Youngest and oldest of the training people, over all folds.
        num_beyond: Scans of people younger or older than these.
        within: Metrics of the others; empty where all are within, or fewer than two people are.
    """

    gain_years: Estimate
    error_per_year: Estimate
    limits_years: tuple[float, float, float]
    bins: tuple[AgeBin, ...]
    trained_ages_years: tuple[float, float] | None = None
    num_beyond: int = 0
    within: Mapping[str, Estimate] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "gain_over_training_mean_years": self.gain_years.to_json(),
            "error_per_year_of_age": self.error_per_year.to_json(),
            "bland_altman_years": dict(zip(("bias", "lower_limit", "upper_limit"), self.limits_years, strict=True)),
            "bins": [dataclasses.asdict(each) for each in self.bins],
            "trained_ages_years": self.trained_ages_years,
            "num_scans_beyond_trained_ages": self.num_beyond,
            "metrics_within_trained_ages": {name: found.to_json() for name, found in self.within.items()} or None,
        }


def is_age(target: str) -> bool:
    """Whether a target is the age of a person in years."""
    return target in _AGE_TARGETS


def add_age_evidence(evaluation: NumberEvaluation, trained_ages_years: tuple[float, float] | None) -> NumberEvaluation:
    """The same evaluation with what is told of ages besides; parts of the people are judged by their error.

    Args:
        evaluation: Of a target that `is_age`.
        trained_ages_years: Youngest and oldest of the training people; None where it is not known.
    """
    num_resamples = len(evaluation.resamples)
    draws = {"seed": evaluation.seed, "num_resamples": num_resamples}
    found = estimate(partial(_weigh, evaluation.judged), evaluation.resamples)
    errors = evaluation.predicted - evaluation.values
    spread = 1.96 * float(errors.std(ddof=1)) if len(errors) > 1 else float("nan")
    bias = float(errors.mean())
    evidence = AgeEvidence(
        gain_years=found["gain"],
        error_per_year=found["slope"],
        limits_years=(bias, bias - spread, bias + spread),
        bins=bin_ages(evaluation.values, evaluation.predicted),
        trained_ages_years=trained_ages_years,
        **_find_beyond(evaluation.judged, trained_ages_years, draws),
    )
    return dataclasses.replace(
        evaluation, age=evidence, strata=_stratify(evaluation.judged, draws), strata_metric="mae"
    )


def bin_ages(
    ages: Float[np.ndarray, " row"], predicted: Float[np.ndarray, " row"], *, width_years: float = BIN_YEARS
) -> tuple[AgeBin, ...]:
    """Means in bins that begin at multiples of their width; bins without anybody are left out."""
    places = np.floor(ages / width_years).astype(int)
    bins = []
    for place in np.unique(places):
        rows = places == place
        error = predicted[rows].std(ddof=1) / np.sqrt(rows.sum()) if rows.sum() > 1 else float("nan")
        bins.append(
            AgeBin(
                low_years=float(place * width_years),
                high_years=float((place + 1) * width_years),
                num_scans=int(rows.sum()),
                mean_age_years=float(ages[rows].mean()),
                mean_predicted_years=float(predicted[rows].mean()),
                half_width_years=float(1.96 * error) if np.isfinite(error) else 0.0,
            )
        )
    return tuple(bins)


def part_by_decade(judged: Sequence[JudgedNumber]) -> dict[str, list[JudgedNumber]]:
    """People by decade of true age; those of eighty and more together."""
    parts: dict[str, list[JudgedNumber]] = {}
    for row in sorted(judged, key=lambda row: (row.value, row.scan_id)):
        decade = min(int(row.value // 10) * 10, _OLDEST_DECADE)
        name = f"{decade} and over" if decade == _OLDEST_DECADE else f"{decade} to {decade + 9}"
        parts.setdefault(name, []).append(row)
    return parts


def _weigh(judged: Sequence[JudgedNumber], weights: Float[np.ndarray, "resample row"]) -> dict[str, np.ndarray]:
    ages, said, guess = (np.array([getattr(row, name) for row in judged]) for name in ("value", "predicted", "guess"))
    model, guessed = (regression_metrics(ages, told, weights)["mae"] for told in (said, guess))
    share = weights / weights.sum(axis=1, keepdims=True)
    errors = said - ages
    around, about = (values - (share @ values)[:, None] for values in (ages, errors))
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = (share * around * about).sum(axis=1) / (share * around**2).sum(axis=1)
    return {"gain": guessed - model, "slope": slope}


def _find_beyond(
    judged: Sequence[JudgedNumber], trained: tuple[float, float] | None, draws: Mapping[str, int]
) -> dict[str, Any]:
    if trained is None:
        return {}
    within = [row for row in judged if trained[0] <= row.value <= trained[1]]
    num_beyond = len(judged) - len(within)
    if not num_beyond or len({row.subject for row in within}) < 2:
        return {"num_beyond": num_beyond}
    return {"num_beyond": num_beyond, "within": measure_numbers(within, draw_people(within, **draws))}


def _stratify(judged: Sequence[JudgedNumber], draws: Mapping[str, int]) -> tuple[Stratum, ...]:
    parts = {"Age": part_by_decade(judged)} | {
        name: levels for name, levels in part_people(judged).items() if name != "Age" and len(levels) > 1
    }
    found = []
    for variable, levels in parts.items():
        for level, rows in levels.items():
            value = None
            if len({row.subject for row in rows}) >= FEWEST_PEOPLE:
                value = measure_numbers(rows, draw_people(rows, **draws))["mae"]
            found.append(Stratum(variable=variable, level=level, counts=(len(rows),), found=value))
    return tuple(found)

"""What an evaluation found of a measure, as plain values: who was judged, how far off, for whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.conformal import PredictionInterval
from neuroray.platform.evaluate.coverage import Coverage
from neuroray.platform.evaluate.evidence import Fold, Stratum, part_people
from neuroray.platform.evaluate.intervals import Estimate, draw_resamples, estimate
from neuroray.platform.evaluate.metrics import regression_metrics
from neuroray.platform.evaluate.seed_spread import SeedSpread

if TYPE_CHECKING:
    from neuroray.platform.evaluate.age_evidence import AgeEvidence

FEWEST_PEOPLE = 8
"""Of fewer a metric within a stratum says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedNumber:
    """One held-out scan, its true value and what the model said.

    Attributes:
        fold: Which model said it.
        scan_id: Of the store; goes into predictions.csv and nowhere else.
        subject: Whose scan it is; as above.
        family_id: Whom the person is related to; as above.
        value: The truth, in the target's unit.
        predicted: What was said: the mean over the windows.
        spread: Standard deviation over windows; None of one.
        num_windows: How many there were.
        interval: Where the truth was said to lie.
        no_interval: Why it was not said.
        guess: What the fold's training scans have on average: the answer of a model that looks at nothing.
    """

    fold: int
    scan_id: str
    subject: str
    family_id: str | None = None
    value: float
    predicted: float
    spread: float | None = None
    num_windows: int = 1
    interval: PredictionInterval | None = None
    no_interval: str | None = None
    guess: float
    age_years: float | None = None
    sex: str | None = None
    site: str | None = None

    @property
    def group(self) -> str:
        """The family or the person: what a bootstrap draws or leaves as a whole."""
        return name_group(self.subject, self.family_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberEvaluation:
    """All that the report of a measure tells.

    Attributes:
        metrics: Over scans.
        metrics_by_person: Over people, of whom the scans with one truth are averaged; empty where all have one scan.
        guess: The same metrics, without intervals, of saying the training mean of everybody.
        coverage: How often prediction intervals held the truth; None where there are none.
        seeds: Where several seeds were judged together; the rest is then of the mean of what they say.
        strata: A metric, `strata_metric`, within parts of the people.
        validation: What each fold's model says of the people that it was selected on, for corrections of a brain age
            gap, and for the intervals of several models together; they are in no metric. Empty where it is for neither.
        age: What is told besides where the target is age.
    """

    model_name: str
    target: str
    unit: str
    modality: str
    judged: tuple[JudgedNumber, ...]
    folds: tuple[Fold, ...]
    metrics: Mapping[str, Estimate]
    metrics_by_person: Mapping[str, Estimate]
    guess: Mapping[str, float]
    strata: tuple[Stratum, ...]
    resamples: Float[np.ndarray, "resample row"]
    seed: int
    provenance: Mapping[str, Any]
    coverage: Coverage | None = None
    seeds: SeedSpread | None = None
    warnings: tuple[str, ...] = field(default=())
    strata_metric: str = "pearson_r"
    validation: tuple[JudgedNumber, ...] = ()
    age: AgeEvidence | None = None

    @property
    def values(self) -> Float[np.ndarray, " row"]:
        """The truth, one a held-out scan."""
        return np.array([row.value for row in self.judged])

    @property
    def predicted(self) -> Float[np.ndarray, " row"]:
        """What the model said of each."""
        return np.array([row.predicted for row in self.judged])

    @property
    def no_interval(self) -> str | None:
        """Why there are no prediction intervals, of the first scan without one; None where all have one."""
        return next((row.no_interval for row in self.judged if row.interval is None), None)

    @property
    def num_people(self) -> int:
        """People judged, each counted once."""
        return len({row.subject for row in self.judged})


def name_group(subject: str, family_id: str | None) -> str:
    """Scans with one name are not independent: those of a family, or of a person without one."""
    return f"family:{family_id}" if family_id else f"subject:{subject}"


def draw_people(judged: Sequence[JudgedNumber], *, seed: int, num_resamples: int) -> Float[np.ndarray, "resample row"]:
    """Resamples over families or people."""
    groups = [row.group for row in judged]
    return draw_resamples(groups, ["all"] * len(groups), seed=seed, num_resamples=num_resamples)


def measure_numbers(
    judged: Sequence[JudgedNumber], resamples: Float[np.ndarray, "resample row"]
) -> dict[str, Estimate]:
    """Every regression metric with its interval."""
    values, predicted = np.array([row.value for row in judged]), np.array([row.predicted for row in judged])
    return estimate(partial(regression_metrics, values, predicted), resamples)


def weigh_judged(judged: Sequence[JudgedNumber], *, seed: int, num_resamples: int) -> dict[str, Any]:
    """What follows from the judged rows alone, by the fields of `NumberEvaluation`."""
    draws = {"seed": seed, "num_resamples": num_resamples}
    resamples, people = draw_people(judged, **draws), average_people(judged)
    return {
        "judged": tuple(judged),
        "metrics": measure_numbers(judged, resamples),
        "metrics_by_person": measure_numbers(people, draw_people(people, **draws)) if len(people) < len(judged) else {},
        "guess": guess_numbers(judged),
        "strata": stratify_numbers(judged, **draws),
        "resamples": resamples,
        "seed": seed,
    }


def guess_numbers(judged: Sequence[JudgedNumber]) -> dict[str, float]:
    """The metrics of saying the training mean."""
    values, guessed = np.array([row.value for row in judged]), np.array([row.guess for row in judged])
    return {name: float(found[0]) for name, found in regression_metrics(values, guessed).items()}


def average_people(judged: Sequence[JudgedNumber]) -> list[JudgedNumber]:
    """One row a person and fold, the mean of what is said of his or her scans; another truth makes another row."""
    rows: dict[tuple[int, str, float], list[JudgedNumber]] = {}
    for row in judged:
        rows.setdefault((row.fold, row.subject, row.value), []).append(row)
    return [
        dataclasses.replace(some[0], predicted=float(np.mean([row.predicted for row in some])))
        for some in rows.values()
    ]


def stratify_numbers(judged: Sequence[JudgedNumber], *, seed: int, num_resamples: int) -> tuple[Stratum, ...]:
    """The correlation by sex, by third of age and by site, as far as known; a variable with one level is left out."""
    found = []
    for variable, levels in part_people(judged).items():
        if len(levels) < 2:
            continue
        for level, rows in levels.items():
            value = None
            if len({row.subject for row in rows}) >= FEWEST_PEOPLE:
                drawn = draw_people(rows, seed=seed, num_resamples=num_resamples)
                value = measure_numbers(rows, drawn)["pearson_r"]
            found.append(Stratum(variable=variable, level=level, counts=(len(rows),), found=value))
    return tuple(found)

"""Whether generated brains help: age told of real scans, learned from real scans, and from generated ones besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.baselines.volume_predictors import fit_components
from neuroray.platform.evaluate.ageing_bench import Bench
from neuroray.platform.evaluate.ageing_evidence import Downstream, estimate_means
from neuroray.platform.evaluate.generated_ages import coarsen_volume, find_step
from neuroray.platform.evaluate.intervals import draw_resamples, estimate
from neuroray.platform.evaluate.metrics import EvaluationError, regression_metrics
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.storage.records import ScanRecord

REAL, BOTH = "real", "real_and_generated"
_PER_SCAN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldTwice:
    """One fold's held-out real scans, told by both trainings.

    Attributes:
        ages_years: The truth.
        groups: Family or person of each.
        told: `real` and `real_and_generated`, in years.
        num_real: Real scans trained on.
        num_generated: Generated ones.
    """

    ages_years: tuple[float, ...]
    groups: tuple[str, ...]
    told: Mapping[str, tuple[float, ...]]
    num_real: int
    num_generated: int


def train_twice(bench: Bench, *, seed: int) -> ToldTwice:
    """Ridge regression on principal components of coarse voxels, of the training people's scans.

    Each training scan is told at two ages, drawn evenly among those that gaps and ages of the training reach; groups of
    the inner folds, by which the penalty is chosen, hold a person's real and generated scans together.

    Raises:
        EvaluationError: fewer than two training people.
    """
    read = bench.read_train
    if read is None or len({record.subject for record in bench.train}) < 2:
        given = "their scans are out of reach" if read is None else len(bench.train)
        raise EvaluationError("too few training people for --downstream", given=given, expected="2 people")
    step = find_step(read(bench.train[0]))
    real = [(record, float(record.age_years or 0), read(record).volume) for record in bench.train]
    generator = np.random.default_rng(seed)
    made = []
    for record in bench.train:
        visit = read(record)
        for age in draw_ages(visit.age_years, bench.model.card, generator):
            made.append((record, age, bench.tellers[0].tell(visit, age).volume))
    test = sorted({one.scan_id: one for pair in bench.pairs for one in (pair.previous, pair.target)}.items())
    judged = np.stack([coarsen_volume(bench.read(record).volume, step) for _, record in test])
    told = {REAL: _fit(real, step, seed)(judged), BOTH: _fit([*real, *made], step, seed)(judged)}
    return ToldTwice(
        ages_years=tuple(float(record.age_years or 0) for _, record in test),
        groups=tuple(name_group(record.subject, record.family_id) for _, record in test),
        told={name: tuple(float(value) for value in values) for name, values in told.items()},
        num_real=len(real),
        num_generated=len(made),
    )


def draw_ages(age_years: float, card: Mapping[str, Any], generator: np.random.Generator) -> list[float]:
    """Two ages within reach of the training; none where there is nothing within reach."""
    shortest, longest = card["gap_range_years"]
    youngest, oldest = card["age_range_years"]
    low, high = max(youngest, age_years + shortest), min(oldest, age_years + longest)
    drawn = generator.uniform(0, 1, _PER_SCAN)  # drawn in any case, so that others' ages do not depend on it
    return [float(low + share * (high - low)) for share in drawn] if high > low else []


def weigh_downstream(told: Sequence[ToldTwice], *, seed: int, num_resamples: int) -> Downstream:
    """Both trainings on the same real scans, over all folds."""
    truth = np.array([age for one in told for age in one.ages_years])
    groups = [group for one in told for group in one.groups]
    resamples = draw_resamples(groups, ["all"] * len(groups), seed=seed, num_resamples=num_resamples)
    answers = {row: np.array([age for one in told for age in one.told[row]]) for row in (REAL, BOTH)}

    def weigh_row(row: str, weights: Float[np.ndarray, "resample row"]) -> dict[str, Float[np.ndarray, " resample"]]:
        found = regression_metrics(truth, answers[row], weights)
        return {name: found[name] for name in ("mae", "r2")}

    less = np.abs(answers[BOTH] - truth) - np.abs(answers[REAL] - truth)
    return Downstream(
        metrics={row: estimate(lambda weights, row=row: weigh_row(row, weights), resamples) for row in answers},
        less_error=estimate_means({"less": less}, resamples)["less"],
        num_real=sum(one.num_real for one in told),
        num_generated=sum(one.num_generated for one in told),
        num_judged=len(truth),
    )


def _fit(rows: Sequence[tuple[ScanRecord, float, np.ndarray]], step: int, seed: int) -> Any:
    inputs = np.stack([coarsen_volume(volume, step) for _, _, volume in rows])
    groups = np.array([name_group(record.subject, record.family_id) for record, _, _ in rows])
    return fit_components(inputs, np.array([age for _, age, _ in rows]), groups, seed=seed)

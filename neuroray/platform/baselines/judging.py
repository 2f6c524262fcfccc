"""Predictors judged side by side: one table of people, one set of resamples, differences taken pair by pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.question import Question
from neuroray.platform.evaluate.intervals import Estimate, bound_extreme, draw_resamples, estimate
from neuroray.platform.evaluate.metrics import classification_metrics, regression_metrics


class JudgingConfig(Protocol):
    """What a configuration of a comparison says of its judgement."""

    @property
    def num_resamples(self) -> int:
        """Of the bootstrap over families or people."""
        ...

    @property
    def seed(self) -> int:
        """Of the bootstrap."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one predictor said of all judged scans.

    Attributes:
        name: Of the baseline or model.
        label: For the table.
        is_model: Whether it is what the baselines are compared with.
        predictions: Probabilities of each class, or the measure in one column, in the order of the judged scans.
        metrics: With intervals.
    """

    name: str
    label: str
    is_model: bool
    predictions: Float[np.ndarray, "row output"]
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One predictor minus a baseline in one metric, on the same resamples.

    Attributes:
        name: The predictor.
        baseline: Name of the baseline.
        metric: Of which.
        found: The difference with its interval.
        p_value: Two-sided, from the bootstrap: twice the smaller share of resamples on either side of 0, ties counting
            half, at least 2 / resamples.
    """

    name: str
    baseline: str
    metric: str
    found: Estimate
    p_value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that the table tells.

    Attributes:
        judged: (fold, scan) of every row, sorted.
        truths: The value of each.
        answers: Of each predictor.
        differences: Of the model from each baseline; empty without a model.
        skipped: Baselines that were not run, and why.
        num_regions: Of each fold's parcellation; empty where there are no regions.
        inputs: What was seen, and how it was made, in sentences.
        gains: Of each predictor over the mean, where that was asked for.
    """

    question: Question
    config: JudgingConfig
    judged: tuple[tuple[int, str], ...]
    truths: Float[np.ndarray, " row"]
    answers: tuple[Answers, ...]
    differences: tuple[Difference, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    num_regions: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    gains: tuple[Difference, ...] = ()


def measure(
    question: Question, centres: Float[np.ndarray, " row"], truths: np.ndarray, predictions: np.ndarray
) -> Callable[[Float[np.ndarray, "resample row"]], Mapping[str, np.ndarray]]:
    """The metrics of some predictions as a function of weights.

    Measures are taken from the training mean of their own fold. Pooled as they are, a predictor that says the mean
    would correlate negatively with the truth: a fold whose test people score high has a lower mean to say.
    """
    if question.kind == "classification":
        return lambda weights: classification_metrics(truths.astype(int), predictions, weights)
    return lambda weights: regression_metrics(truths - centres, predictions[:, 0] - centres, weights)


def align_model(
    model: Mapping[tuple[int, str], Sequence[float]], rows: Sequence[tuple[int, str]]
) -> Float[np.ndarray, "row output"]:
    """The model's answers in the order of the rows.

    Raises:
        BaselineError: it was judged on other scans.
    """
    if set(model) != set(rows):
        raise BaselineError(
            "the model was judged on other scans than the baselines",
            given=f"{len(set(model) - set(rows))} scans more, {len(set(rows) - set(model))} fewer",
            fix="evaluate the run again: neuroray evaluate",
        )
    return np.array([model[row] for row in rows], dtype=np.float64)


def judge_answers(
    question: Question,
    config: JudgingConfig,
    rows: Sequence[tuple[int, str]],
    found: Mapping[str, tuple[str, np.ndarray, bool]],
    *,
    against_mean: bool = False,
    **facts: Any,
) -> Comparison:
    """Metrics of each predictor with intervals, and the model's differences from the baselines.

    Args:
        question: The target and the folds.
        config: Of the bootstrap.
        rows: (fold, scan) of everybody judged.
        found: By name the label, what was said in the order of the rows, and whether it is the model.
        against_mean: Also take each predictor's difference from the one called `mean`.
        facts: Further fields of the comparison.
    """
    truths = np.array([question.values[scan_id] for _, scan_id in rows])
    centre = {index: question.side(split, "train")[1].mean() for index, split in question.folds}
    centres = np.array([centre[fold] for fold, _ in rows])
    strata = truths.tolist() if question.kind == "classification" else [0] * len(rows)
    groups = [question.groups[scan_id] for _, scan_id in rows]
    resamples = draw_resamples(groups, strata, seed=config.seed, num_resamples=config.num_resamples)
    weigh = {name: measure(question, centres, truths, told) for name, (_, told, _) in found.items()}
    trials = _count_trials(question, truths, groups)
    answers = tuple(
        Answers(
            name=name,
            label=label,
            is_model=is_model,
            predictions=told,
            metrics={
                metric: bound_extreme(value, trials.get(metric, 0))
                for metric, value in estimate(weigh[name], resamples).items()
            },
        )
        for name, (label, told, is_model) in found.items()
    )
    differences = [
        difference
        for name, (_, _, is_model) in found.items()
        if "model" in found and not is_model
        for difference in _subtract("model", name, weigh, resamples)
    ]
    gains = [
        difference
        for name in found
        if against_mean and "mean" in found and name != "mean"
        for difference in _subtract(name, "mean", weigh, resamples)
    ]
    return Comparison(
        question=question,
        config=config,
        judged=tuple(rows),
        truths=truths,
        answers=answers,
        differences=tuple(differences),
        gains=tuple(gains),
        **facts,
    )


def _count_trials(question: Question, truths: np.ndarray, groups: Sequence[str]) -> dict[str, int]:
    """Independent people behind a rate, for the exact interval of one that is 0 or 1; as `neuroray evaluate` counts."""
    if question.kind == "regression":
        return {}
    named = np.asarray(groups)
    people = [len(set(named[truths == index])) for index in range(len(question.classes))]
    trials = {"accuracy": len(set(groups)), "balanced_accuracy": min(people)}
    if len(people) == 2:
        trials |= {"auc": min(people), "specificity": people[0], "sensitivity": people[1]}
    return trials


def _subtract(
    name: str,
    baseline: str,
    weigh: Mapping[str, Callable[..., Any]],
    resamples: Float[np.ndarray, "resample row"],
) -> list[Difference]:
    """One predictor minus a baseline in every metric, resample by resample."""
    drawn: list[dict[str, np.ndarray]] = []

    def both(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        first, second = weigh[name](weights), weigh[baseline](weights)
        values = {metric: first[metric] - second[metric] for metric in first}
        drawn.append(values)
        return values

    found = estimate(both, resamples)
    return [
        Difference(
            name=name,
            baseline=baseline,
            metric=metric,
            found=value,
            # The first call is the estimate itself; the others are the resamples.
            p_value=_p_value(np.concatenate([values[metric] for values in drawn[1:]])),
        )
        for metric, value in found.items()
    ]


def _p_value(differences: Float[np.ndarray, " resample"]) -> float:
    defined = differences[np.isfinite(differences)]
    if len(defined) == 0:
        return float("nan")
    above = float((defined > 0).mean() + (defined == 0).mean() / 2)
    return max(2 * min(above, 1 - above), 2 / len(defined)) if above != 0.5 else 1.0

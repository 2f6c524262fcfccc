"""compare: every baseline, and a model where there is one, on the same held-out people, with paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.config import Config
from neuroray.platform.baselines.brainnetcnn import fit_brainnetcnn
from neuroray.platform.baselines.connectivity import measure_runs, stack_features
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.parcels import ParcelConfig, make_parcels
from neuroray.platform.baselines.predictors import (
    Baseline,
    Features,
    Sample,
    Task,
    fit_anatomy,
    fit_logistic,
    fit_mean,
    fit_ridge,
    fit_xgboost,
)
from neuroray.platform.baselines.question import Question
from neuroray.platform.baselines.series import CleaningConfig
from neuroray.platform.baselines.swin4d import fit_swin4d
from neuroray.platform.baselines.voxel_windows import RunWindows
from neuroray.platform.data.splits import SIDES, Split
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES, Estimate, bound_extreme, draw_resamples, estimate
from neuroray.platform.evaluate.metrics import classification_metrics, regression_metrics
from neuroray.storage.store import ScanStore

BASELINES = {
    "mean": Baseline(label="Mean or majority, without looking", kinds=("classification", "regression"), fit=fit_mean),
    "anatomy": Baseline(
        label="Linear on regional mean signal", kinds=("classification", "regression"), fit=fit_anatomy
    ),
    "ridge": Baseline(label="Ridge on connectivity", kinds=("regression",), fit=fit_ridge),
    "logistic": Baseline(label="Logistic regression on connectivity", kinds=("classification",), fit=fit_logistic),
    "xgboost": Baseline(
        label="XGBoost on connectivity",
        kinds=("classification", "regression"),
        fit=fit_xgboost,
        package="xgboost",
    ),
    "brainnetcnn": Baseline(label="BrainNetCNN", kinds=("classification", "regression"), fit=fit_brainnetcnn),
    "swin4d": Baseline(
        label="Swin-4D on voxels", kinds=("classification", "regression"), fit=fit_swin4d, by_default=False
    ),
}
"""Every baseline by name, in the order of the table."""

Track = Callable[[Sequence[str], str], Iterable[str]]
"""Shows progress over scan ids under a label; `platform` itself shows nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig(Config):
    """How baselines are fitted and judged.

    Attributes:
        parcels: The regions.
        cleaning: What is taken out of their series.
        num_resamples: Of the bootstrap over families or people.
        seed: Of the bootstrap, of inner folds and of the networks.
    """

    parcels: ParcelConfig = field(default_factory=ParcelConfig)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    num_resamples: int = NUM_RESAMPLES
    seed: int = 0


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
    """Model minus baseline in one metric, on the same resamples.

    Attributes:
        baseline: Name of the baseline.
        metric: Of which.
        found: The difference with its interval.
        p_value: Two-sided, from the bootstrap: twice the smaller share of resamples on either side of 0, ties counting
            half, at least 2 / resamples.
    """

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
        num_regions: Of each fold's parcellation.
    """

    question: Question
    config: CompareConfig
    judged: tuple[tuple[int, str], ...]
    truths: Float[np.ndarray, " row"]
    answers: tuple[Answers, ...]
    differences: tuple[Difference, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    num_regions: tuple[int, ...] = ()


def compare(
    question: Question,
    store: ScanStore,
    config: CompareConfig,
    *,
    names: Sequence[str] | None = None,
    model: Mapping[tuple[int, str], Sequence[float]] | None = None,
    model_label: str = "Model",
    track: Track | None = None,
) -> Comparison:
    """Fits each baseline on the training side of each fold and judges it on its test side, all folds pooled.

    Regions are fitted, penalties chosen and inputs scaled on the training side of the fold alone; the validation side
    only stops trees and networks from growing on.

    Args:
        question: The target and the folds.
        store: The runs.
        config: How.
        names: Baselines, in any order; None: all for this kind of target that can run here in
            seconds.
        model: What a model said of the same test scans: probabilities in the order of the question's classes, or the
            measure, by (fold, scan).
        model_label: What it is called.
        track: Shows progress.

    Raises:
        BaselineError: an unknown baseline, one that is not for this target, or a model that was judged on other scans.
        StoreError: a run cannot be read.
    """
    chosen, skipped = choose_baselines(question, names)
    # Pinned, the catalogue is read once and not for every run, and all folds see the same.
    store = ScanStore(store.uri, version=store.version)
    rows: list[tuple[int, str]] = []
    told: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    sizes = []
    for index, split in question.folds:
        samples, num_regions = _measure_fold(question, split, store, config, track, with_voxels="swin4d" in chosen)
        task = Task(kind=question.kind, num_classes=len(question.classes), seed=config.seed)
        sizes.append(num_regions)
        rows += [(index, scan_id) for scan_id in question.side(split, "test")[0]]
        for name in chosen:
            predict = BASELINES[name].fit(samples["train"], samples["val"], task)
            told[name].append(predict(samples["test"].features))
    found = {name: (BASELINES[name].label, np.concatenate(parts), False) for name, parts in told.items()}
    if model is not None:
        found["model"] = (model_label, _align(model, rows), True)
    return _judge(question, config, rows, found, skipped=skipped, num_regions=tuple(sizes))


def choose_baselines(question: Question, names: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The baselines to run, in the table's order, and those left out with the reason.

    Raises:
        BaselineError: a name that is none, a baseline for another kind of target, or one whose package is missing.
    """
    suited = [name for name, baseline in BASELINES.items() if question.kind in baseline.kinds]
    if names is None:
        skipped = {
            name: "it takes minutes a fold, and runs only where it is named"
            if BASELINES[name].is_available()
            else f"{BASELINES[name].package} is not installed"
            for name in suited
            if not (BASELINES[name].by_default and BASELINES[name].is_available())
        }
        return [name for name in suited if name not in skipped], skipped
    wrong = [name for name in names if name not in suited]
    if wrong:
        raise BaselineError(
            f"no baseline {', '.join(wrong)} for {question.kind}", expected=f"some of {', '.join(suited)}"
        )
    absent = [name for name in names if not BASELINES[name].is_available()]
    if absent:
        raise BaselineError(f"{', '.join(absent)} cannot run here", fix='pip install "neuroray[baselines]"')
    return [name for name in suited if name in names], {}


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


def _measure_fold(
    question: Question,
    split: Split,
    store: ScanStore,
    config: CompareConfig,
    track: Track | None,
    *,
    with_voxels: bool,
) -> tuple[dict[str, Sample], int]:
    parcels = make_parcels(store, split.train, config.parcels, config.cleaning)
    wanted = sorted(scan_id for side in SIDES for scan_id in question.side(split, side)[0])
    shown = track(wanted, "connectivity") if track else wanted
    found = measure_runs(store, shown, parcels, config.cleaning)
    samples = {}
    for side in SIDES:
        scan_ids, values, groups = question.side(split, side)
        edges, levels = stack_features(found, scan_ids)
        runs = RunWindows(store, scan_ids) if with_voxels else None
        features = Features(edges=edges, levels=levels, num_regions=parcels.num_regions, runs=runs)
        samples[side] = Sample(features=features, values=values, groups=groups)
    return samples, parcels.num_regions


def _align(
    model: Mapping[tuple[int, str], Sequence[float]], rows: Sequence[tuple[int, str]]
) -> Float[np.ndarray, "row output"]:
    if set(model) != set(rows):
        raise BaselineError(
            "the model was judged on other scans than the baselines",
            given=f"{len(set(model) - set(rows))} scans more, {len(set(rows) - set(model))} fewer",
            fix="evaluate the run again: neuroray evaluate",
        )
    return np.array([model[row] for row in rows], dtype=np.float64)


def _judge(
    question: Question,
    config: CompareConfig,
    rows: Sequence[tuple[int, str]],
    found: Mapping[str, tuple[str, np.ndarray, bool]],
    **facts: Any,
) -> Comparison:
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
        for difference in _subtract(name, weigh["model"], weigh[name], resamples)
    ]
    return Comparison(
        question=question,
        config=config,
        judged=tuple(rows),
        truths=truths,
        answers=answers,
        differences=tuple(differences),
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
    name: str, model: Callable[..., Any], baseline: Callable[..., Any], resamples: Float[np.ndarray, "resample row"]
) -> list[Difference]:
    """Model minus baseline in every metric, resample by resample."""
    drawn: list[dict[str, np.ndarray]] = []

    def both(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        first, second = model(weights), baseline(weights)
        values = {metric: first[metric] - second[metric] for metric in first}
        drawn.append(values)
        return values

    found = estimate(both, resamples)
    return [
        Difference(
            baseline=name,
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

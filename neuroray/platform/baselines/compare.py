"""compare: every baseline, and a model where there is one, on the same held-out people, with paired differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from neuroray.config import Config
from neuroray.platform.baselines.brainnetcnn import fit_brainnetcnn
from neuroray.platform.baselines.connectivity import measure_runs, stack_features
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.judging import Comparison, align_model, judge_answers
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
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
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
        found["model"] = (model_label, align_model(model, rows), True)
    return judge_answers(
        question,
        config,
        rows,
        found,
        skipped=skipped,
        num_regions=tuple(sizes),
        inputs=(_describe_inputs(config, sizes),),
    )


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


def _describe_inputs(config: CompareConfig, num_regions: Sequence[int]) -> str:
    regions = ", ".join(map(str, sorted(set(num_regions))))
    common = ", and the mean of all regions" if config.cleaning.global_signal else ""
    return (
        f"Regions: {config.parcels.method}, {regions}; fitted ones on the training side of each fold. "
        f"Series: drifts below {config.cleaning.high_pass_hz} Hz taken out{common}."
    )

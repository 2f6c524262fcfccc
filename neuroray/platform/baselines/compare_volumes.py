"""compare_volumes: every baseline on volumes, and a model where there is one, on the same held-out people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuroray.config import Config
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.judging import Comparison, align_model, judge_answers
from neuroray.platform.baselines.predictors import Task
from neuroray.platform.baselines.question import Question
from neuroray.platform.baselines.sfcn import fit_sfcn
from neuroray.platform.baselines.slice_features import find_features, pool_slices
from neuroray.platform.baselines.volume_predictors import (
    PredictVolumes,
    VolumeFeatures,
    VolumeSample,
    fit_pooled_slices,
    fit_ridge_pca,
    fit_volume_mean,
)
from neuroray.platform.baselines.volumes import VolumeConfig, VolumeTable, read_volumes
from neuroray.platform.data.splits import SIDES, Split
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
from neuroray.storage.store import ScanStore

Track = Callable[[Sequence[str], str], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeBaseline:
    """A predictor of a measure by name: what it is called, and from two sides to a function of features."""

    label: str
    fit: Callable[[VolumeSample, VolumeSample, Task], PredictVolumes]


VOLUME_BASELINES = {
    "mean": VolumeBaseline(label="Training mean, without looking", fit=fit_volume_mean),
    "ridge_pca": VolumeBaseline(label="Ridge on principal components of voxels", fit=fit_ridge_pca),
    "vit_ridge": VolumeBaseline(label="Ridge on slice features, mean over slices", fit=fit_pooled_slices),
    "sfcn": VolumeBaseline(label="SFCN, small (3D CNN)", fit=fit_sfcn),
}
"""Every baseline by name, in the order of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeCompareConfig(Config):
    """How baselines on volumes are fitted and judged.

    Attributes:
        volumes: The coarse grid.
        features: Fingerprint of the slice features, where a store has those of several encoders.
        num_resamples: Of the bootstrap over families or people.
        seed: Of the bootstrap, of inner folds and of the network.
    """

    volumes: VolumeConfig = field(default_factory=VolumeConfig)
    features: str | None = None
    num_resamples: int = NUM_RESAMPLES
    seed: int = 0


def compare_volumes(
    question: Question,
    store: ScanStore,
    config: VolumeCompareConfig,
    *,
    names: Sequence[str] | None = None,
    model: Mapping[tuple[int, str], Sequence[float]] | None = None,
    model_label: str = "Model",
    track: Track | None = None,
) -> Comparison:
    """Fits each baseline on the training side of each fold and judges it on its test side, all folds pooled.

    Components, penalties and scales come from the training side of the fold alone; the validation side only stops the
    network. The coarse volumes are made once, from each scan by itself.

    Args:
        question: A measure and the folds.
        store: The volumes.
        config: How.
        names: Baselines, in any order; None: all that can run here.
        model: What a model said of the same test scans, by (fold, scan).
        model_label: What it is called.
        track: Shows progress.

    Raises:
        BaselineError: a target of classes, an unknown baseline, features that are not there, or a model that was judged
            on other scans.
        StoreError: a scan cannot be read.
    """
    store = ScanStore(store.uri, version=store.version)
    wanted = sorted(
        {scan_id for _, split in question.folds for side in SIDES for scan_id in _ids(question, split, side)}
    )
    slices, skipped = _find_slices(store, wanted, config, names)
    chosen = _choose(question, names, skipped)
    table = read_volumes(store, track(wanted, "volumes") if track else wanted, config.volumes)
    rows: list[tuple[int, str]] = []
    told: dict[str, list[np.ndarray]] = {name: [] for name in chosen}
    task = Task(kind="regression", num_classes=0, seed=config.seed)
    for index, split in question.folds:
        samples = {side: _sample(question, split, side, table, slices) for side in SIDES}
        rows += [(index, scan_id) for scan_id in _ids(question, split, "test")]
        for name in track(chosen, f"fold {index}") if track else chosen:
            predict = VOLUME_BASELINES[name].fit(samples["train"], samples["val"], task)
            told[name].append(predict(samples["test"].features))
    found = {name: (VOLUME_BASELINES[name].label, np.concatenate(parts), False) for name, parts in told.items()}
    if model is not None:
        found["model"] = (model_label, align_model(model, rows), True)
    inputs = [f"Volumes: {table.method}."]
    inputs += ["Voxels are standardised, components found and penalties chosen on the training side of each fold."]
    return judge_answers(question, config, rows, found, against_mean=True, skipped=skipped, inputs=tuple(inputs))


def _ids(question: Question, split: Split, side: Any) -> tuple[str, ...]:
    return question.side(split, side)[0]


def _find_slices(
    store: ScanStore, scan_ids: Sequence[str], config: VolumeCompareConfig, names: Sequence[str] | None
) -> tuple[dict[str, np.ndarray] | None, dict[str, str]]:
    if names is not None and "vit_ridge" not in names:
        return None, {}
    features, reason = find_features(store, scan_ids, config.features)
    if features is not None:
        return pool_slices(features, scan_ids), {}
    if names is not None:
        raise BaselineError("vit_ridge cannot run here", given=reason, fix="neuroray extract RECIPE STORE")
    return None, {"vit_ridge": reason}


def _choose(question: Question, names: Sequence[str] | None, skipped: Mapping[str, str]) -> list[str]:
    if question.kind != "regression":
        raise BaselineError(
            "baselines on volumes predict a measure", given=f"{question.target}, of classes", fix="--kind regression"
        )
    wrong = [name for name in names or () if name not in VOLUME_BASELINES]
    if wrong:
        raise BaselineError(
            f"no baseline {', '.join(wrong)} on volumes", expected=f"some of {', '.join(VOLUME_BASELINES)}"
        )
    return [name for name in VOLUME_BASELINES if (names is None or name in names) and name not in skipped]


def _sample(
    question: Question, split: Split, side: Any, table: VolumeTable, slices: dict[str, np.ndarray] | None
) -> VolumeSample:
    scan_ids, values, groups = question.side(split, side)
    pooled = None if slices is None else np.stack([slices[scan_id] for scan_id in scan_ids])
    features = VolumeFeatures(volumes=table.stack(scan_ids), slices=pooled)
    return VolumeSample(features=features, values=values, groups=groups)

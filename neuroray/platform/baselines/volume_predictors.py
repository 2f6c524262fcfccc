"""Predictors of a measure from volumes: the mean, ridge on principal components, ridge on pooled slice features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Shaped

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.predictors import Task

PredictVolumes = Callable[["VolumeFeatures"], Float[np.ndarray, "row output"]]

_INNER_FOLDS = 5
_NUM_COMPONENTS = (2, 5, 10, 20, 40, 80, 160)
_PENALTIES = np.logspace(-4, 2, 13)
# Of the largest standard deviation: columns below it are air.
_STILL = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeFeatures:
    """What predictors see of some volumes.

    Attributes:
        volumes: On the coarse grid.
        slices: Mean over slices of an encoder's features, where the store has them.
    """

    volumes: Float32[np.ndarray, "row x y z"]
    slices: Float32[np.ndarray, "row channel"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSample:
    """Volumes whose target is known.

    Attributes:
        features: What is seen.
        values: The measure.
        groups: Families or people: inner folds keep them together.
    """

    features: VolumeFeatures
    values: Float[np.ndarray, " row"]
    groups: Shaped[np.ndarray, " row"]


def fit_volume_mean(train: VolumeSample, val: VolumeSample, task: Task) -> PredictVolumes:
    """The training mean, of everybody."""
    told = train.values.mean()
    return lambda features: np.full((len(features.volumes), 1), told)


def fit_ridge_pca(train: VolumeSample, val: VolumeSample, task: Task) -> PredictVolumes:
    """Ridge regression on principal components of the coarse voxels."""
    predict = fit_components(_flatten(train.features), train.values, train.groups, seed=task.seed)
    return lambda features: predict(_flatten(features))[:, None]


def fit_pooled_slices(train: VolumeSample, val: VolumeSample, task: Task) -> PredictVolumes:
    """The same on an encoder's features, averaged over slices: what a frozen ViT gives without any further network."""
    predict = fit_components(_pooled(train.features), train.values, train.groups, seed=task.seed)
    return lambda features: predict(_pooled(features))[:, None]


def fit_components(
    inputs: Float[np.ndarray, "row column"],
    values: Float[np.ndarray, " row"],
    groups: Shaped[np.ndarray, " row"],
    *,
    seed: int,
) -> Callable[[Float[np.ndarray, "row column"]], Float[np.ndarray, " row"]]:
    """Standardises columns, takes principal components and fits ridge on the first of them.

    How many, and the penalty, are chosen by cross-validation over families within these rows. Components of the rows
    that are fitted on are uncorrelated, so that every number of them and every penalty is a sum over one decomposition.

    Raises:
        BaselineError: fewer than two families, or columns that are the same in every row.
    """
    from sklearn.model_selection import GroupKFold

    num_folds = min(_INNER_FOLDS, len(np.unique(groups)))
    if num_folds < 2:
        raise BaselineError("too few people to choose a penalty among", given=f"{num_folds} families", expected="2")
    errors = np.zeros((len(_NUM_COMPONENTS), len(_PENALTIES)))
    dealer = GroupKFold(num_folds, shuffle=True, random_state=seed)
    for fitted, held in dealer.split(inputs, values, groups):
        path = _fit_path(inputs[fitted], values[fitted])
        told = path(inputs[held])
        errors += ((told - values[held]) ** 2).sum(axis=-1)
    best = np.unravel_index(np.argmin(errors), errors.shape)
    path = _fit_path(inputs, values)
    return lambda rows: path(rows)[best]


def _fit_path(
    inputs: Float[np.ndarray, "row column"], values: Float[np.ndarray, " row"]
) -> Callable[[np.ndarray], Float[np.ndarray, "components penalty row"]]:
    """Predictions for every number of components and every penalty (a fraction of the first component's variance)."""
    from sklearn.decomposition import PCA

    mean, spread = inputs.mean(axis=0), inputs.std(axis=0)
    kept = spread > _STILL * spread.max()
    if not kept.any():
        raise BaselineError("the inputs are the same of everybody", given=f"{len(inputs)} rows")

    def standardise(rows: np.ndarray) -> np.ndarray:
        return ((rows[:, kept] - mean[kept]) / spread[kept]).astype(np.float64)

    most = min(max(_NUM_COMPONENTS), len(inputs) - 1, int(kept.sum()))
    pca = PCA(most, svd_solver="full").fit(standardise(inputs))
    power = pca.singular_values_**2
    # Rounding makes a last component of rows that repeat; its direction means nothing.
    usable = power > 1e-10 * power[0]
    scores = pca.transform(standardise(inputs))
    covariance = np.where(usable, scores.T @ (values - values.mean()), 0.0)
    weights = covariance[:, None] / (power[:, None] + _PENALTIES * power[0])

    def predict(rows: np.ndarray) -> np.ndarray:
        parts = np.einsum("rc,cp->cpr", pca.transform(standardise(rows)), weights)
        sums = values.mean() + np.cumsum(parts, axis=0)
        return np.stack([sums[min(number, most) - 1] for number in _NUM_COMPONENTS])

    return predict


def _flatten(features: VolumeFeatures) -> np.ndarray:
    return features.volumes.reshape(len(features.volumes), -1)


def _pooled(features: VolumeFeatures) -> np.ndarray:
    if features.slices is None:
        raise BaselineError("there are no slice features", fix="neuroray extract")
    return features.slices

"""Predictors that need no voxels: fitted on the training side alone, their settings chosen within it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.question import Kind
from neuroray.platform.baselines.voxel_windows import RunWindows

Predict = Callable[["Features"], Float[np.ndarray, "row output"]]
Fit = Callable[["Sample", "Sample", "Task"], Predict]

_INNER_FOLDS = 5
_RIDGE_ALPHAS = np.logspace(0, 7, 15)
_LOGISTIC_C = np.logspace(-6, 1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What predictors see of some runs.

    Attributes:
        edges: Connectivity, Fisher z.
        levels: Mean signal of the regions: anatomy alone.
        num_regions: Of which the edges are pairs.
        runs: The runs themselves, for who looks at voxels.
    """

    edges: Float[np.ndarray, "row edge"]
    levels: Float[np.ndarray, "row region"]
    num_regions: int
    runs: RunWindows | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Runs whose target is known.

    Attributes:
        features: What is seen.
        values: Class indices, or the measure.
        groups: Families or people: inner folds keep them together.
    """

    features: Features
    values: Float[np.ndarray, " row"]
    groups: Shaped[np.ndarray, " row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be predicted."""

    kind: Kind
    num_classes: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A predictor by name.

    Attributes:
        label: For the table.
        kinds: The targets it is for.
        fit: From training and validation side to a function of features: probabilities of each class, or one column.
        package: What must be installed besides.
        by_default: Whether it runs without being named.
    """

    label: str
    kinds: tuple[Kind, ...]
    fit: Fit
    package: str | None = None
    by_default: bool = True

    def is_available(self) -> bool:
        """Whether its package is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


def fit_mean(train: Sample, val: Sample, task: Task) -> Predict:
    """The training mean, or the share of each class: what is said without looking."""
    if task.kind == "classification":
        told = np.bincount(train.values.astype(int), minlength=task.num_classes) / len(train.values)
    else:
        told = np.array([train.values.mean()])
    return lambda features: np.tile(told, (len(features.edges), 1))


def fit_ridge(train: Sample, val: Sample, task: Task) -> Predict:
    """Ridge regression on connectivity."""
    return _fit_linear(train, task, _edges)


def fit_logistic(train: Sample, val: Sample, task: Task) -> Predict:
    """Logistic regression with an L2 penalty on connectivity."""
    return _fit_linear(train, task, _edges)


def fit_anatomy(train: Sample, val: Sample, task: Task) -> Predict:
    """The same linear model on mean signals of the regions: what is known without any fluctuation."""
    return _fit_linear(train, task, _levels)


def fit_xgboost(train: Sample, val: Sample, task: Task) -> Predict:
    """Boosted trees on connectivity; stops adding trees when the validation side no longer gains.

    Raises:
        BaselineError: the package is not installed.
    """
    try:
        import xgboost
    except ImportError as error:
        raise BaselineError("xgboost is not installed", fix='pip install "neuroray[baselines]"') from error
    settings: dict[str, Any] = {
        "n_estimators": 400,
        "learning_rate": 0.05,
        "max_depth": 3,
        "subsample": 0.8,
        "colsample_bynode": 0.1,
        "early_stopping_rounds": 40,
        "random_state": task.seed,
        "n_jobs": 1,
    }
    make = xgboost.XGBClassifier if task.kind == "classification" else xgboost.XGBRegressor
    model = make(**settings)
    targets = (sample.values.astype(int if task.kind == "classification" else float) for sample in (train, val))
    train_values, val_values = targets
    model.fit(train.features.edges, train_values, eval_set=[(val.features.edges, val_values)], verbose=False)
    if isinstance(model, xgboost.XGBClassifier):
        return lambda features: np.asarray(model.predict_proba(features.edges), dtype=np.float64)
    return lambda features: np.asarray(model.predict(features.edges), dtype=np.float64)[:, None]


def _edges(features: Features) -> np.ndarray:
    return features.edges


def _levels(features: Features) -> np.ndarray:
    return features.levels


def _fit_linear(train: Sample, task: Task, look: Callable[[Features], np.ndarray]) -> Predict:
    """A penalised linear model, its penalty chosen by cross-validation over families within the training side."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.metrics import log_loss, make_scorer
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs, is_classes = look(train.features), task.kind == "classification"
    last = LogisticRegression(max_iter=2000) if is_classes else Ridge()
    grid: Mapping[str, Any] = (
        {"logisticregression__C": _LOGISTIC_C}
        if is_classes
        else {"ridge__alpha": _RIDGE_ALPHAS * inputs.shape[1] / 1e3}
    )
    # With the labels named, for a small inner fold may hold one class only.
    labels = list(range(task.num_classes))
    log_loss_of = make_scorer(log_loss, greater_is_better=False, response_method="predict_proba", labels=labels)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), last),
        grid,
        scoring=log_loss_of if is_classes else "neg_mean_squared_error",
        cv=_inner_folds(train, task),
        error_score="raise",  # pyright: ignore[reportArgumentType] # documented; the stub knows its default only
    )
    search.fit(inputs, train.values.astype(int) if is_classes else train.values)
    model: Any = search.best_estimator_
    if is_classes:
        return lambda features: model.predict_proba(look(features))
    return lambda features: model.predict(look(features))[:, None]


def _inner_folds(train: Sample, task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of the training side in which no family is on both sides, and with classes all of them in each.

    Raises:
        BaselineError: too few families for two folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    is_classes = task.kind == "classification"
    per_class = [train.groups[train.values == value] for value in np.unique(train.values)] if is_classes else []
    num_groups = min(len(np.unique(groups)) for groups in (per_class or [train.groups]))
    num_folds = min(_INNER_FOLDS, num_groups)
    if num_folds < 2:
        raise BaselineError(
            "too few people to choose a penalty among", given=f"{num_groups} families", expected="2 or more"
        )
    kind = StratifiedGroupKFold if is_classes else GroupKFold
    dealer = kind(num_folds, shuffle=True, random_state=task.seed)
    folds = list(dealer.split(np.zeros(len(train.values)), train.values, train.groups))
    if is_classes and any(len(np.unique(train.values[fitted])) < len(per_class) for fitted, _ in folds):
        raise BaselineError("too few people of a class to choose a penalty among", given=f"{num_groups} families")
    return folds

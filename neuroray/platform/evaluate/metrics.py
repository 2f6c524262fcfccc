"""Numbers that say how good predictions are, computed for many weightings of the people at once.

A bootstrap resample is a weighting of the rows by how often each was drawn, so one implementation gives the estimate
(all weights 1) and every resample; the two cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from neuroray.errors import NeurorayError

CALIBRATION_BINS = 10
# Below this part of the largest magnitude, a spread is what rounding made of one number (as scipy.stats.pearsonr says).
_ROUNDING_SPREAD = 1e-13


class EvaluationError(NeurorayError, ValueError):
    """Evidence that would not hold: people on two sides of a split, labels that do not fit, a run without its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How a metric is called on the page, which way is better, and what a guess would reach."""

    label: str
    better: Literal["higher", "lower"]
    chance: float | None = None
    unit: str = ""


def metric_table(num_classes: int) -> dict[str, Metric]:
    """The classification metrics in the order they are told; chance is that of a guess which ignores the scan."""
    table = {
        "auc": Metric(label="Area under the ROC curve", better="higher", chance=0.5),
        "balanced_accuracy": Metric(label="Balanced accuracy", better="higher", chance=1 / num_classes),
        "accuracy": Metric(label="Accuracy", better="higher"),
        "sensitivity": Metric(label="Sensitivity", better="higher"),
        "specificity": Metric(label="Specificity", better="higher"),
        "f1_weighted": Metric(label="F1, weighted", better="higher"),
        "f1_macro": Metric(label="F1, macro", better="higher"),
        "brier": Metric(label="Brier score", better="lower"),
        "calibration_error": Metric(label="Expected calibration error", better="lower"),
    }
    if num_classes > 2:
        del table["sensitivity"], table["specificity"]
    return table


REGRESSION_METRICS = {
    "mse": Metric(label="Mean squared error", better="lower"),
    "mae": Metric(label="Mean absolute error", better="lower"),
    "rmse": Metric(label="Root mean squared error", better="lower"),
    "bias": Metric(label="Mean error", better="lower"),
    "pearson_r": Metric(label="Pearson correlation", better="higher", chance=0.0),
    "spearman_rho": Metric(label="Spearman correlation", better="higher", chance=0.0),
    "r2": Metric(label="Variance explained", better="higher", chance=0.0),
    "mae_over_sd": Metric(label="Mean absolute error over the truth's SD", better="lower"),
}


def classification_metrics(
    labels: Int[np.ndarray, " row"],
    probabilities: Float[np.ndarray, "row class"],
    weights: Float[np.ndarray, "resample row"] | None = None,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """All metrics of `metric_table`, for each weighting; NaN where a weighting leaves a metric undefined.

    Args:
        labels: The true class of each row, as a column of `probabilities`; with two classes, 1 is the positive one.
        probabilities: From the model; AUC, Brier score and calibration rest on them, the others on the likeliest class.
        weights: How often each row counts; all once when left out.

    Raises:
        EvaluationError: labels outside the classes, or rows that are no probabilities.
    """
    check_predictions(labels, probabilities)
    if weights is None:
        weights = np.ones((1, len(labels)))
    confusion = confusion_counts(labels, probabilities, weights)
    values = {"auc": _mean_auc(labels, probabilities, weights)} | _confusion_metrics(confusion)
    values["brier"] = _brier(labels, probabilities, weights)
    values["calibration_error"] = _calibration_error(labels, probabilities, weights)
    return {name: values[name] for name in metric_table(probabilities.shape[1])}


def regression_metrics(
    targets: Float[np.ndarray, " row"],
    predictions: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, "resample row"] | None = None,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """All metrics of `REGRESSION_METRICS`, for each weighting, in the target's unit (squared for `mse`).

    NaN where a weighting leaves a metric undefined: a correlation when targets or predictions are one number, the
    variance explained when the targets are (scikit-learn says 0 or 1 there). The variance explained is against the mean
    of the judged people themselves, so a predictor that says the training mean lies a little below 0.

    Args:
        targets: The true value of each row.
        predictions: From the model, in the same unit.
        weights: How often each row counts; all once when left out.

    Raises:
        EvaluationError: no rows, lengths that differ, values that are no numbers.
    """
    check_scores(targets, predictions)
    targets, predictions = np.asarray(targets, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if weights is None:
        weights = np.ones((1, len(targets)))
    share = weights / weights.sum(axis=1, keepdims=True)
    error = predictions - targets
    mse = share @ error**2
    # Around each weighting's own mean: the shorter E[xy] - E[x] E[y] loses all digits where the spread is small.
    truth, told = (values - (share @ values)[:, None] for values in (targets, predictions))
    truth_variance = _variance(share, truth, targets)
    told_variance = _variance(share, told, predictions)
    mae = share @ np.abs(error)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (share * truth * told).sum(axis=1) / np.sqrt(truth_variance * told_variance)
        explained = 1 - mse / truth_variance
        relative = mae / np.sqrt(truth_variance)
    return {
        "mse": mse,
        "mae": mae,
        "rmse": np.sqrt(mse),
        "bias": share @ error,
        "pearson_r": np.clip(correlation, -1, 1),
        "spearman_rho": _rank_correlation(targets, predictions, share, truth_variance * told_variance),
        "r2": explained,
        "mae_over_sd": relative,
    }


def check_scores(targets: Float[np.ndarray, " row"], predictions: Float[np.ndarray, " row"]) -> None:
    """Refuses numbers that no regression metric could be computed from.

    Raises:
        EvaluationError: no rows, lengths that differ, values that are no numbers.
    """
    if np.ndim(targets) != 1 or np.shape(targets) != np.shape(predictions) or len(targets) == 0:
        raise EvaluationError(
            "targets and predictions do not belong together",
            given=f"shapes {np.shape(targets)} and {np.shape(predictions)}",
            expected="one prediction per target, and at least one",
        )
    for name, values in (("targets", targets), ("predictions", predictions)):
        num_bad = int((~np.isfinite(values)).sum())
        if num_bad:
            raise EvaluationError(
                f"{name} are not all numbers",
                given=f"{num_bad} of {len(values)} NaN or infinite",
                fix="leave people without the target out" if name == "targets" else "the model has diverged",
            )


def check_predictions(labels: Int[np.ndarray, " row"], probabilities: Float[np.ndarray, "row class"]) -> None:
    """Refuses what no metric could be computed from.

    Raises:
        EvaluationError: no rows, lengths that differ, labels outside the classes, values that are no probabilities.
    """
    if probabilities.ndim != 2 or len(labels) != len(probabilities) or len(labels) == 0:
        raise EvaluationError(
            "labels and probabilities do not belong together",
            given=f"{len(labels)} labels and probabilities of shape {probabilities.shape}",
            expected="one row of class probabilities per label, and at least one",
        )
    num_classes = probabilities.shape[1]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise EvaluationError(
            "a label is none of the classes", given=int(labels.max()), expected=f"0 to {num_classes - 1}"
        )
    # Softmax in float32 sums to 1 within about 1e-6; anything further off was never a probability.
    if not np.isfinite(probabilities).all() or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-4:
        raise EvaluationError(
            "the scores are no probabilities",
            given=f"row sums from {probabilities.sum(axis=1).min():.4g} to {probabilities.sum(axis=1).max():.4g}",
            expected="finite rows that sum to 1",
            fix="apply softmax to the logits first",
        )


def weighted_auc(
    is_positive: np.ndarray, scores: Float[np.ndarray, " row"], weights: Float[np.ndarray, "resample row"]
) -> Float[np.ndarray, " resample"]:
    """The chance that a positive row scores above a negative one, ties counting half; NaN without either."""
    order = np.argsort(scores, kind="stable")
    _, starts = np.unique(scores[order], return_index=True)
    ordered, positive = weights[:, order], is_positive[order]
    positives = np.add.reduceat(ordered * positive, starts, axis=1)
    negatives = np.add.reduceat(ordered * ~positive, starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positives * below).sum(axis=1) / pairs, np.nan)


def confusion_counts(
    labels: Int[np.ndarray, " row"],
    probabilities: Float[np.ndarray, "row class"],
    weights: Float[np.ndarray, "resample row"],
) -> Float[np.ndarray, "resample true predicted"]:
    """Weighted counts of true against likeliest class."""
    num_classes = probabilities.shape[1]
    cell = np.eye(num_classes**2)[labels * num_classes + probabilities.argmax(axis=1)]
    return (weights @ cell).reshape(-1, num_classes, num_classes)


def calibration_bins(
    labels: Int[np.ndarray, " row"], probabilities: Float[np.ndarray, "row class"]
) -> tuple[Float[np.ndarray, " row"], np.ndarray, Int[np.ndarray, " row"]]:
    """What calibration compares: the stated probability of each row, whether it came true, and its bin.

    With two classes the probability of the positive one, with more that of the likeliest (Guo et al. 2017, section 2).
    """
    if probabilities.shape[1] == 2:
        stated, came_true = probabilities[:, 1], labels == 1
    else:
        stated, came_true = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((stated * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    return stated, came_true, bins


def _rank_correlation(
    targets: np.ndarray, predictions: np.ndarray, share: np.ndarray, defined: np.ndarray
) -> np.ndarray:
    """Pearson's of mid-ranks within each weighting; NaN where `defined` is."""
    first, second = (_centred_ranks(values, share) for values in (targets, predictions))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (share * first * second).sum(axis=1) / np.sqrt(
            (share * first**2).sum(axis=1) * (share * second**2).sum(axis=1)
        )
    return np.where(np.isfinite(defined), np.clip(found, -1, 1), np.nan)


def _centred_ranks(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Where each row stands in each weighting: the share below it and half of its ties, less the mean of one half."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    tied = np.add.reduceat(share[:, order], starts, axis=1)
    ranks = np.empty_like(share)
    ranks[:, order] = (np.cumsum(tied, axis=1) - tied / 2)[:, inverse]
    return ranks - 0.5


def _variance(share: np.ndarray, deviations: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Of each weighting; NaN where all that counts is one number."""
    variance = (share * deviations**2).sum(axis=1)
    return np.where(variance > (_ROUNDING_SPREAD * np.abs(values).max()) ** 2, variance, np.nan)


def _mean_auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if probabilities.shape[1] == 2:
        return weighted_auc(labels == 1, probabilities[:, 1], weights)
    each = [weighted_auc(labels == k, probabilities[:, k], weights) for k in range(probabilities.shape[1])]
    return np.mean(each, axis=0)


def _confusion_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    hits, true = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    claimed, total = confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = hits / true
        f1 = np.where(true + claimed > 0, 2 * hits / (true + claimed), np.nan)
    values = {
        "accuracy": hits.sum(axis=1) / total,
        # A class that nobody has is left out, as scikit-learn does; its recall is NaN, not 0.
        "balanced_accuracy": _mean_defined(recall),
        "f1_weighted": np.nansum(f1 * true, axis=1) / total,
        "f1_macro": _mean_defined(f1),
    }
    if confusion.shape[1] == 2:
        values |= {"specificity": recall[:, 0], "sensitivity": recall[:, 1]}
    return values


def _mean_defined(values: np.ndarray) -> np.ndarray:
    defined = np.isfinite(values)
    return np.where(defined, values, 0).sum(axis=1) / np.maximum(defined.sum(axis=1), 1)


def _brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    squares = ((np.eye(probabilities.shape[1])[labels] - probabilities) ** 2).sum(axis=1)
    halved = squares / 2 if probabilities.shape[1] == 2 else squares
    return weights @ halved / weights.sum(axis=1)


def _calibration_error(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    stated, came_true, bins = calibration_bins(labels, probabilities)
    gap = (stated - came_true)[:, None] * np.eye(CALIBRATION_BINS)[bins]
    return np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1)

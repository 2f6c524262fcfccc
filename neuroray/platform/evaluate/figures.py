"""The figures of the report: each takes plain arrays and gives a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from neuroray.platform.evaluate.intervals import LEVEL, Estimate
from neuroray.platform.evaluate.metrics import CALIBRATION_BINS, calibration_bins
from neuroray.platform.evaluate.style import (
    INK,
    MUTED,
    PAPER,
    RULE,
    SERIES,
    note_line,
    place_label,
    series_colour,
    styled,
)

SQUARE_IN = (4.3, 3.7)
WIDE_IN = (8.9, 3.0)
# More people than this are drawn as bars; dots would hide each other.
_MOST_DOTS = 150
_DOT_BINS = 34
_GRID = np.linspace(0, 1, 101)


@styled
def draw_roc(
    labels: Int[np.ndarray, " row"],
    probabilities: Float[np.ndarray, "row class"],
    classes: Sequence[str],
    resamples: Float[np.ndarray, "resample row"],
) -> Figure:
    """The ROC curve with the band that holds 95 % of the resampled ones; one curve a class when there are more."""
    figure, axes = _square()
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
    place_label(axes, 0.70, 0.66, "guessing", colour=MUTED)
    for index in range(1, len(classes)) if len(classes) == 2 else range(len(classes)):
        positive, scores = labels == index, probabilities[:, index]
        if positive.all() or not positive.any():
            continue
        colour = SERIES[0] if len(classes) == 2 else series_colour(index)
        low, high = roc_band(positive, scores, resamples)
        axes.fill_between(_GRID, low, high, step="post", color=colour, alpha=0.16, lw=0)
        false_alarms, hits, _ = roc_curve(positive, scores, drop_intermediate=False)
        axes.step(false_alarms, hits, where="post", color=colour, label=classes[index])
    if len(classes) > 2:
        axes.legend(loc="lower right")
    _unit_square(axes, "False alarms (1 \N{MINUS SIGN} specificity)", "Found (sensitivity)")
    return figure


def roc_band(
    positive: np.ndarray, scores: Float[np.ndarray, " row"], resamples: Float[np.ndarray, "resample row"]
) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]]:
    """Lower and upper end of the sensitivity at 101 evenly spaced false alarm rates, over the resamples."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(resamples[:, order] * positive[order], axis=1)[:, last]
    alarms = np.cumsum(resamples[:, order] * ~positive[order], axis=1)[:, last]
    defined = (hits[:, -1] > 0) & (alarms[:, -1] > 0)
    curves = [
        np.append(0, hit / hit[-1])[np.searchsorted(np.append(0, alarm / alarm[-1]), _GRID, side="right") - 1]
        for hit, alarm in zip(hits[defined], alarms[defined], strict=True)
    ]
    low, high = np.quantile(curves, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


@styled
def draw_confusion(confusion: Float[np.ndarray, "true predicted"], classes: Sequence[str]) -> Figure:
    """Counts of true against predicted class; the tint is the share of the true class."""
    figure, axes = _square()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    for (row, column), count in np.ndenumerate(confusion):
        share = shares[row, column]
        colour = SERIES[0] if row == column else SERIES[1]
        box = FancyBboxPatch((column + 0.03, row + 0.03), 0.94, 0.94, boxstyle="round,pad=0,rounding_size=0.03", lw=0)
        # Never fully opaque: the ink on it must stay readable.
        box.set(facecolor=colour, alpha=0.06 + 0.44 * share)
        axes.add_patch(box)
        axes.text(column + 0.5, row + 0.46, f"{count:.0f}", ha="center", va="center", fontsize=17 - 2 * len(classes))
        axes.text(column + 0.5, row + 0.70, f"{share:.0%}", ha="center", va="center", color=MUTED)
    centres = np.arange(len(classes)) + 0.5
    axes.set(xlim=(0, len(classes)), ylim=(len(classes), 0), xticks=centres, yticks=centres)
    axes.set_xticklabels(classes)
    axes.set_yticklabels(classes, rotation=90, va="center")
    axes.set(xlabel="Predicted", ylabel="True", aspect="equal")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@styled
def draw_calibration(
    labels: Int[np.ndarray, " row"], probabilities: Float[np.ndarray, "row class"], classes: Sequence[str]
) -> Figure:
    """How often what was stated came true, in ten bins; bars are 95 % Wilson intervals, areas the number of people."""
    figure, axes = _square()
    stated, came_true, bins = calibration_bins(labels, probabilities)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
    place_label(axes, 0.70, 0.66, "perfect", colour=MUTED)
    most = np.bincount(bins).max()
    for index in range(CALIBRATION_BINS):
        inside = bins == index
        if not inside.any():
            continue
        count, hits = int(inside.sum()), int(came_true[inside].sum())
        interval = binomtest(hits, count).proportion_ci(method="wilson")
        centre = stated[inside].mean()
        axes.plot([centre, centre], [interval.low, interval.high], color=SERIES[0], lw=1.1, alpha=0.55)
        size = 16 + 90 * count / most
        axes.scatter(centre, hits / count, s=size, color=SERIES[0], edgecolor="none", zorder=3, clip_on=False)
    what = f"Stated probability of “{classes[1]}”" if len(classes) == 2 else "Stated probability of the likeliest class"
    _unit_square(axes, what, "Came true")
    return figure


@styled
def draw_scores(
    labels: Int[np.ndarray, " row"], probabilities: Float[np.ndarray, "row class"], classes: Sequence[str]
) -> Figure:
    """The probability stated for each scan, by true class: of the positive class, or of its own with more than two."""
    figure, axes = _square()
    binary = len(classes) == 2
    for index in range(len(classes)):
        given = probabilities[labels == index, 1 if binary else index]
        base = len(classes) - 1 - index
        if len(given):
            _draw_heap(axes, given, base, series_colour(index))
            axes.plot([np.median(given)] * 2, [base - 0.16, base - 0.05], color=INK, lw=1.8)
        place = 0.015 if np.median(given if len(given) else [1]) > 0.5 else 0.985
        axes.text(
            place,
            base + 0.72,
            f"{classes[index]}, {len(given)}",
            color=series_colour(index),
            ha="left" if place < 0.5 else "right",
            fontweight="bold",
        )
        axes.axhline(base, color=RULE, lw=0.7, zorder=0)
    if binary:
        axes.axvline(0.5, color=MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
    what = f"Stated probability of “{classes[1]}”" if binary else "Stated probability of the true class"
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.3, len(classes) - 0.1), xlabel=what, yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _draw_heap(axes: Axes, given: Float[np.ndarray, " row"], base: float, colour: str) -> None:
    """A histogram of one dot a person, or of bars when there are many."""
    bins = np.minimum((given * _DOT_BINS).astype(int), _DOT_BINS - 1)
    heights = np.bincount(bins, minlength=_DOT_BINS)
    centres = (np.arange(_DOT_BINS) + 0.5) / _DOT_BINS
    if len(given) > _MOST_DOTS:
        axes.bar(centres, 0.75 * heights / heights.max(), 0.9 / _DOT_BINS, base, color=colour, alpha=0.8, lw=0)
        return
    step = min(0.075, 0.7 / heights.max())
    for column, height in enumerate(heights):
        levels = base + 0.06 + step * np.arange(height)
        axes.scatter(np.full(height, centres[column]), levels, s=24, color=colour, alpha=0.85, edgecolor="none")


@styled
def draw_learning_curves(folds: Sequence[Mapping[str, Sequence[tuple[float, float]]]], *, score: str = "AUC") -> Figure:
    """Loss on training and validation people, and what the run was selected by, over epochs; one thin line a fold.

    Args:
        folds: For each fold: `train_loss`, `val_loss`, `val_score`, `kept` as (epoch, value) points; a missing one is
            left out.
        score: What the run was selected by.
    """
    figure = Figure(figsize=WIDE_IN)
    loss, selected = figure.subplots(1, 2)
    width = 1.6 if len(folds) == 1 else 0.9
    names = (("train_loss", "training", SERIES[0], loss), ("val_loss", "validation", SERIES[1], loss))
    for key, name, colour, axes in (*names, ("val_score", "validation", SERIES[1], selected)):
        curves = [np.asarray(fold[key], dtype=float) for fold in folds if len(fold.get(key, ()))]
        for curve in curves:
            axes.plot(curve[:, 0], curve[:, 1], color=colour, lw=width, alpha=1 if len(folds) == 1 else 0.7)
        if curves:
            place_label(axes, curves[0][-1, 0], curves[0][-1, 1], name, colour=colour)
    for point in [point for fold in folds for point in fold.get("kept", ())]:
        selected.scatter(*point, s=26, facecolor=PAPER, edgecolor=SERIES[1], lw=1.3, zorder=3)
    loss.set(xlabel="Epoch", ylabel="Loss")
    selected.set(xlabel="Epoch", ylabel=f"{score} on validation people")
    for axes in (loss, selected):
        axes.margins(x=0.02)
        axes.grid(axis="y", color=RULE, lw=0.5)
        # Room for the names at the right end.
        axes.set_xlim(right=axes.get_xlim()[1] + 0.14 * np.ptp(axes.get_xlim()))
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def draw_attention(
    position_mm: Float[np.ndarray, " point"],
    densities: Mapping[str, Float[np.ndarray, "row point"]],
    axis_label: str,
    uniform_per_mm: float,
) -> Figure:
    """Mean attention per millimetre over where the slices lie, by class; bands hold the middle half of the scans."""
    figure = Figure(figsize=WIDE_IN)
    axes = figure.subplots()
    axes.axhline(100 * uniform_per_mm, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    note_line(axes, 100 * uniform_per_mm, "every slice alike")
    for index, (name, rows) in enumerate(densities.items()):
        if not len(rows):
            continue
        drawn = np.isfinite(rows).any(axis=0)
        low, high = np.nanquantile(100 * rows[:, drawn], [0.25, 0.75], axis=0)
        axes.fill_between(position_mm[drawn], low, high, color=series_colour(index), alpha=0.15, lw=0)
        mean = np.nanmean(100 * rows[:, drawn], axis=0)
        axes.plot(position_mm[drawn], mean, color=series_colour(index), label=f"{name} (n = {len(rows)})")
    # Headroom for the legend.
    axes.set(xlabel=axis_label, ylabel="Attention per mm (%)", ylim=(0, 1.2 * axes.get_ylim()[1]))
    axes.margins(x=0.01)
    axes.legend(loc="upper left", ncols=len(densities))
    return figure


@styled
def draw_strata(
    rows: Sequence[tuple[str, str, str, Estimate]],
    overall: Estimate,
    metric_label: str,
    *,
    chance: float | None,
    low: float = 0.0,
    high: float = 1.01,
) -> Figure:
    """A metric within each part of the people, against the whole.

    Args:
        rows: Variable, level, who is in it, and the metric there; rows of one variable follow each other.
        overall: The metric on everybody: the vertical line and its band.
        metric_label: The axis.
        chance: What a guess reaches.
        low: Where the axis begins.
        high: Where it ends.
    """
    figure = Figure(figsize=(8.9, 0.9 + 0.27 * len(rows)))
    axes = figure.subplots()
    axes.axvspan(overall.low, overall.high, color=SERIES[0], alpha=0.12, lw=0)
    axes.axvline(overall.value, color=SERIES[0], lw=1.0)
    if chance is not None:
        axes.axvline(chance, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    for index, (variable, level, who, found) in enumerate(rows):
        if index and variable != rows[index - 1][0]:
            axes.axhline(index - 0.5, color=RULE, lw=0.6)
        axes.plot([found.low, found.high], [index, index], color=INK, lw=1.2)
        axes.scatter(found.value, index, s=24, color=INK, zorder=3)
        axes.text(1.02, index, who, transform=axes.get_yaxis_transform(), va="center", color=MUTED, fontsize=7.5)
        axes.text(-0.13, index, level, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5)
        if not index or variable != rows[index - 1][0]:
            axes.text(-0.24, index, variable, transform=axes.get_yaxis_transform(), va="center", fontweight="bold")
    axes.set(xlim=(low, high), ylim=(len(rows) - 0.5, -0.5), yticks=[], xlabel=metric_label)
    axes.spines["left"].set_visible(False)
    return figure


@styled
def draw_agreement(values: Float[np.ndarray, " row"], predicted: Float[np.ndarray, " row"], what: str) -> Figure:
    """What was said against what is true, with the line of no error and the least-squares fit."""
    figure, axes = _square()
    ends = np.array([min(values.min(), predicted.min()), max(values.max(), predicted.max())])
    axes.plot(ends, ends, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    if values.std() > 0:
        slope, intercept = np.polyfit(values, predicted, 1)
        span = np.array([values.min(), values.max()])
        axes.plot(span, slope * span + intercept, color=SERIES[0], lw=1.2)
    axes.scatter(values, predicted, s=24, color=SERIES[0], alpha=0.75, edgecolor="none", zorder=3)
    axes.set(xlabel=f"True {what}", ylabel=f"Said {what}")
    axes.margins(0.05)
    return figure


@styled
def draw_errors(errors: Float[np.ndarray, " row"], what: str) -> Figure:
    """How far off it is, and to which side."""
    figure, axes = _square()
    axes.hist(errors, bins="auto", color=SERIES[0], alpha=0.8, edgecolor=PAPER, lw=0.6)
    axes.axvline(0, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    axes.axvline(errors.mean(), color=INK, lw=1.2)
    axes.set(xlabel=f"Error of {what}", ylabel="Scans")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SQUARE_IN)
    return figure, figure.subplots()


def _unit_square(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x_label, ylabel=y_label, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ticks(np.linspace(0, 1, 6))

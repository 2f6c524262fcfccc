"""Figures of brains at other ages: nearness by gap, change foreseen against change, volumes over ages, ages read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuroray.platform.evaluate.figures import SQUARE_IN, WIDE_IN
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.style import INK, MUTED, PAPER, SERIES, series_colour, styled

_DASHED = (0, (4, 3))
_LIMITS_SD = 1.96

Column = Float[np.ndarray, " pair"]


@styled
def draw_by_gap(gaps_years: Column, values: Mapping[str, Column], what: str) -> Figure:
    """A metric of each row over the years between the visits, with its least-squares line.

    Args:
        gaps_years: Of each pair.
        values: By what a row is called.
        what: The axis.
    """
    figure, axes = _square()
    for index, (name, column) in enumerate(values.items()):
        colour = series_colour(index)
        axes.scatter(gaps_years, column, s=16, color=colour, alpha=0.6, lw=0, label=name)
        _fit(axes, gaps_years, column, colour)
    axes.set(xlabel="Years between the visits", ylabel=what)
    # Room for the names above all dots.
    axes.set_ylim(top=axes.get_ylim()[1] + 0.2 * np.ptp(axes.get_ylim()))
    axes.legend(loc="upper left", ncols=len(values))
    return figure


@styled
def draw_change(true_ml: Column, told_ml: Column, region: str) -> Figure:
    """What was said to change against what did, with the line of no error and the least-squares fit."""
    figure, axes = _square()
    low, high = (float(end(np.concatenate([true_ml, told_ml]))) for end in (np.min, np.max))
    axes.plot([low, high], [low, high], color=MUTED, lw=0.8, ls=_DASHED)
    axes.axhline(0, color=MUTED, lw=0.5)
    _fit(axes, true_ml, told_ml, SERIES[0])
    axes.scatter(true_ml, told_ml, s=24, color=SERIES[0], alpha=0.75, edgecolor="none", zorder=3)
    axes.set(xlabel=f"True change of {region} (ml)", ylabel=f"Predicted change of {region} (ml)")
    axes.margins(0.05)
    return figure


@styled
def draw_limits(true_ml: Column, told_ml: Column, region: str) -> Figure:
    """Bland and Altman: predicted less true change over their mean, with mean and 95 % limits of agreement."""
    figure, axes = _square()
    less = told_ml - true_ml
    axes.scatter((told_ml + true_ml) / 2, less, s=18, color=SERIES[0], alpha=0.7, lw=0)
    spread = float(less.std(ddof=1)) if len(less) > 1 else 0.0
    for height, dashes in ((0.0, "-"), (-_LIMITS_SD * spread, _DASHED), (_LIMITS_SD * spread, _DASHED)):
        level = float(less.mean()) + height
        axes.axhline(level, color=INK, lw=1.0, ls=dashes)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
        axes.annotate(f"{level:+.2g}", (1, level), xytext=(3, 0), **place)
    axes.set(xlabel=f"Mean of predicted and true change of {region} (ml)", ylabel="Predicted less true (ml)")
    return figure


@styled
def draw_sweep(
    told: Sequence[tuple[Sequence[float], Sequence[float]]],
    real: Sequence[tuple[Sequence[float], Sequence[float]]],
    region: str,
) -> Figure:
    """Volumes over age: each person as the model tells them, and as the visits have them.

    Args:
        told: Ages and volumes of each person.
        real: The same of the visits.
        region: The axis.
    """
    figure = Figure(figsize=WIDE_IN)
    axes = figure.subplots()
    for number, (ages, volumes) in enumerate(told):
        label = "told by the model" if not number else None
        axes.plot(ages, volumes, color=SERIES[0], lw=1.0, alpha=0.75, marker=".", ms=4, label=label)
    for number, (ages, volumes) in enumerate(real):
        label = "measured at the visits" if not number else None
        axes.plot(ages, volumes, color=SERIES[1], lw=1.0, alpha=0.75, marker="o", ms=3.2, label=label)
    axes.set(xlabel="Age (years)", ylabel=f"{region.capitalize()} (ml)")
    axes.set_ylim(top=axes.get_ylim()[1] + 0.14 * np.ptp(axes.get_ylim()))
    axes.legend(loc="upper left", ncols=2)
    return figure


@styled
def draw_ages_read(ages_years: Column, read: Mapping[str, Column]) -> Figure:
    """The age that another model reads off the real follow-up and off rows, over the age that was told."""
    figure, axes = _square()
    ends = np.array([ages_years.min(), ages_years.max()])
    axes.plot(ends, ends, color=MUTED, lw=0.8, ls=_DASHED)
    for index, (name, column) in enumerate(read.items()):
        colour = series_colour(index)
        axes.scatter(ages_years, column, s=16, color=colour, alpha=0.6, lw=0, label=name)
        _fit(axes, ages_years, column, colour)
    axes.set(xlabel="Age told (years)", ylabel="Age read by another model (years)")
    axes.set_ylim(top=axes.get_ylim()[1] + 0.2 * np.ptp(axes.get_ylim()))
    axes.legend(loc="upper left", ncols=2)
    return figure


@styled
def draw_gains(rows: Sequence[tuple[str, str, Estimate]], what: str) -> Figure:
    """What each row has over the copy, with its interval; on the zero line it is no better.

    Args:
        rows: Part of the pairs, the row's name, and the difference; rows of one part follow each other.
        what: The axis.
    """
    figure = Figure(figsize=(8.9, 0.9 + 0.3 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0, color=MUTED, lw=0.8, ls=_DASHED)
    names = list(dict.fromkeys(name for _, name, _ in rows))
    for index, (part, name, found) in enumerate(rows):
        colour = series_colour(names.index(name))
        axes.plot([found.low, found.high], [index, index], color=colour, lw=1.4)
        axes.scatter(found.value, index, s=26, color=colour, edgecolor=PAPER, zorder=3)
        axes.text(-0.01, index, name, transform=axes.get_yaxis_transform(), va="center", ha="right", fontsize=7.5)
        if not index or part != rows[index - 1][0]:
            at = axes.get_yaxis_transform()
            axes.text(-0.34, index, part, transform=at, va="center", ha="left", fontsize=7.5, fontweight="bold")
            if index:
                axes.axhline(index - 0.5, color=MUTED, lw=0.4)
    axes.set(ylim=(len(rows) - 0.5, -0.5), yticks=[], xlabel=what)
    axes.spines["left"].set_visible(False)
    return figure


def _fit(axes: Axes, x: Column, y: Column, colour: str) -> None:
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() > 1 and np.ptp(x[known]) > 0:
        span = np.array([x[known].min(), x[known].max()])
        axes.plot(span, np.polyval(np.polyfit(x[known], y[known], 1), span), color=colour, lw=1.2)


def _square() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SQUARE_IN)
    return figure, figure.subplots()

"""The figures of a study of the gap: each takes plain arrays and gives a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from neuroray.platform.brain_age_gap.effects import Effect
from neuroray.platform.evaluate.style import INK, MUTED, PAPER, RULE, series_colour, styled

_HALF_IN = (4.6, 3.6)
_WIDE_IN = (9.6, 3.4)
_DASHED = (0, (4, 3))


@styled
def draw_raw(
    ages: Float[np.ndarray, " row"],
    predicted: Float[np.ndarray, " row"],
    groups: Sequence[str],
    lines: Sequence[tuple[float, float, float, float]],
) -> Figure:
    """Predicted against true age by group, with the lines that corrections were fitted to.

    Args:
        ages: True ages in years.
        predicted: As the model said.
        groups: Of each row.
        lines: Slope, intercept, youngest and oldest age of each correction.
    """
    figure = Figure(figsize=_HALF_IN)
    axes = figure.subplots()
    ends = np.array([min(ages.min(), predicted.min()), max(ages.max(), predicted.max())])
    axes.plot(ends, ends, color=MUTED, lw=0.8, ls=_DASHED)
    for index, name in enumerate(_names(groups)):
        rows = np.array([group == name for group in groups])
        axes.scatter(ages[rows], predicted[rows], s=16, color=series_colour(index), alpha=0.65, lw=0, label=name)
    for slope, intercept, young, old in lines:
        span = np.array([young, old])
        axes.plot(span, slope * span + intercept, color=INK, lw=1.0)
    axes.set(xlabel="Age (years)", ylabel="Predicted age (years)")
    axes.legend(loc="upper left", handletextpad=0.1)
    return figure


@styled
def draw_gaps_by_age(
    ages: Float[np.ndarray, " row"], panels: Mapping[str, Float[np.ndarray, " row"]], groups: Sequence[str]
) -> Figure:
    """Each kind of gap against age, on one scale."""
    figure = Figure(figsize=_WIDE_IN)
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for index, (axes, (title, gaps)) in enumerate(zip(drawn, panels.items(), strict=True)):
        axes.axhline(0, color=MUTED, lw=0.8, ls=_DASHED)
        for place, name in enumerate(_names(groups)):
            rows = np.array([group == name for group in groups]) & np.isfinite(gaps)
            axes.scatter(ages[rows], gaps[rows], s=12, color=series_colour(place), alpha=0.6, lw=0, label=name)
            if rows.sum() > 2 and np.ptp(ages[rows]) > 0:
                span = np.array([ages[rows].min(), ages[rows].max()])
                axes.plot(span, np.polyval(np.polyfit(ages[rows], gaps[rows], 1), span), color=series_colour(place))
        axes.set(xlabel="Age (years)", ylabel="Gap (years)" if index == 0 else "", title=title)
        if index == 0:
            axes.legend(loc="lower left", handletextpad=0.1)
    return figure


@styled
def draw_groups(gaps: Mapping[str, Float[np.ndarray, " row"]]) -> Figure:
    """One dot a person, by group; the bar is the mean with its 95 % interval."""
    figure = Figure(figsize=_HALF_IN)
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, lw=0.8, ls=_DASHED)
    shaken = np.random.default_rng(0)
    for index, (_, values) in enumerate(gaps.items()):
        places = index + shaken.uniform(-0.16, 0.16, len(values))
        axes.scatter(places, values, s=14, color=series_colour(index), alpha=0.55, lw=0)
        if len(values) > 1:
            half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
            axes.plot([index + 0.3] * 2, [values.mean() - half, values.mean() + half], color=INK, lw=1.6)
            axes.scatter(index + 0.3, values.mean(), s=30, color=INK, edgecolor=PAPER, zorder=3)
    labels = [f"{name} ({len(values)})" for name, values in gaps.items()]
    axes.set(ylabel="Gap (years)", xlim=(-0.5, len(gaps) - 0.3))
    axes.set_xticks(range(len(gaps)), labels)
    return figure


@styled
def draw_effects(rows: Sequence[tuple[str, Effect]], label: str, *, is_ratio: bool) -> Figure:
    """Estimates with their intervals, one a row; ratios on a logarithmic axis."""
    figure = Figure(figsize=(_WIDE_IN[0], 0.75 + 0.33 * len(rows)))
    axes = figure.subplots()
    axes.axvline(1 if is_ratio else 0, color=MUTED, lw=0.8, ls=_DASHED)
    for index, (_, effect) in enumerate(rows):
        if np.isfinite(effect.low) and np.isfinite(effect.high):
            axes.plot([effect.low, effect.high], [index, index], color=INK, lw=1.3)
        axes.scatter(effect.value, index, s=26, color=series_colour(0), zorder=3)
    if is_ratio:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


@styled
def draw_courses(courses: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """The gap of everybody who came more than once over age, a panel a group.

    Args:
        courses: By group, ages and gaps of each person.
    """
    figure = Figure(figsize=_WIDE_IN)
    panels = figure.subplots(1, len(courses), sharex=True, sharey=True, squeeze=False)[0]
    for index, (axes, (name, lines)) in enumerate(zip(panels, courses.items(), strict=True)):
        axes.axhline(0, color=RULE, lw=0.8)
        for ages, gaps in lines:
            axes.plot(ages, gaps, color=series_colour(index), lw=1.0, marker="o", ms=2.6, alpha=0.7)
        axes.set(xlabel="Age (years)", ylabel="Gap (years)" if index == 0 else "", title=f"{name} ({len(lines)})")
    return figure


def _names(groups: Sequence[str]) -> list[str]:
    return sorted(set(groups), key=lambda name: (name != "controls", name))

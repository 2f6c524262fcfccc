"""The figures of the quality page: where every scan lies in a measure, and a run over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuroray.platform.evaluate.style import INK, MUTED, RULE, SERIES, styled
from neuroray.platform.quality.examine import FD_THRESHOLD_MM, Course
from neuroray.platform.quality.measures import MEASURES
from neuroray.platform.quality.outliers import THRESHOLD

_ROW_IN, _FARTHEST = 0.36, 8.0


@styled
def draw_spreads(scores: Mapping[str, Sequence[tuple[str, float]]]) -> Figure:
    """For each measure one line with a dot a scan, at its robust z; those beyond the threshold are named.

    Args:
        scores: By measure: id and z of each scan.
    """
    figure = Figure(figsize=(8.9, 0.75 + _ROW_IN * len(scores)))
    axes = figure.subplots()
    axes.axvspan(-THRESHOLD, THRESHOLD, color=SERIES[0], alpha=0.07, lw=0)
    for end in (-THRESHOLD, THRESHOLD):
        axes.axvline(end, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    for row, (name, found) in enumerate(scores.items()):
        axes.axhline(row, color=RULE, lw=0.6, zorder=0)
        z = np.clip([score for _, score in found], -_FARTHEST, _FARTHEST)
        far = np.abs([score for _, score in found]) > THRESHOLD
        axes.scatter(z[~far], np.full((~far).sum(), row), s=22, color=SERIES[0], alpha=0.55, edgecolor="none", zorder=3)
        axes.scatter(z[far], np.full(far.sum(), row), s=30, color=SERIES[1], edgecolor="none", zorder=4)
        axes.text(-0.012, row, MEASURES[name].label, transform=axes.get_yaxis_transform(), ha="right", va="center")
    axes.set(xlim=(-_FARTHEST - 0.3, _FARTHEST + 0.3), ylim=(len(scores) - 0.5, -0.5), yticks=[])
    axes.set_xlabel("robust z: distance from the median in robust standard deviations (beyond 8 drawn at 8)")
    axes.spines["left"].set_visible(False)
    return figure


@styled
def draw_course(course: Course, repetition_time_s: float | None) -> Figure:
    """Motion, DVARS and global signal over time; the carpet goes below them on the page, over the same width."""
    with_motion = course.displacement_mm is not None
    figure = Figure(figsize=(8.9, 1.0 + 0.62 * (2 + with_motion)))
    panels: list[Axes] = list(figure.subplots(2 + with_motion, 1, sharex=True, squeeze=False)[:, 0])
    frames = len(course.global_signal)
    steps = np.arange(1, frames)
    if course.displacement_mm is not None:
        panels[0].axhline(FD_THRESHOLD_MM, color=MUTED, lw=0.7, ls=(0, (4, 3)))
        _fill(panels[0], steps, course.displacement_mm, SERIES[1])
        _name(panels[0], "FD (mm)")
    _fill(panels[-2], steps, course.dvars, SERIES[0])
    _name(panels[-2], "DVARS")
    panels[-1].plot(np.arange(frames), course.global_signal, color=SERIES[2], lw=1.0)
    _name(panels[-1], "Global\nsignal (%)")
    for panel in panels:
        panel.set_xlim(-0.5, frames - 0.5)
        panel.margins(y=0.12)
        panel.locator_params(axis="y", nbins=3)
    seconds = "" if repetition_time_s is None else f" of {repetition_time_s:g} s"
    panels[-1].set_xlabel(f"frame{seconds}", color=INK)
    return figure


def _fill(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    axes.fill_between(steps, 0, values, color=colour, alpha=0.18, lw=0)
    axes.plot(steps, values, color=colour, lw=1.0)
    axes.set_ylim(bottom=0)


def _name(axes: Axes, text: str) -> None:
    axes.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=8)

"""A run's explanation drawn: shares of the networks, and importance over the frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.style import INK, MUTED, SERIES, styled
from neuroray.platform.explain.densities import draw_densities
from neuroray.platform.explain.runs import RunExplanation, Share

_MOST_NETWORKS = 14


@styled
def draw_run(explanation: RunExplanation, shares: Sequence[Share], repetition_time_s: float | None) -> Figure:
    """Networks by density on the left; what each frame adds on the right."""
    figure = Figure(figsize=(7.2, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    shown = list(shares)[:_MOST_NETWORKS]
    left.barh(range(len(shown)), [share.density for share in shown], color=SERIES[0], height=0.7)
    left.axvline(1, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    left.set(yticks=range(len(shown)), xlabel="Importance over size", ylim=(len(shown) - 0.4, -0.6))
    left.set_yticklabels([share.name for share in shown])
    left.set_title("Networks, dashed: as their size", pad=10)
    frames = np.arange(len(explanation.time_course)) * (repetition_time_s or 1.0)
    right.plot(frames, explanation.time_magnitudes, color=MUTED, lw=1, label="for or against")
    right.plot(frames, explanation.time_course, color=SERIES[1], lw=1.2, label="for less against")
    right.axhline(0, color=INK, lw=0.6)
    right.set(xlabel="Time (s)" if repetition_time_s else "Frame", ylabel=explanation.target)
    right.legend(loc="best")
    right.set_title("What each frame adds", pad=10)
    return figure


@styled
def draw_group(networks: Mapping[str, Mapping[str, Estimate]], num_people: int) -> Figure:
    """Mean density of each network over a group, with its interval."""
    figure = Figure(figsize=(4.8, 3.6))
    draw_densities(figure.subplots(), networks, f"Networks of {num_people} people, 95 % intervals")
    return figure

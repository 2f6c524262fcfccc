"""Importance over size, drawn: a dot and an interval for each part of the brain."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.style import MUTED, SERIES


def draw_densities(axes: Axes, parts: Mapping[str, Mapping[str, Estimate]], title: str) -> None:
    """The mean `density` of each part over a group, from the top down; dashed: as much as its size."""
    for place, found in enumerate(parts.values()):
        density = found["density"]
        axes.plot([density.low, density.high], [place, place], color=SERIES[0], lw=1.4)
        axes.scatter(density.value, place, s=24, color=SERIES[0], zorder=3)
    axes.axvline(1, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    axes.set(yticks=range(len(parts)), xlabel="Importance over size", ylim=(len(parts) - 0.4, -0.6))
    axes.set_yticklabels(list(parts))
    axes.set_title(title, pad=10)

"""Curves of an explanation: the slices over millimetres, and the checks of whether to believe it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from neuroray.platform.evaluate.style import AXIS_LABELS, HALO, INK, MUTED, SERIES, note_line, styled
from neuroray.platform.explain.faithfulness import Deletion
from neuroray.platform.explain.maps import Explanation


@styled
def draw_profile(explanation: Explanation) -> Figure:
    """Attention of each slice over millimetres, and below it what leaving the slice out does to the probability."""
    profile = explanation.profile
    figure = Figure(figsize=(7.2, 4.2))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    order = np.argsort(profile.position_mm)
    position = profile.position_mm[order]
    width = 0.86 * profile.spacing_mm
    upper.bar(position, 100 * profile.weight[order], width, color=SERIES[0], lw=0)
    uniform = 100 / len(position)
    upper.axhline(uniform, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    note_line(upper, uniform, f"1/{len(position)}: every slice alike")
    upper.set(ylabel="Attention (%)", ylim=(0, 1.12 * max(100 * profile.weight.max(), uniform)))
    upper.set_title(
        f"As spread as {profile.effective_slices:.0f} of {len(position)} slices alike "
        f"(entropy {profile.entropy_fraction:.2f} of the greatest)",
        pad=10,
    )
    change = 100 * profile.probability_change[order]
    lower.bar(position, change, width, color=np.where(change >= 0, SERIES[1], SERIES[5]).tolist(), lw=0)
    lower.axhline(0, color=INK, lw=0.6)
    lower.set(
        ylabel=f"“{explanation.target}” lost\nwithout it (points)",
        xlabel=AXIS_LABELS[profile.axis],
    )
    return figure


@styled
def draw_checks(deletion: Deletion, correlations: Mapping[str, float | None], target: str) -> Figure:
    """Deletion curves on the left; on the right how much of the map is left when weights are scrambled."""
    figure = Figure(figsize=(7.2, 3.1))
    left, right = figure.subplots(1, 2, width_ratios=(5, 2))
    fraction = 100 * deletion.fraction
    low, high = np.quantile(deletion.random, [0.025, 0.975], axis=0)
    left.fill_between(fraction, low, high, color=MUTED, alpha=0.16, lw=0)
    left.plot(fraction, deletion.random.mean(axis=0), color=MUTED, lw=1.2, label="at random")
    left.plot(fraction, deletion.most_first, color=SERIES[1], label="most important first")
    left.plot(fraction, deletion.least_first, color=SERIES[0], label="least important first")
    left.set(xlabel="Slices taken away (%)", ylabel=f"Log-odds of “{target}”", xlim=(0, 100))
    left.legend(loc="best")
    left.set_title(_tell_deletion(deletion), pad=10)
    names = list(correlations)
    for place, name in enumerate(names):
        value = correlations[name]
        right.plot([0, value or 0], [place, place], color=SERIES[0], lw=1.2)
        right.scatter(value or 0, place, s=30, color=SERIES[0], zorder=3)
        label = "constant map" if value is None else f"{value:.2f}"
        right.annotate(
            label, (value or 0, place), (0, 7), textcoords="offset points", ha="center", fontsize=7.5, path_effects=HALO
        )
    right.axvline(0, color=INK, lw=0.6)
    right.set(xlim=(-1.05, 1.05), ylim=(len(names) - 0.4, -0.6), yticks=range(len(names)), xlabel="Correlation")
    right.set_yticklabels([f"the {name}" for name in names])
    right.spines["left"].set_visible(False)
    right.tick_params(axis="y", length=0)
    right.set_title("Map after scrambling", pad=10)
    return figure


def _tell_deletion(deletion: Deletion) -> str:
    if deletion.random_orders_as_steep <= 0.05:
        return "The map names slices that the answer needs"
    if deletion.random_orders_as_steep >= 0.95:
        return "Slices named first speak against the answer"
    return "The map's order does no more than chance"

"""Pictures of an explained number: the map over the anatomy, and what each slice adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.style import INK, MUTED, SERIES, styled
from neuroray.platform.explain.densities import draw_densities
from neuroray.platform.explain.groups import GroupMap
from neuroray.platform.explain.measure_maps import SIGNED, MeasureExplanation, name_quantity
from neuroray.platform.explain.overlay import VoxelMap, draw_map
from neuroray.storage.scan import Scan


def draw_measure_map(scan: Scan, found: MeasureExplanation) -> Figure:
    """The map on axial planes of the scan, without a face."""
    quantity = f"{found.target}: {found.quantity}"
    return draw_map(scan, VoxelMap(values=found.values, quantity=quantity, is_signed=found.is_signed))


@styled
def draw_slices(found: MeasureExplanation) -> Figure:
    """What each picture adds, from left to right: its patches' sum, and the sum of their magnitudes."""
    figure = Figure(figsize=(7.2, 3.1))
    axes = figure.subplots()
    position = found.position_mm
    total, magnitude = found.patches.sum(axis=(1, 2)), np.abs(found.patches).sum(axis=(1, 2))
    if found.is_signed:
        axes.fill_between(position, -magnitude, magnitude, color=MUTED, alpha=0.16, lw=0, label="for or against")
        axes.axhline(0, color=INK, lw=0.6)
    axes.plot(position, total, color=SERIES[1], lw=1.2, label="for less against" if found.is_signed else "share")
    unit = f" ({found.unit})" if found.is_signed and found.unit else ""
    axes.set(
        xlabel="x (mm), left to right", ylabel=f"Added by a slice{unit}" if found.is_signed else "Share of a slice"
    )
    axes.legend(loc="best")
    title = f"What each slice adds to {found.target}" if found.is_signed else "Where the vectors come from"
    axes.set_title(title, pad=10)
    return figure


@styled
def draw_cascade(correlations: Mapping[str, Mapping[str, float | None]], *, is_signed: bool) -> Figure:
    """How much of the map is left while weights are scrambled from the answer down to the pictures."""
    figure = Figure(figsize=(7.2, 3.1))
    axes = figure.subplots()
    places = range(len(correlations) + 1)
    drawn = [("values", SERIES[1], "signed map" if is_signed else "map")]
    drawn += [("magnitudes", SERIES[0], "magnitudes")] if is_signed else []
    for name, colour, label in drawn:
        # A constant map has no correlation, and leaves a gap.
        points = np.array([1.0, *(value[name] for value in correlations.values())], dtype=float)
        axes.plot(places, points, color=colour, lw=1.2, marker="o", ms=4, label=label)
    axes.axhline(0, color=INK, lw=0.6)
    axes.set(xticks=places, ylim=(-1.05, 1.05), ylabel="Rank correlation with the map")
    axes.set_xticklabels(["as trained", *correlations], rotation=30, ha="right")
    axes.legend(loc="best")
    axes.set_title("The map after scrambling all weights down to here", pad=10)
    return figure


def draw_group_map(anatomy: Scan, group: GroupMap, *, target: str, unit: str, method: str) -> Figure:
    """The mean map of a group over its mean anatomy, without a face."""
    quantity = f"{target}: {name_quantity(method, unit)}, mean of {group.num_people} people"
    return draw_map(anatomy, VoxelMap(values=group.values, quantity=quantity, is_signed=method in SIGNED))


@styled
def draw_parts(
    tissues: Mapping[str, Mapping[str, Estimate]], networks: Mapping[str, Mapping[str, Estimate]], num_people: int
) -> Figure:
    """Mean density of tissues and of networks over a group, with intervals."""
    figure = Figure(figsize=(7.2, 3.6))
    for axes, parts, name in zip(figure.subplots(1, 2), (tissues, networks), ("Tissues", "Networks"), strict=True):
        draw_densities(axes, parts, f"{name}, {num_people} people")
    return figure


@styled
def draw_decades(decades: Mapping[str, Mapping[str, Any]], unit: str) -> Figure:
    """What each tissue adds in the mean, decade by decade of age."""
    figure = Figure(figsize=(7.2, 3.4))
    axes = figure.subplots()
    names = sorted({name for decade in decades.values() for name in decade["tissues"]})
    for number, name in enumerate(names):
        totals = [decade["tissues"].get(name, {}).get("total", np.nan) for decade in decades.values()]
        axes.plot(range(len(decades)), totals, color=SERIES[number % len(SERIES)], lw=1.2, marker="o", ms=4, label=name)
    axes.axhline(0, color=INK, lw=0.6)
    axes.set(
        xticks=range(len(decades)),
        xlabel="Decade of age (people)",
        ylabel=f"Added in the mean ({unit})" if unit else "In the mean",
    )
    axes.set_xticklabels([f"{decade}\n({one['num_people']})" for decade, one in decades.items()])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title("What tissues add at each age", pad=10)
    return figure

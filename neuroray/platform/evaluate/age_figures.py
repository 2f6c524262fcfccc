"""Figures of predicted age: calibration in bins, limits of agreement, error over age."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from neuroray.platform.evaluate.age_evidence import AgeBin
from neuroray.platform.evaluate.style import INK, MUTED, PAPER, SERIES, styled

_SIZE_IN = (4.2, 3.6)
_DASHED = (0, (4, 3))
# Half of the people beside each age, as the paper's own figure.
_LOWESS_FRACTION = 0.5
_FEWEST_FOR_LOWESS = 10


@styled
def draw_age_bins(bins: Sequence[AgeBin]) -> Figure:
    """What is said on average of people of each five years; dots grow with their number."""
    figure = Figure(figsize=_SIZE_IN)
    axes = figure.subplots()
    ages = np.array([each.mean_age_years for each in bins])
    said = np.array([each.mean_predicted_years for each in bins])
    half = np.array([each.half_width_years for each in bins])
    counts = np.array([each.num_scans for each in bins])
    ends = np.array([min(ages.min(), said.min()) - 2, max(ages.max(), said.max()) + 2])
    axes.plot(ends, ends, color=MUTED, lw=0.8, ls=_DASHED)
    axes.vlines(ages, said - half, said + half, color=INK, lw=1.0)
    axes.scatter(ages, said, s=12 + 60 * counts / counts.max(), color=SERIES[0], edgecolor=PAPER, zorder=3)
    axes.set(xlabel="Mean age of the bin (years)", ylabel="Mean predicted age (years)")
    return figure


@styled
def draw_bland_altman(
    ages: Float[np.ndarray, " row"], predicted: Float[np.ndarray, " row"], limits: tuple[float, float, float]
) -> Figure:
    """Difference of predicted and true age over their mean, with the mean difference and the limits of agreement."""
    figure = Figure(figsize=_SIZE_IN)
    axes = figure.subplots()
    axes.scatter((ages + predicted) / 2, predicted - ages, s=14, color=SERIES[0], alpha=0.6, lw=0)
    for height, dashes in zip(limits, ("-", _DASHED, _DASHED), strict=True):
        axes.axhline(height, color=INK, lw=1.0, ls=dashes)
        axes.annotate(
            f"{height:+.1f}",
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    axes.set(xlabel="Mean of predicted and true age (years)", ylabel="Predicted less true age (years)")
    return figure


@styled
def draw_errors_by_age(ages: Float[np.ndarray, " row"], errors: Float[np.ndarray, " row"]) -> Figure:
    """Error over true age, with its line and a smooth through it."""
    figure = Figure(figsize=_SIZE_IN)
    axes = figure.subplots()
    axes.axhline(0, color=MUTED, lw=0.8, ls=_DASHED)
    axes.scatter(ages, errors, s=14, color=SERIES[0], alpha=0.6, lw=0)
    if np.ptp(ages) > 0:
        span = np.array([ages.min(), ages.max()])
        axes.plot(span, np.polyval(np.polyfit(ages, errors, 1), span), color=INK, lw=1.2)
    if len(np.unique(ages)) >= _FEWEST_FOR_LOWESS:
        from statsmodels.nonparametric.smoothers_lowess import lowess

        smooth = lowess(errors, ages, frac=_LOWESS_FRACTION)
        axes.plot(smooth[:, 0], smooth[:, 1], color=SERIES[1], lw=1.4)
    axes.set(xlabel="Age (years)", ylabel="Predicted less true age (years)")
    return figure

"""What the page of a measure says besides, where the measure is age."""

from __future__ import annotations

import numpy as np

from neuroray.platform.evaluate import age_figures, figures
from neuroray.platform.evaluate.age_evidence import BIN_YEARS, AgeEvidence
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.page import Numbering, PageFigure

# Older than this in months would be nobody, in years everybody knows it.
_OLDEST_YEARS = 120


def draw_age_answers(evaluation: NumberEvaluation, age: AgeEvidence, numbering: Numbering) -> list[PageFigure]:
    """Calibration, limits of agreement, and error over age."""
    bias, low, high = age.limits_years
    slope = age.error_per_year
    return [
        numbering.plot(
            age_figures.draw_age_bins(age.bins),
            "agebins",
            "What is said of people of one age",
            f"Means in bins of {BIN_YEARS} years with 95 % intervals; dots grow with the scans in them; dashed: true.",
        ),
        numbering.plot(
            age_figures.draw_bland_altman(evaluation.values, evaluation.predicted, age.limits_years),
            "blandaltman",
            f"Mean error {bias:+.1f} years; nineteen of twenty within {low:+.1f} and {high:+.1f}",
            "Bland and Altman: one dot is one scan; solid: mean difference, dashed: 1.96 standard deviations off.",
        ),
        numbering.plot(
            age_figures.draw_errors_by_age(evaluation.values, evaluation.predicted - evaluation.values),
            "errorsbyage",
            f"The error changes by {slope.value:+.2f} years with a year of age ({slope.low:+.2f} to {slope.high:+.2f})",
            "Least-squares line, and in orange a local smooth (LOWESS over half of the people). A falling line is what "
            "regression does; “neuroray gap” corrects for it with controls who are not judged.",
        ),
    ]


def draw_age_strata(evaluation: NumberEvaluation, numbering: Numbering) -> PageFigure | None:
    """The error within each part of the people."""
    rows = [(row.variable, row.level, str(row.counts[0]), row.found) for row in evaluation.strata if row.found]
    if not rows:
        return None
    overall = evaluation.metrics["mae"]
    highest = 1.05 * max(found.high for _, _, _, found in rows if np.isfinite(found.high))
    worse = [level for _, level, _, found in rows if found.low > overall.value]
    title = f"Further off than the whole: {', '.join(worse)}" if worse else "No part of the people stands apart"
    figure = figures.draw_strata(
        rows, overall, "Mean absolute error (years)", chance=evaluation.guess["mae"], low=0.0, high=highest
    )
    caption = (
        "Mean absolute error within each part of the held-out people. The blue line and band are the whole with its "
        "interval, the dashed line is saying the training mean of everybody; the grey numbers are scans. Many small "
        "parts: some will stand apart by chance."
    )
    return numbering.plot(figure, "strata", title, caption, wide=True)


def gather_age_warnings(evaluation: NumberEvaluation, age: AgeEvidence) -> list[str]:
    """What a reader must know of ages in particular."""
    found = []
    if age.gain_years.low <= 0:
        found.append(
            "It is not known to beat saying the training mean of everybody: off by "
            f"{evaluation.metrics['mae'].value:.2f} years against {evaluation.guess['mae']:.2f}."
        )
    if age.num_beyond and age.trained_ages_years is not None:
        young, old = age.trained_ages_years
        inside = f"; the others are off by {age.within['mae'].value:.2f} years" if age.within else ""
        found.append(
            f"{age.num_beyond} scans are of people younger or older than anybody it was trained on ({young:.0f} to "
            f"{old:.0f} years){inside}."
        )
    if evaluation.values.max() > _OLDEST_YEARS:
        found.append(f"The oldest is {evaluation.values.max():.0f}: are ages in months?")
    return found

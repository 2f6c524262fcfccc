"""Figures of the page of brains at other ages, each with a title that tells what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuroray.platform.evaluate import ageing_figures as figures
from neuroray.platform.evaluate import ageing_findings as findings
from neuroray.platform.evaluate.ageing_evidence import CEILING, COPY, MODEL, AgeingEvaluation, column
from neuroray.platform.evaluate.ageing_sweep import NUM_AGES
from neuroray.platform.evaluate.figures import draw_learning_curves
from neuroray.platform.evaluate.generated_ages import TARGET
from neuroray.platform.evaluate.page import Numbering, PageFigure

_SHORT = {
    COPY: "copy",
    CEILING: "ceiling",
    MODEL: "model",
    "population": "population",
    "latent": "linear",
    "diffusion": "diffusion",
}


def draw_gaps(evaluation: AgeingEvaluation, numbering: Numbering) -> list[PageFigure]:
    """Nearness over the gap, and what each row has over the copy."""
    gaps = np.array([abs(one.pair.gap_years) for one in evaluation.judged])
    told = {_SHORT[row]: column(evaluation.judged, row, "psnr_brain") for row in (COPY, CEILING, MODEL)}
    parts = {"all pairs": evaluation.whole, **evaluation.by_gap}
    rows = [
        (name, _SHORT[row], found.gains[row]["l1_brain"])
        for name, found in parts.items()
        for row in evaluation.row_labels
        if row != COPY
    ]
    return [
        numbering.plot(
            figures.draw_by_gap(gaps, told, "PSNR in the brain (dB)"),
            "gaps",
            findings.tell_gaps(evaluation),
            "One dot is one pair; lines are least squares.",
        ),
        numbering.plot(
            figures.draw_gains(rows, "L1 in the brain, less that of the copy (left of 0: nearer to the truth)"),
            "gains",
            findings.tell_ageing_headline(evaluation),
            "Means of differences pair by pair, with 95 % intervals over people.",
            wide=True,
        ),
    ]


def draw_changes(evaluation: AgeingEvaluation, numbering: Numbering) -> list[PageFigure]:
    """Predicted against true change of the main region; none where it could not be measured."""
    region = evaluation.main_region
    if region not in evaluation.regions:
        return []
    true_ml, told_ml = _changes(evaluation, MODEL, region)
    return [
        numbering.plot(
            figures.draw_change(true_ml, told_ml, region),
            "change",
            findings.tell_change(evaluation),
            "One dot is one pair; on the dashed line what is told is true. The solid line is least squares.",
        ),
        numbering.plot(
            figures.draw_limits(true_ml, told_ml, region),
            "limits",
            f"Predicted change of {region} is off by {np.mean(told_ml - true_ml):+.2f} ml on average",
            "Bland and Altman: the solid line is the mean, the dashed ones the 95 % limits of agreement.",
        ),
    ]


def draw_sweep(evaluation: AgeingEvaluation, numbering: Numbering) -> PageFigure | None:
    """The main region over ages told to one person; None where nobody was told any."""
    region = evaluation.main_region
    told = [(one.ages_years, one.volumes_ml[region]) for one in evaluation.sweep.people]
    if not told or region not in evaluation.regions:
        return None
    real = [
        (one.pair.ages_years, (one.volumes_ml["previous"][region], one.volumes_ml["target"][region]))
        for one in evaluation.judged
    ]
    caption = (
        f"Each blue line is one person, told at {NUM_AGES} ages from one scan; each orange one what was measured at "
        "two visits. Where blue begins off orange, that is what the tokenizer draws otherwise than the scan has it."
    )
    title = findings.tell_sweep(evaluation)
    return numbering.plot(figures.draw_sweep(told, real, region), "sweep", title, caption, wide=True)


def draw_read(evaluation: AgeingEvaluation, numbering: Numbering) -> list[PageFigure]:
    """Ages that another model reads; none where there is no such model."""
    read = evaluation.read_age
    if read is None:
        return []
    ages = np.array([one.pair.ages_years[1] for one in evaluation.judged])
    told = {
        name: np.array([one.predicted_ages_years[row] for one in evaluation.judged])
        for name, row in (("real follow-up", TARGET), ("ceiling", CEILING), ("model", MODEL))
    }
    found, real = (read.rows[row]["years_per_year"].value for row in (MODEL, TARGET))
    return [
        numbering.plot(
            figures.draw_ages_read(ages, told),
            "read",
            f"To another model the brains look {found:.2f} years older per year told; real ones {real:.2f}",
            "One dot is one pair; on the dashed line the age read is the age told.",
        )
    ]


def draw_learning(evaluation: AgeingEvaluation, numbering: Numbering) -> PageFigure | None:
    """Loss and error of the latent by epoch; None where nothing was logged."""
    curves: Sequence[Mapping[str, Any]] = [
        fold.curves for fold in evaluation.folds if any(map(len, fold.curves.values()))
    ]
    if not curves:
        return None
    figure = draw_learning_curves(curves, score="Latent error over the copy's")
    caption = (
        "Loss, and the squared error of the generated latent over that of the previous scan's, on validation people: "
        "below 1 it is nearer to the follow-up. The ring marks the weights that were kept. The people judged had no "
        "part."
    )
    return numbering.plot(figure, "learning", "How the transformer learned", caption, wide=True)


def _changes(evaluation: AgeingEvaluation, row: str, region: str) -> tuple[np.ndarray, np.ndarray]:
    both = np.array([(one.true_change_ml(region), one.changes_ml[row][region]) for one in evaluation.judged])
    known = np.isfinite(both).all(axis=1)
    return both[known, 0], both[known, 1]

"""What stands on the page of a measure: the same template as for classes, other figures and sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroray.platform.evaluate import figures, number_findings
from neuroray.platform.evaluate.age_page import draw_age_answers, draw_age_strata
from neuroray.platform.evaluate.findings import tell_interval, tell_number
from neuroray.platform.evaluate.metrics import REGRESSION_METRICS
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.page import (
    Numbering,
    PageFigure,
    describe_checks,
    describe_facts,
    describe_provenance,
    describe_seeds,
    draw_range,
    list_fold_names,
    list_fold_values,
)

# On the whisker, which runs from 0 to 1.
_SHARES = ("pearson_r", "spearman_rho", "r2")


def describe_number_page(evaluation: NumberEvaluation) -> dict[str, Any]:
    """All values of the template."""
    numbering = Numbering()
    provenance = evaluation.provenance
    return {
        "kicker": f"Evaluation of {provenance.get('model_title', evaluation.model_name)}",
        "headline": number_findings.tell_number_headline(evaluation),
        "lead": _lead(evaluation),
        "facts": describe_facts(evaluation),
        "key": _key_numbers(evaluation),
        "warnings": evaluation.warnings,
        "answer_text": f"{_tell_answer(evaluation)} {_tell_coverage(evaluation)}",
        "answers": _answers(evaluation, numbering),
        "metrics": _metric_rows(evaluation),
        "fold_names": list_fold_names(evaluation),
        "seeds": describe_seeds(evaluation),
        "strata": _strata(evaluation, numbering),
        "strata_small": _small_strata(evaluation),
        "looks": [],
        "learning": _learning(evaluation, numbering),
        "classes": list(next(iter(evaluation.folds[0].counts.values()))),
        "sides": _sides(evaluation),
        "checks": [] if provenance.get("protocol") == "external" else describe_checks(evaluation),
        "methods": _methods(evaluation),
        "provenance": describe_provenance(evaluation),
        "footer": f"Made by neuroray {provenance['versions']['neuroray']} on {provenance['made_at']}. "
        "No diagnostic device: for research use.",
    }


def _tell_answer(evaluation: NumberEvaluation) -> str:
    if all(row.num_windows == 1 for row in evaluation.judged):
        return "Of every scan it says one number."
    return "What is said of a scan is the mean over windows that cover it without a gap."


def _unit(evaluation: NumberEvaluation) -> str:
    return f" {evaluation.unit}" if evaluation.unit else ""


def _lead(evaluation: NumberEvaluation) -> str:
    found = evaluation.metrics["pearson_r"]
    folds = f", pooled over {len(evaluation.folds)} folds" if len(evaluation.folds) > 1 else ""
    return (
        f"On {len(evaluation.judged)} scans of {evaluation.num_people} held-out people{folds} what it says of "
        f"{evaluation.target} correlates with the truth at {tell_number(found.value)}, with a 95 % interval of "
        f"{tell_interval(found)}; guessing reaches 0."
    )


def _tell_coverage(evaluation: NumberEvaluation) -> str:
    if evaluation.coverage is not None:
        return evaluation.coverage.tell(_unit(evaluation))
    return f"There is {evaluation.no_interval}." if evaluation.no_interval else ""


def _key_numbers(evaluation: NumberEvaluation) -> list[dict[str, str]]:
    notes = {
        "pearson_r": " · guessing 0",
        "r2": " · guessing 0 or less",
        "mae": f" · the training mean {evaluation.guess['mae']:.3g}",
        "rmse": f" · the training mean {evaluation.guess['rmse']:.3g}",
    }
    return [
        {
            "label": REGRESSION_METRICS[name].label,
            "value": _tell_value(name, evaluation.metrics[name].value),
            "note": _tell_ends(evaluation, name) + note,
        }
        for name, note in notes.items()
    ]


def _tell_value(name: str, value: float) -> str:
    return tell_number(value) if name in _SHARES or not np.isfinite(value) else f"{value:.3g}"


def _tell_ends(evaluation: NumberEvaluation, name: str) -> str:
    found = evaluation.metrics[name]
    if name in _SHARES or not np.isfinite(found.low):
        return tell_interval(found)
    return f"{found.low:.3g} to {found.high:.3g}"


def _answers(evaluation: NumberEvaluation, numbering: Numbering) -> list[PageFigure]:
    what = f"{evaluation.target}{f' ({evaluation.unit})' if evaluation.unit else ''}"
    drawn = [
        numbering.plot(
            figures.draw_agreement(evaluation.values, evaluation.predicted, what),
            "agreement",
            number_findings.tell_agreement(evaluation),
            "One dot is one scan; on the dashed line what is said is true. The solid line is the least-squares fit.",
        ),
        numbering.plot(
            figures.draw_errors(evaluation.predicted - evaluation.values, what),
            "errors",
            number_findings.tell_errors(evaluation),
            "What was said less what is true, in scans; the dashed line is no error, the solid one the mean.",
        ),
    ]
    if evaluation.age is not None:
        drawn += draw_age_answers(evaluation, evaluation.age, numbering)
    return drawn


def _metric_rows(evaluation: NumberEvaluation) -> list[dict[str, Any]]:
    rows = []
    for name, metric in REGRESSION_METRICS.items():
        found = evaluation.metrics[name]
        is_drawn = name in _SHARES and found.low >= 0
        drawn = draw_range(found) if is_drawn else {"value": None, "low": None, "high": None}
        rows.append(
            {
                "label": metric.label,
                "arrow": "↑" if metric.better == "higher" else "↓",
                "text": _tell_value(name, found.value),
                "interval": _tell_ends(evaluation, name),
                "folds": list_fold_values(evaluation, name),
                "chance": metric.chance if name in _SHARES else None,
                **drawn,
            }
        )
    return rows


def _strata(evaluation: NumberEvaluation, numbering: Numbering) -> PageFigure | None:
    if evaluation.age is not None:
        return draw_age_strata(evaluation, numbering)
    rows = [(row.variable, row.level, str(row.counts[0]), row.found) for row in evaluation.strata if row.found]
    if not rows:
        return None
    figure = figures.draw_strata(rows, evaluation.metrics["pearson_r"], "Correlation", chance=0.0, low=-1.0)
    caption = (
        "Correlation within each part of the held-out people. The blue line and band are the whole with its interval; "
        "the grey numbers are scans. Age is cut into thirds. Many small parts: some will stand apart by chance."
    )
    return numbering.plot(figure, "strata", number_findings.tell_number_strata(evaluation), caption, wide=True)


def _small_strata(evaluation: NumberEvaluation) -> str:
    small = [row.level for row in evaluation.strata if row.found is None]
    return f"Too few people to be judged alone: {', '.join(small)}." if small else ""


def _learning(evaluation: NumberEvaluation, numbering: Numbering) -> PageFigure | None:
    curves = [fold.curves for fold in evaluation.folds if any(len(points) for points in fold.curves.values())]
    if not curves:
        return None
    figure = figures.draw_learning_curves(curves, score="Correlation")
    caption = (
        "Loss, and correlation on the people that the run was selected on; the ring marks the weights that were kept. "
        "The people judged had no part."
    )
    return numbering.plot(figure, "learning", number_findings.tell_number_learning(evaluation), caption, wide=True)


def _sides(evaluation: NumberEvaluation) -> list[dict[str, Any]]:
    rows = []
    for fold in evaluation.folds:
        row: dict[str, Any] = {"fold": fold.index}
        for side, counts in fold.counts.items():
            parts = " + ".join(map(str, counts.values()))
            row[side] = {"people": fold.num_subjects[side], "scans": f"{sum(counts.values())} ({parts})"}
        rows.append(row)
    return rows


def _methods(evaluation: NumberEvaluation) -> list[str]:
    return [
        f"Intervals are percentiles of {len(evaluation.resamples)} bootstrap resamples (seed {evaluation.seed}). "
        "Families, or people without a family id, are drawn with replacement; all scans of one go together. The model "
        "is fixed: what another training run would give is not in the interval.",
        "Mean and spread by which the measure was standardised are those of the training people alone. The training "
        f"mean itself, said of everybody, is off by {evaluation.guess['mae']:.3g}{_unit(evaluation)} on average.",
        *_tell_conformal(evaluation),
        "Weights were selected on the validation people only. The people judged here were used for nothing before.",
        _tell_protocol(evaluation),
    ]


def _tell_conformal(evaluation: NumberEvaluation) -> list[str]:
    if evaluation.coverage is None:
        return []
    return [
        "Prediction intervals are split conformal: as wide, on both sides, as the absolute errors in the validation "
        "people of each fold, one of each family, rank. Weights were selected on the same people, so they may be a "
        "little narrow: what is counted here, in people that had no part, is the check."
    ]


def _tell_protocol(evaluation: NumberEvaluation) -> str:
    """How far those judged are from those trained on."""
    protocol = evaluation.provenance.get("protocol", "people")
    if protocol == "external":
        num_models = evaluation.provenance["num_models"]
        told = "the mean of what the models of all folds say" if num_models > 1 else "what the run's one model says"
        return (
            f"Another cohort: everybody in its store who has a {evaluation.target} and scans of this kind was judged, "
            f"by {told}. No scan of theirs was trained on, by digests of voxels and files."
        )
    if protocol == "site":
        return (
            "Each fold holds a whole site out: it is judged by a model that has seen nobody scanned there. How much of "
            "the error is the site's and how much its people's cannot be told apart."
        )
    return (
        "Held-out people come from the same store as the others: how the model does at another site, on another "
        "scanner, or after other preprocessing is not shown here."
    )

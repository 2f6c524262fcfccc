"""The evidence on a measure as files: the same three as for classes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuroray.platform.evaluate.metrics import REGRESSION_METRICS
from neuroray.platform.evaluate.number_evidence import JudgedNumber, NumberEvaluation
from neuroray.platform.evaluate.number_page import describe_number_page
from neuroray.platform.evaluate.report_parts import (
    FORMAT,
    describe_folds,
    describe_interval,
    describe_metrics,
    finite_or_none,
)
from neuroray.platform.evaluate.templates import open_template

_COLUMNS = ("fold", "scan_id", "subject", "family_id", "age_years", "sex", "site", "value", "predicted", "error")
_FURTHER = ("interval_low", "interval_high", "spread", "num_windows", "profile", "profile_sha256")


def write_number_predictions(evaluation: NumberEvaluation, path: Path) -> None:
    """One row a held-out scan, sorted by fold and scan; numbers in the target's unit."""
    _write_rows(evaluation, evaluation.judged, path)


def write_validation_predictions(evaluation: NumberEvaluation, path: Path) -> None:
    """The same of the people that weights were selected on; an older file goes where there are none."""
    if evaluation.validation:
        _write_rows(evaluation, evaluation.validation, path)
    else:
        path.unlink(missing_ok=True)


def _write_rows(evaluation: NumberEvaluation, rows: Sequence[JudgedNumber], path: Path) -> None:
    facts = {fold.index: fold.facts for fold in evaluation.folds}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *_FURTHER])
        for row in sorted(rows, key=lambda row: (row.fold, row.scan_id)):
            person = (row.fold, row.scan_id, row.subject, row.family_id or "", row.age_years, row.sex or "")
            answer = (row.value, f"{row.predicted:.9g}", f"{row.predicted - row.value:.9g}")
            spread = "" if row.spread is None else f"{row.spread:.9g}"
            profile = (facts[row.fold].get("profile"), facts[row.fold].get("profile_sha256"))
            interval = row.interval
            bounds = ("", "") if interval is None else (f"{interval.low:.9g}", f"{interval.high:.9g}")
            writer.writerow([*person, row.site or "", *answer, *bounds, spread, row.num_windows, *profile])


def describe_number_evaluation(evaluation: NumberEvaluation) -> dict[str, Any]:
    """What `report.json` holds: every number of the page, and where it came from; nobody's name."""
    return {
        "format": FORMAT,
        "model_name": evaluation.model_name,
        "target": evaluation.target,
        "unit": evaluation.unit,
        "modality": evaluation.modality,
        "classes": [],
        "num_people": evaluation.num_people,
        "num_scans": len(evaluation.judged),
        "metrics": describe_metrics(REGRESSION_METRICS, evaluation.metrics),
        "metrics_by_person": describe_metrics(REGRESSION_METRICS, evaluation.metrics_by_person) or None,
        "prediction_intervals": evaluation.coverage.to_json() if evaluation.coverage else None,
        "no_prediction_intervals": evaluation.no_interval,
        "metrics_of_training_mean": {name: finite_or_none(value) for name, value in evaluation.guess.items()},
        "interval": describe_interval(
            "percentile bootstrap over families or people",
            num_resamples=len(evaluation.resamples),
            seed=evaluation.seed,
        ),
        "folds": describe_folds(evaluation.folds),
        "seeds": evaluation.seeds.to_json() if evaluation.seeds else None,
        "strata": [
            {
                "variable": row.variable,
                "level": row.level,
                "num_scans": row.counts[0],
                evaluation.strata_metric: row.found.to_json() if row.found else None,
            }
            for row in evaluation.strata
        ],
        **({"age": evaluation.age.to_json()} if evaluation.age is not None else {}),
        "warnings": list(evaluation.warnings),
        "provenance": dict(evaluation.provenance),
    }


def render_number_page(evaluation: NumberEvaluation) -> str:
    """The page as text."""
    template = open_template("neuroray.platform.evaluate", "report.html.j2")
    return template.render(page=describe_number_page(evaluation))

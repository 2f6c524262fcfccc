"""The evidence as files: predictions.csv, report.json, and report.html that needs nothing but itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.evaluate.evidence import Evaluation
from neuroray.platform.evaluate.metrics import metric_table
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.number_report import (
    describe_number_evaluation,
    render_number_page,
    write_number_predictions,
    write_validation_predictions,
)
from neuroray.platform.evaluate.page import describe_page
from neuroray.platform.evaluate.report_parts import (
    FORMAT,
    describe_folds,
    describe_interval,
    describe_metrics,
    finite_or_none,
)
from neuroray.platform.evaluate.templates import open_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One explained scan for the page: a picture of the map over the anatomy, without a name.

    Attributes:
        png: The picture.
        title: The finding.
        caption: What is drawn, in which space and unit.
    """

    png: bytes
    title: str
    caption: str


def write_report(
    evaluation: Evaluation | NumberEvaluation, out: Path, *, example: Example | None = None
) -> dict[str, Path]:
    """Writes `predictions.csv`, `report.json` and `report.html`, and of age `predictions_val.csv`.

    Subject ids stand in `predictions.csv` alone; the other two may be handed on.

    Returns:
        The three paths by name.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / name for name in ("predictions.csv", "report.json", "report.html")}
    if isinstance(evaluation, NumberEvaluation):
        write_number_predictions(evaluation, paths["predictions.csv"])
        write_validation_predictions(evaluation, out / "predictions_val.csv")
        described, page = describe_number_evaluation(evaluation), render_number_page(evaluation)
    else:
        write_predictions(evaluation, paths["predictions.csv"])
        described, page = describe_evaluation(evaluation), render_page(evaluation, example=example)
    paths["report.json"].write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
    paths["report.html"].write_text(page)
    return paths


def write_predictions(evaluation: Evaluation, path: Path) -> None:
    """One row a held-out scan, sorted by fold and scan; with the preprocessing profile that the scan went through."""
    profiles = {fold.index: (fold.facts["profile"], fold.facts["profile_sha256"]) for fold in evaluation.folds}
    columns = ["fold", "scan_id", "subject", "family_id", "age_years", "sex", "site", "label", "predicted", "correct"]
    columns += [*(f"probability_{name}" for name in evaluation.classes), "profile", "profile_sha256"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in sorted(evaluation.judged, key=lambda row: (row.fold, row.scan_id)):
            predicted = int(np.argmax(row.probabilities))
            person = (
                row.fold,
                row.scan_id,
                row.subject,
                row.family_id or "",
                row.age_years,
                row.sex or "",
                row.site or "",
            )
            answer = (evaluation.classes[row.label], evaluation.classes[predicted], int(predicted == row.label))
            probabilities = (f"{value:.9g}" for value in row.probabilities)
            writer.writerow([*person, *answer, *probabilities, *profiles[row.fold]])


def describe_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """What `report.json` holds: every number of the page, and where it came from; nobody's name."""
    table = metric_table(len(evaluation.classes))
    return {
        "format": FORMAT,
        "model_name": evaluation.model_name,
        "target": evaluation.target,
        "modality": evaluation.modality,
        "classes": list(evaluation.classes),
        "positive_class": evaluation.positive,
        "num_people": evaluation.num_people,
        "num_scans": len(evaluation.judged),
        "metrics": describe_metrics(table, evaluation.metrics),
        "metrics_by_person": describe_metrics(table, evaluation.metrics_by_person) or None,
        "confusion": {"rows": "true", "columns": "predicted", "counts": evaluation.confusion.astype(int).tolist()},
        "interval": describe_interval(
            "percentile bootstrap over families or people, within classes",
            num_resamples=len(evaluation.resamples),
            seed=evaluation.seed,
        ),
        "folds": describe_folds(evaluation.folds),
        "seeds": evaluation.seeds.to_json() if evaluation.seeds else None,
        "strata": [
            {
                "variable": row.variable,
                "level": row.level,
                "counts": dict(zip(evaluation.classes, row.counts, strict=True)),
                "auc": row.found.to_json() if row.found else None,
            }
            for row in evaluation.strata
        ],
        "attention": _describe_attention(evaluation),
        "warnings": list(evaluation.warnings),
        "provenance": dict(evaluation.provenance),
    }


def render_page(evaluation: Evaluation, *, example: Example | None = None) -> str:
    """The page as text."""
    picture = None if example is None else (example.png, example.title, example.caption)
    template = open_template("neuroray.platform.evaluate", "report.html.j2")
    return template.render(page=describe_page(evaluation, picture))


def _describe_attention(evaluation: Evaluation) -> Mapping[str, Any] | None:
    profile = evaluation.attention
    if profile is None:
        return None
    by_class = {
        name: [finite_or_none(value) for value in profile.mean(index)]
        for index, name in enumerate(evaluation.classes)
        if (profile.labels == index).any()
    }
    return {
        "axis": profile.axis,
        "position_mm": profile.position_mm.tolist(),
        "mean_density_per_mm": by_class,
        "uniform_density_per_mm": profile.uniform_per_mm,
        "effective_slices": {
            "mean": float(profile.effective_slices.mean()),
            "num_slices_mean": float(profile.num_slices.mean()),
        },
    }

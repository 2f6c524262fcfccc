"""The evidence on brains at other ages as files: report.html, report.json, pairs.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from neuroray.platform.evaluate.ageing_evidence import LONG_GAP_YEARS, AgeingEvaluation, JudgedPair
from neuroray.platform.evaluate.ageing_page import render_ageing_page
from neuroray.platform.evaluate.image_quality import SSIM_STATED
from neuroray.platform.evaluate.report_parts import FORMAT, describe_folds, describe_interval


def write_ageing_report(evaluation: AgeingEvaluation, out: Path) -> dict[str, Path]:
    """Writes `pairs.csv`, `report.json` and `report.html`.

    Ids of scans and people stand in `pairs.csv` alone; the other two may be handed on.

    Returns:
        The paths by name.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / name for name in ("pairs.csv", "report.json", "report.html")}
    write_pairs(evaluation, paths["pairs.csv"])
    described = describe_ageing(evaluation)
    paths["report.json"].write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
    paths["report.html"].write_text(render_ageing_page(evaluation))
    return paths


def write_pairs(evaluation: AgeingEvaluation, path: Path) -> None:
    """One row a pair, by fold and scans: ids, ages, every row's metrics, volumes, changes and ages read off it."""
    people = [_describe_pair(one) for one in evaluation.judged]
    metrics = list(evaluation.metrics)
    measured = [_describe_measures(one, evaluation.row_labels, metrics) for one in evaluation.judged]
    with path.open("w", newline="") as file:
        # Labelled structures are those of some pairs alone.
        columns = dict.fromkeys(name for values in measured for name in values)
        writer = csv.DictWriter(file, [*people[0], *columns], restval="")
        writer.writeheader()
        for person, values in sorted(zip(people, measured, strict=True), key=lambda row: tuple(row[0].values())[:3]):
            told = {name: "" if value != value else f"{value:.9g}" for name, value in values.items()}
            writer.writerow(person | told)


def _describe_pair(one: JudgedPair) -> dict[str, Any]:
    first, second = one.pair.previous, one.pair.target
    return {
        "fold": one.fold,
        "previous": first.scan_id,
        "target": second.scan_id,
        "subject": first.subject,
        "family_id": first.family_id or "",
        "sex": first.sex or "",
        "site": first.site or "",
        "age_years": one.pair.ages_years[0],
        "target_age_years": one.pair.ages_years[1],
    }


def _describe_measures(one: JudgedPair, rows: Iterable[str], metrics: Sequence[str]) -> dict[str, float]:
    found = {f"{row}_{metric}": one.scores[row].get(metric, float("nan")) for row in rows for metric in metrics}
    found |= {f"{who}_{region}_ml": value for who, told in one.volumes_ml.items() for region, value in told.items()}
    found |= {
        f"{row}_{region}_change_ml": value for row, told in one.changes_ml.items() for region, value in told.items()
    }
    return found | {f"{who}_age_read_years": value for who, value in one.predicted_ages_years.items()}


def describe_ageing(evaluation: AgeingEvaluation) -> dict[str, Any]:
    """What `report.json` holds: every number of the page, and where it came from; nobody's name."""
    return {
        "format": FORMAT,
        "model_name": evaluation.model_name,
        "modality": evaluation.modality,
        "classes": [],
        "target": "",
        "direction": "backward" if evaluation.backward else "forward",
        "num_people": evaluation.num_people,
        "num_pairs": len(evaluation.judged),
        "rows": dict(evaluation.row_labels),
        "measured": {
            name: {"label": metric.label, "better": metric.better, "unit": metric.unit}
            for name, metric in evaluation.metrics.items()
        },
        "data_range": "values in [0, 1]: the brain's percentiles 0.5 and 99.5 of each scan",
        "ssim": SSIM_STATED,
        "perceptual": evaluation.perceptual.to_json() if evaluation.perceptual else None,
        "long_gap_years": LONG_GAP_YEARS,
        "interval": describe_interval(
            "percentile bootstrap over families or people",
            num_resamples=evaluation.num_resamples,
            seed=evaluation.seed,
        ),
        "whole": evaluation.whole.to_json(),
        "by_gap": {name: found.to_json() for name, found in evaluation.by_gap.items()},
        "regions": {
            "main": evaluation.main_region,
            "method": evaluation.region_method,
            "labels": evaluation.labels.to_json() if evaluation.labels else None,
            "rows": {
                region: {row: one.to_json() for row, one in rows.items()} for region, rows in evaluation.regions.items()
            },
        },
        "sweep": evaluation.sweep.to_json(),
        "read_age": evaluation.read_age.to_json() if evaluation.read_age else None,
        "downstream": evaluation.downstream.to_json() if evaluation.downstream else None,
        "folds": describe_folds(evaluation.folds),
        "warnings": list(evaluation.warnings),
        "provenance": dict(evaluation.provenance),
    }

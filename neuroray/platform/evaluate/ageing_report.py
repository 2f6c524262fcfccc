"""The evidence on brains at other ages as files: report.json and pairs.csv."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from neuroray.platform.evaluate.ageing_evidence import LONG_GAP_YEARS, PAIR_METRICS, AgeingEvaluation
from neuroray.platform.evaluate.image_quality import SSIM_STATED
from neuroray.platform.evaluate.report_parts import FORMAT, describe_folds, describe_interval


def write_ageing_report(evaluation: AgeingEvaluation, out: Path) -> dict[str, Path]:
    """Writes `pairs.csv` and `report.json`.

    Ids of scans and people stand in `pairs.csv` alone; the other may be handed on.

    Returns:
        The paths by name.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / name for name in ("pairs.csv", "report.json")}
    write_pairs(evaluation, paths["pairs.csv"])
    described = describe_ageing(evaluation)
    paths["report.json"].write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
    return paths


def write_pairs(evaluation: AgeingEvaluation, path: Path) -> None:
    """One row a pair, by fold and scans: ids, ages, and every row's metrics."""
    names = [(row, metric) for row in evaluation.row_labels for metric in PAIR_METRICS]
    head = ["fold", "previous", "target", "subject", "family_id", "sex", "site", "age_years", "target_age_years"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *(f"{row}_{metric}" for row, metric in names)])
        for one in sorted(evaluation.judged, key=lambda one: (one.fold, one.pair.previous.scan_id)):
            first = one.pair.previous
            person = (first.subject, first.family_id or "", first.sex or "", first.site or "")
            values = [one.scores[row].get(metric, float("nan")) for row, metric in names]
            told = ["" if value != value else f"{value:.9g}" for value in values]
            writer.writerow([one.fold, first.scan_id, one.pair.target.scan_id, *person, *one.pair.ages_years, *told])


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
            for name, metric in PAIR_METRICS.items()
        },
        "data_range": "values in [0, 1]: the brain's percentiles 0.5 and 99.5 of each scan",
        "ssim": SSIM_STATED,
        "long_gap_years": LONG_GAP_YEARS,
        "interval": describe_interval(
            "percentile bootstrap over families or people",
            num_resamples=evaluation.num_resamples,
            seed=evaluation.seed,
        ),
        "whole": evaluation.whole.to_json(),
        "by_gap": {name: found.to_json() for name, found in evaluation.by_gap.items()},
        "folds": describe_folds(evaluation.folds),
        "warnings": list(evaluation.warnings),
        "provenance": dict(evaluation.provenance),
    }

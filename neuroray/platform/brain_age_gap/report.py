"""The study as files: gap.csv with every scan's gaps, gap.json with every number, gap.html that needs only itself."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.brain_age_gap.correction import GAP_KINDS
from neuroray.platform.brain_age_gap.effects import to_json
from neuroray.platform.brain_age_gap.evidence import CaseStudy, GapStudy
from neuroray.platform.brain_age_gap.findings import tell_headline
from neuroray.platform.brain_age_gap.page import describe_gap_page
from neuroray.platform.brain_age_gap.recovery import Recovery, describe_recovery
from neuroray.platform.brain_age_gap.slopes import Slopes
from neuroray.platform.evaluate.templates import open_template
from neuroray.storage.whole_file import replace_file

FORMAT = 1
_COLUMNS = ("fold", "scan_id", "subject", "session", "family_id", "age_years", "sex", "site", "group", "is_control")


def write_gap_report(
    study: GapStudy, out: Path, *, provenance: Mapping[str, Any], recovery: Recovery | None = None
) -> dict[str, Path]:
    """Writes `gap.csv`, `gap.json` and `gap.html`.

    Ids stand in `gap.csv` alone; the other two may be handed on.

    Returns:
        The three paths by name.
    """
    described = describe_gap_study(study) | {"provenance": dict(provenance)}
    if recovery is not None:
        described["recovery"] = to_json(describe_recovery(recovery))
    page = describe_gap_page(study, provenance, recovery)
    texts = {
        "gap.csv": _tabulate(study),
        "gap.json": json.dumps(described, indent=2, allow_nan=False) + "\n",
        "gap.html": open_template("neuroray.platform.brain_age_gap", "gap.html.j2").render(page=page),
    }
    paths = {name: out / name for name in texts}
    for name, text in texts.items():
        replace_file(paths[name], text.encode())
    return paths


def describe_gap_study(study: GapStudy) -> dict[str, Any]:
    """Every number of the page, raw ones first; nobody's name."""
    return {
        "format": FORMAT,
        "headline": tell_headline(study),
        "num_people": study.num_people,
        "num_scans": len(study.answers),
        "raw": {name: found.to_json() for name, found in study.raw.items()},
        "raw_of_controls": {name: found.to_json() for name, found in study.raw_of_controls.items()} or None,
        "is_useless": study.is_useless,
        "controls": list(study.controls),
        "correction": {
            "fitted_on": study.fit_on,
            "folds": [{"fold": fold} | to_json(dataclasses.asdict(each)) for fold, each in study.corrections.items()],
        },
        "after_correction": {
            "note": "these say next to nothing of the model: the correction puts the true age in",
            **{kind: {name: each.to_json() for name, each in found.items()} for kind, found in study.after.items()},
        },
        "cases": [_describe_case(case) for case in study.cases],
        "slopes_per_year": {kind: _describe_slopes(slopes) for kind, slopes in study.slopes.items()},
        "interval": {
            "level": 0.95,
            "kind": "percentile bootstrap over families or people; Wald for odds ratios and the mixed model",
            "num_resamples": study.num_resamples,
            "seed": study.seed,
        },
        "warnings": list(study.warnings),
    }


def _describe_case(case: CaseStudy) -> dict[str, Any]:
    found = case.association
    comparison = None if case.comparison is None else _fields(case.comparison)
    return {
        "gap": case.kind,
        "case": case.case,
        "comparison": comparison,
        "logistic": _fields(found),
        "threshold_years": to_json(case.threshold_years),
        "tables": [_fields(table) for table in case.tables],
    }


def _describe_slopes(slopes: Slopes) -> dict[str, Any]:
    difference = None
    if slopes.difference is not None:
        difference = {"mean": slopes.difference[0].to_json(), "mixed": slopes.difference[1].to_json()}
    return {
        "groups": [_fields(each) for each in slopes.groups],
        "cases_less_controls": difference,
        "notes": list(slopes.notes),
    }


def _fields(value: Any) -> dict[str, Any]:
    """Field by field and not by `asdict`, which would take effects apart before they can tell what is no number."""
    return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _tabulate(study: GapStudy) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = [(f"predicted_{kind}_years", f"gap_{kind}_years") for kind in GAP_KINDS]
    writer.writerow([*_COLUMNS, *(name for pair in kinds for name in pair)])
    gaps = {kind: study.gaps(kind) for kind in GAP_KINDS}
    for index, row in enumerate(study.answers):
        is_control = int(row.group in study.controls) if study.controls and row.group else ""
        person = [row.fold, row.scan_id, row.subject, row.session or "", row.family_id or "", row.age_years]
        labels = [row.sex or "", row.site or "", row.group or "", is_control]
        numbers = [value for kind in GAP_KINDS for value in (study.corrected[kind][index], gaps[kind][index])]
        writer.writerow([*person, *labels, *(f"{value:.6f}" if np.isfinite(value) else "" for value in numbers)])
    return text.getvalue()

"""Tables of the page of brains at other ages, ready to print: images, regions, ages read, learning from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuroray.platform.evaluate import ageing_findings as findings
from neuroray.platform.evaluate.ageing_evidence import (
    COPY,
    LONG_GAP_YEARS,
    MODEL,
    REAL,
    REAL_LABEL,
    AgeingEvaluation,
    RowsFound,
)
from neuroray.platform.evaluate.generated_ages import TARGET
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.metrics import Metric
from neuroray.platform.evaluate.perceptual import PERCEPTUAL

NOTHING = "\N{EN DASH}"
_CHANGE = {"pearson_r": "r", "slope": "Slope", "mae": "Error of change (ml)"}
_READ = {"mae": "Error (years)", "bias": "Bias (years)", "slope": "Slope", "years_per_year": "Years read per year"}


def tell_value(found: Estimate, digits: int = 2) -> str:
    """A number; a dash for none."""
    return f"{found.value:.{digits}f}" if np.isfinite(found.value) else NOTHING


def tell_ends(found: Estimate, digits: int = 2) -> str:
    """Its interval; nothing for none, and where every resample gave the same, which bounds nothing."""
    has_ends = np.isfinite(found.low) and found.has_width
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}" if has_ends else ""


def tabulate_images(evaluation: AgeingEvaluation) -> list[dict[str, Any]]:
    """A table for all pairs, and one for each part by gap."""
    parts: dict[str, RowsFound] = {"all pairs": evaluation.whole, **evaluation.by_gap}
    metrics = evaluation.metrics
    return [
        {
            "caption": f"{name}: pairs {found.num_pairs}, people {found.num_people}",
            "head": [f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}" for metric in metrics.values()],
            "rows": [
                (label, [_cell(found, row, name, metric) for name, metric in metrics.items()])
                for row, label in evaluation.row_labels.items()
            ],
        }
        for name, found in parts.items()
    ]


def tabulate_regions(evaluation: AgeingEvaluation) -> list[dict[str, Any]]:
    """A table for each region: its change and its volume, by row."""
    tables = []
    for region, rows in evaluation.regions.items():
        told = []
        for row, label in ({REAL: REAL_LABEL} | dict(evaluation.row_labels)).items():
            if row not in rows:
                continue
            one = rows[row]
            cells = [(tell_value(one.change[name]), tell_ends(one.change[name])) for name in _CHANGE]
            cells.append((tell_value(one.volume_error_ml), tell_ends(one.volume_error_ml)))
            less = [one.less_copy_ml, one.less_copy_long_ml] if row != COPY else [None, None]
            cells += [(NOTHING, "") if each is None else (tell_value(each), tell_ends(each)) for each in less]
            told.append((label, cells))
        head = [*_CHANGE.values(), "Error of volume (ml)", "Less the copy's", f"From {LONG_GAP_YEARS:g} years on"]
        tables.append({"caption": f"{region.capitalize()}, {rows[MODEL].num_pairs} pairs", "head": head, "rows": told})
    return tables


def tabulate_read(evaluation: AgeingEvaluation) -> dict[str, Any] | None:
    """Ages that another model reads, by row; None where there is no such model."""
    read = evaluation.read_age
    if read is None:
        return None
    labels = {TARGET: "The real follow-up", **evaluation.row_labels}
    rows = [
        (label, [(tell_value(read.rows[row][name]), tell_ends(read.rows[row][name])) for name in _READ])
        for row, label in labels.items()
    ]
    slope = evaluation.sweep.read_slope
    sweep = f" Over the ages told to one person it reads {tell_value(slope)} years a year." if slope else ""
    return {"reader": f"Read by: {read.label}.{sweep}", "head": list(_READ.values()), "rows": rows}


def tabulate_downstream(evaluation: AgeingEvaluation) -> dict[str, Any] | None:
    """Age learned from real scans, and from real and generated ones; None where it was not asked for."""
    found = evaluation.downstream
    if found is None:
        return None
    labels = {
        "real": f"{found.num_real} real scans",
        "real_and_generated": f"the same and {found.num_generated} generated brains",
    }
    rows = [
        (label, [(tell_value(found.metrics[row][name]), tell_ends(found.metrics[row][name])) for name in ("mae", "r2")])
        for row, label in labels.items()
    ]
    less = found.less_error
    return {
        "text": f"Age told of {found.num_judged} held-out real scans by a regression on coarse voxels. With generated "
        f"brains the error is {less.value:+.2f} years larger ({less.low:+.2f} to {less.high:+.2f}).",
        "head": ["Error (years)", "R\N{SUPERSCRIPT TWO}"],
        "rows": rows,
    }


def _cell(found: RowsFound, row: str, name: str, metric: Metric) -> dict[str, str]:
    """A value with its interval, and what it is to the copy."""
    value = found.metrics[row][name]
    digits = 2 if name.startswith("psnr") else 4 if name.startswith("l1") or name == PERCEPTUAL else 3
    standing = findings.compare_with_copy(found, row, name, metric.better) if row != COPY else ""
    return {"value": tell_value(value, digits), "ends": tell_ends(value, digits), "standing": standing}

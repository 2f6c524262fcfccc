"""The evidence on a tokenizer as files: report.html, report.json, scans.csv."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.evaluate.ageing_page_tables import tell_ends, tell_value
from neuroray.platform.evaluate.figures import draw_learning_curves
from neuroray.platform.evaluate.image_quality import SSIM_STATED
from neuroray.platform.evaluate.page import Numbering, PageFigure, describe_provenance
from neuroray.platform.evaluate.perceptual import PERCEPTUAL, tell_perceptual
from neuroray.platform.evaluate.report_parts import FORMAT, describe_folds, describe_interval, describe_metrics
from neuroray.platform.evaluate.templates import open_template
from neuroray.platform.evaluate.tokenizer_protocol import SCAN_METRICS, TokenizerEvaluation

_SIDES = {"train": "trained on", "test": "judged on"}


def write_tokenizer_report(evaluation: TokenizerEvaluation, out: Path) -> dict[str, Path]:
    """Writes `scans.csv`, `report.json` and `report.html`; ids stand in the first alone.

    Returns:
        The paths by name.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = {name: out / name for name in ("scans.csv", "report.json", "report.html")}
    with paths["scans.csv"].open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["fold", "scan_id", "subject", "age_years", *evaluation.metrics])
        for one in sorted(evaluation.judged, key=lambda one: (one.fold, one.record.scan_id)):
            values = [f"{one.scores[name]:.9g}" for name in evaluation.metrics]
            writer.writerow([one.fold, one.record.scan_id, one.record.subject, one.record.age_years, *values])
    described = describe_tokenizer(evaluation)
    paths["report.json"].write_text(json.dumps(described, indent=2, allow_nan=False) + "\n")
    template = open_template("neuroray.platform.evaluate", "tokenizer.html.j2")
    paths["report.html"].write_text(template.render(page=_describe_page(evaluation)))
    return paths


def describe_tokenizer(evaluation: TokenizerEvaluation) -> dict[str, Any]:
    """What `report.json` holds; nobody's name."""
    return {
        "format": FORMAT,
        "model_name": "neuroar_vqvae",
        "modality": evaluation.modality,
        "classes": [],
        "target": "",
        "num_people": evaluation.num_people,
        "num_scans": len(evaluation.judged),
        "metrics": describe_metrics(SCAN_METRICS, evaluation.metrics),
        "data_range": "values in [0, 1]: the brain's percentiles 0.5 and 99.5 of each scan",
        "ssim": SSIM_STATED,
        "perceptual": evaluation.perceptual.to_json() if evaluation.perceptual else None,
        "usage": {side: dataclasses.asdict(found) for side, found in evaluation.usage.items()},
        "interval": describe_interval(
            "percentile bootstrap over families or people",
            num_resamples=evaluation.num_resamples,
            seed=evaluation.seed,
        ),
        "folds": describe_folds(evaluation.folds),
        "warnings": list(evaluation.warnings),
        "provenance": dict(evaluation.provenance),
    }


def _describe_page(evaluation: TokenizerEvaluation) -> dict[str, Any]:
    numbering, provenance, psnr = Numbering(), evaluation.provenance, evaluation.metrics["psnr_brain"]
    picture = evaluation.picture
    return {
        "kicker": "Evaluation of neuroar_vqvae",
        "headline": f"Held-out brains come through the tokenizer with {psnr.value:.1f} dB",
        "lead": f"On {len(evaluation.judged)} scans of {evaluation.num_people} held-out people the reconstruction has "
        f"{psnr.value:.2f} dB in the brain, with a 95 % interval of {tell_ends(psnr)}. What is lost here, no model of "
        "its tokens can tell.",
        "facts": [("Run", provenance["run_name"]), ("Catalogue version", provenance["catalogue_version"])],
        "warnings": evaluation.warnings,
        "metrics": [
            (f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}", _tell(evaluation, name))
            for name, metric in SCAN_METRICS.items()
            if name in evaluation.metrics
        ],
        "usage": [_tabulate(evaluation, side) for side in evaluation.usage],
        "picture": None if picture is None else numbering.picture(picture.png, picture.title, picture.caption),
        "learning": _draw_learning(evaluation, numbering),
        "methods": [
            f"PSNR has a data range of 1. SSIM: {SSIM_STATED}. Intervals are over families or people, "
            f"{evaluation.num_resamples} resamples.",
            tell_perceptual(evaluation.perceptual),
            "Perplexity is exp of the entropy of a scale's codes over all scans of a side together; as many "
            "positions as there are bound it, and so does the codebook.",
        ],
        "provenance": describe_provenance(evaluation),
        "footer": f"Made by neuroray {provenance['versions']['neuroray']} on {provenance['made_at']}. "
        "No diagnostic device: for research use.",
    }


def _tell(evaluation: TokenizerEvaluation, name: str) -> tuple[str, str]:
    found, digits = evaluation.metrics[name], 4 if name.startswith("l1") or name == PERCEPTUAL else 3
    return tell_value(found, digits), tell_ends(found, digits)


def _tabulate(evaluation: TokenizerEvaluation, side: str) -> dict[str, Any]:
    found = evaluation.usage[side]
    return {
        "caption": f"The {found.num_scans} scans {_SIDES[side]} use {found.used:.0%} of {found.num_codes} codes",
        "rows": [
            (number, one.num_positions, f"{one.used:.0%}", f"{one.perplexity:.1f}", one.most)
            for number, one in enumerate(found.scales, start=1)
        ],
    }


def _draw_learning(evaluation: TokenizerEvaluation, numbering: Numbering) -> PageFigure | None:
    curves = [fold.curves for fold in evaluation.folds if any(map(len, fold.curves.values()))]
    if not curves:
        return None
    best = max(np.max([value for _, value in fold["val_score"]], initial=0.0) for fold in curves)
    return numbering.plot(
        draw_learning_curves(curves, score="PSNR in the brain (dB)"),
        "learning",
        f"On validation people it reached {best:.1f} dB",
        "Loss, and PSNR in the brain of validation people; the ring marks the weights that were kept.",
        wide=True,
    )

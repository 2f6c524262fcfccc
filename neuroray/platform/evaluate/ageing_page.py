"""What stands on the page of brains at other ages: tables ready to print, figures with titles that tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuroray.platform.baselines.latent_diffusion import DIFFUSION
from neuroray.platform.evaluate import ageing_figures as figures
from neuroray.platform.evaluate import ageing_findings as findings
from neuroray.platform.evaluate.ageing_evidence import (
    CEILING,
    COPY,
    LONG_GAP_YEARS,
    MODEL,
    PAIR_METRICS,
    AgeingEvaluation,
    RowsFound,
    column,
)
from neuroray.platform.evaluate.ageing_sweep import NUM_AGES
from neuroray.platform.evaluate.figures import draw_learning_curves
from neuroray.platform.evaluate.generated_ages import TARGET
from neuroray.platform.evaluate.image_quality import SSIM_STATED
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.page import Numbering, PageFigure, describe_provenance
from neuroray.platform.evaluate.templates import open_template

_SHORT = {
    COPY: "copy",
    CEILING: "ceiling",
    MODEL: "model",
    "population": "population",
    "latent": "linear",
    "diffusion": "diffusion",
}
_CHANGE = {"pearson_r": "r", "slope": "Slope", "mae": "Error of change (ml)"}
_READ = {"mae": "Error (years)", "bias": "Bias (years)", "slope": "Slope", "years_per_year": "Years read per year"}
_NOTHING = "\N{EN DASH}"


def render_ageing_page(evaluation: AgeingEvaluation) -> str:
    """The page as text."""
    template = open_template("neuroray.platform.evaluate", "ageing.html.j2")
    return template.render(page=describe_ageing_page(evaluation))


def describe_ageing_page(evaluation: AgeingEvaluation) -> dict[str, Any]:
    """All values of the template."""
    numbering, provenance = Numbering(), evaluation.provenance
    return {
        "kicker": f"Evaluation of {provenance.get('model_title', evaluation.model_name)}",
        "headline": findings.tell_ageing_headline(evaluation),
        "lead": _lead(evaluation),
        "facts": [
            ("Pairs", len(evaluation.judged)),
            ("People", evaluation.num_people),
            ("Told", "younger brains" if evaluation.backward else "older brains"),
            ("Run", provenance["run_name"]),
            ("Catalogue version", provenance["catalogue_version"]),
            ("Made", provenance["made_at"]),
        ],
        "key": _key_numbers(evaluation),
        "warnings": evaluation.warnings,
        "images": _tabulate_images(evaluation),
        "gaps": _draw_gaps(evaluation, numbering),
        "pictures": [numbering.picture(one.png, one.title, one.caption) for one in evaluation.pictures],
        "regions": _tabulate_regions(evaluation),
        "region_text": f"Volumes in ml of the person's own space: {evaluation.region_method}.",
        "changes": _draw_changes(evaluation, numbering),
        "sweep": _draw_sweep(evaluation, numbering),
        "sweep_text": _tell_sweep(evaluation),
        "read": _tabulate_read(evaluation),
        "read_figures": _draw_read(evaluation, numbering),
        "downstream": _tabulate_downstream(evaluation),
        "learning": _draw_learning(evaluation, numbering),
        "sides": [
            {"fold": fold.index, **{side: (fold.num_subjects[side], fold.counts[side]["all"]) for side in fold.counts}}
            for fold in evaluation.folds
        ],
        "methods": _methods(evaluation),
        "provenance": describe_provenance(evaluation),
        "footer": f"Made by neuroray {provenance['versions']['neuroray']} on {provenance['made_at']}. "
        "No diagnostic device: for research use.",
    }


def tell_value(found: Estimate, digits: int = 2) -> str:
    """A number; a dash for none."""
    return f"{found.value:.{digits}f}" if np.isfinite(found.value) else _NOTHING


def tell_ends(found: Estimate, digits: int = 2) -> str:
    """Its interval; nothing for none."""
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}" if np.isfinite(found.low) else ""


def _lead(evaluation: AgeingEvaluation) -> str:
    metrics = evaluation.whole.metrics
    copy, ceiling, made = (tell_value(metrics[row]["psnr_brain"]) for row in (COPY, CEILING, MODEL))
    gain = evaluation.whole.gains[MODEL]["psnr_brain"]
    return (
        f"Over {len(evaluation.judged)} pairs of visits of {evaluation.num_people} held-out people the model draws "
        f"the other visit with {made} dB in the brain. Copying the given scan reaches {copy} dB, and the true other "
        f"visit through the tokenizer, which no answer of tokens alone can pass by much, {ceiling} dB. Pair by pair "
        f"the model has {gain.value:+.2f} dB over the copy, with a 95 % interval of {gain.low:+.2f} to "
        f"{gain.high:+.2f}."
    )


def _key_numbers(evaluation: AgeingEvaluation) -> list[dict[str, str]]:
    metrics, gains = evaluation.whole.metrics, evaluation.whole.gains[MODEL]
    copy, ceiling = (tell_value(metrics[row]["psnr_brain"], 1) for row in (COPY, CEILING))
    change = evaluation.regions.get(evaluation.main_region, {}).get(MODEL)
    rising, l1 = evaluation.sweep.rising_share, metrics[MODEL]["l1_brain"]
    return [
        {
            "label": "PSNR in the brain (dB)",
            "value": tell_value(metrics[MODEL]["psnr_brain"], 1),
            "note": f"copy {copy} · ceiling {ceiling}",
        },
        {
            "label": "L1 in the brain",
            "value": tell_value(l1, 4),
            "note": f"less copy {gains['l1_brain'].low:+.4f} to {gains['l1_brain'].high:+.4f}",
        },
        {
            "label": f"Change of {evaluation.main_region}, r",
            "value": _NOTHING if change is None else tell_value(change.change["pearson_r"]),
            "note": "not measured" if change is None else tell_ends(change.change["pearson_r"]),
        },
        {
            "label": f"{evaluation.main_region.capitalize()} rise at every step",
            "value": _NOTHING if rising is None else f"{rising.value:.0%}",
            "note": "nobody" if rising is None else f"of people · {rising.low:.0%} to {rising.high:.0%}",
        },
    ]


def _tabulate_images(evaluation: AgeingEvaluation) -> list[dict[str, Any]]:
    """A table for all pairs, and one for each part by gap."""
    parts: dict[str, RowsFound] = {"all pairs": evaluation.whole, **evaluation.by_gap}
    return [
        {
            "caption": f"{name}: pairs {found.num_pairs}, people {found.num_people}",
            "head": [f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}" for metric in PAIR_METRICS.values()],
            "rows": [
                (label, [_cell(found, row, metric) for metric in PAIR_METRICS])
                for row, label in evaluation.row_labels.items()
            ],
        }
        for name, found in parts.items()
    ]


def _cell(found: RowsFound, row: str, metric: str) -> dict[str, str]:
    """A value with its interval, and what it is to the copy."""
    value = found.metrics[row][metric]
    digits = 2 if metric.startswith("psnr") else 4 if metric.startswith("l1") else 3
    gain = found.gains[row][metric] if row != COPY else None
    standing = ""
    if gain is not None and np.isfinite(gain.value) and gain.against(0.0) != "includes":
        standing = "better" if findings.is_better(gain, PAIR_METRICS[metric].better) else "worse"
    return {"value": tell_value(value, digits), "ends": tell_ends(value, digits), "standing": standing}


def _draw_gaps(evaluation: AgeingEvaluation, numbering: Numbering) -> list[PageFigure]:
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


def _tabulate_regions(evaluation: AgeingEvaluation) -> list[dict[str, Any]]:
    tables = []
    for region, rows in evaluation.regions.items():
        told = []
        for row, label in evaluation.row_labels.items():
            one = rows[row]
            cells = [(tell_value(one.change[name]), tell_ends(one.change[name])) for name in _CHANGE]
            cells.append((tell_value(one.volume_error_ml), tell_ends(one.volume_error_ml)))
            less = [one.less_copy_ml, one.less_copy_long_ml] if row != COPY else [None, None]
            cells += [(_NOTHING, "") if each is None else (tell_value(each), tell_ends(each)) for each in less]
            told.append((label, cells))
        head = [*_CHANGE.values(), "Error of volume (ml)", "Less the copy's", f"From {LONG_GAP_YEARS:g} years on"]
        tables.append({"caption": f"{region.capitalize()}, {rows[MODEL].num_pairs} pairs", "head": head, "rows": told})
    return tables


def _draw_changes(evaluation: AgeingEvaluation, numbering: Numbering) -> list[PageFigure]:
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


def _changes(evaluation: AgeingEvaluation, row: str, region: str) -> tuple[np.ndarray, np.ndarray]:
    both = np.array([(one.true_change_ml(region), one.changes_ml[row][region]) for one in evaluation.judged])
    known = np.isfinite(both).all(axis=1)
    return both[known, 0], both[known, 1]


def _draw_sweep(evaluation: AgeingEvaluation, numbering: Numbering) -> PageFigure | None:
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


def _tell_sweep(evaluation: AgeingEvaluation) -> str:
    sweep, region = evaluation.sweep, evaluation.main_region
    if not sweep.people:
        return "All people judged are at the end of the training's ages."
    slopes, same = sweep.slope_ml, sweep.same_age
    left = (
        f" {sweep.num_left_out} people at the end of the training's ages are not in it." if sweep.num_left_out else ""
    )
    return (
        f"Over the ages {region} change by {tell_value(slopes['model'])} ml a year ({tell_ends(slopes['model'])}); "
        f"between real visits by {tell_value(slopes['real'])} ({tell_ends(slopes['real'])}). Asked for the age of the "
        f"scan itself, the model is {tell_value(same['l1'], 4)} from where its changes start, in the mean over the "
        f"brain, where the tokenizer's reconstruction is {tell_value(same['l1_reconstruction'], 4)} from the scan; "
        f"the first is within the second in {same['within'].value:.0%} of people.{left}"
    )


def _tabulate_read(evaluation: AgeingEvaluation) -> dict[str, Any] | None:
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


def _draw_read(evaluation: AgeingEvaluation, numbering: Numbering) -> list[PageFigure]:
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


def _tabulate_downstream(evaluation: AgeingEvaluation) -> dict[str, Any] | None:
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


def _draw_learning(evaluation: AgeingEvaluation, numbering: Numbering) -> PageFigure | None:
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


def _methods(evaluation: AgeingEvaluation) -> list[str]:
    return [
        "Values are those of the brain between its percentiles 0.5 and 99.5, in [0, 1]; what lies outside the brain "
        f"is 0. PSNR has a data range of 1. SSIM: {SSIM_STATED}; in the brain the mean of its map over the "
        "follow-up's brain. Whole-volume figures are mostly background, on which all agree.",
        f"Intervals are percentiles of {evaluation.num_resamples} bootstrap resamples (seed {evaluation.seed}) over "
        "families, or people without a family id. The models are fixed: what another training would give is not in "
        "the interval.",
        "Changed tokens are those in which the follow-up's tokens differ from the previous scan's: copying has none "
        "right. Ceiling is what the tokenizer makes of the true follow-up; rows without tokens have no such figures.",
        "Predicted change is counted from where the same row starts: for the model the tokenizer's reconstruction, "
        "so that what the tokenizer blurs is in both, or the scan, where the run's recipe keeps its detail. The "
        "error of a volume is that of the volume as drawn.",
        "The model is asked as “neuroray generate” asks it by default: it draws nothing, so it tells the same each "
        "time.",
        "The population's row is a regression of each voxel's change on the gap and on the gap times the age, "
        "without a constant, over the training people's pairs, added to the scan. The linear row adds the training "
        "people's rate in the latent space before quantisation to the person's own latent, and decodes it (after "
        "MRExtrap).",
        f"Ages of a sweep are {NUM_AGES}, evenly from that of the scan to as far as gaps and ages of the training "
        "reach. Rising at every step means that each is larger than the one before.",
        "Held-out people come from the same store as the others: another site, another scanner or other "
        "preprocessing is not shown here.",
    ]


def _tell_diffusion(evaluation: AgeingEvaluation) -> list[str]:
    if DIFFUSION not in evaluation.row_labels:
        return []
    return [
        "The diffusion is small: a few convolutions on the latent grid, trained for a minute on the training "
        "people's pairs, that draw the change of the latent from noise, on the scan's latent and both ages; four "
        "draws are averaged."
    ]

"""The comparison as a table: for people, for spreadsheets, and for the next program."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.baselines.judging import Answers, Comparison, Difference
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.metrics import REGRESSION_METRICS, Metric, metric_table
from neuroray.storage.whole_file import replace_file

FORMAT = 1
_SHOWN = {
    "classification": ("auc", "balanced_accuracy", "accuracy", "brier"),
    "regression": ("pearson_r", "r2", "mse", "mae"),
    "volumes": ("mae", "mae_over_sd", "rmse", "pearson_r", "spearman_rho", "r2"),
}


def write_comparison(comparison: Comparison, out: Path, *, facts: Mapping[str, Any]) -> dict[str, Path]:
    """Writes `baselines.json`, `baselines.csv`, `baselines.md` and `baselines_predictions.csv`.

    Scan ids stand in the last alone; the others may be handed on.

    Returns:
        The paths by name.
    """
    texts = {
        "baselines.json": json.dumps(describe_comparison(comparison) | dict(facts), indent=2, allow_nan=False) + "\n",
        "baselines.csv": _tabulate(comparison),
        "baselines.md": render_markdown(comparison),
        "baselines_predictions.csv": _list_predictions(comparison),
    }
    paths = {name: out / name for name in texts}
    for name, text in texts.items():
        replace_file(paths[name], text.encode())
    return paths


def describe_comparison(comparison: Comparison) -> dict[str, Any]:
    """Every number, and how it came about; nobody's name."""
    question = comparison.question
    return {
        "format": FORMAT,
        "target": question.target,
        "kind": question.kind,
        "classes": list(question.classes),
        "modality": question.modality,
        "is_shuffled": question.is_shuffled,
        "num_scans": len(comparison.judged),
        "num_groups": len({question.groups[scan_id] for _, scan_id in comparison.judged}),
        "num_left_out": len(question.left_out),
        "folds": [
            {"fold": index, "num_regions": num_regions, "counts": split.counts(), "split": split.config.to_json()}
            for (index, split), num_regions in itertools.zip_longest(question.folds, comparison.num_regions)
        ],
        "config": comparison.config.to_json(),
        "interval": "95 % percentile bootstrap over families or people, within classes",
        "answers": [
            {
                "name": answers.name,
                "label": answers.label,
                "is_model": answers.is_model,
                "metrics": {name: found.to_json() for name, found in answers.metrics.items()},
            }
            for answers in comparison.answers
        ],
        "model_minus_baseline": [_describe_difference(each) for each in comparison.differences],
        "predictor_minus_mean": [_describe_difference(each) for each in comparison.gains],
        "learned_from": question.learned_from,
        "inputs": list(comparison.inputs),
        "skipped": dict(comparison.skipped),
    }


def _describe_difference(each: Difference) -> dict[str, Any]:
    p_value = each.p_value if np.isfinite(each.p_value) else None
    facts = {"name": each.name, "baseline": each.baseline, "metric": each.metric}
    return facts | each.found.to_json() | {"p_value": p_value}


def render_markdown(comparison: Comparison) -> str:
    """The table, the paired differences, and what a reader must know of both."""
    question, metrics = comparison.question, metrics_of(comparison)
    shown = _SHOWN[question.kind if comparison.num_regions else "volumes"]
    seen = "runs" if comparison.num_regions else "volumes"
    lines = [f"# {question.target} from {seen}: {len(comparison.judged)} held-out scans", ""]
    if question.is_shuffled:
        lines += ["Labels were shuffled among people: a control, in which nothing can be learned.", ""]
    lines += [f"| predictor | {' | '.join(_head(metrics[name]) for name in shown)} |", "|---" * (len(shown) + 1) + "|"]
    lines += [
        f"| {_name(answers)} | {' | '.join(_tell(answers.metrics[name]) for name in shown)} |"
        for answers in comparison.answers
    ]
    for title, corner, differences in (
        ("Model minus baseline, on the same resamples (two-sided p):", "against", comparison.differences),
        ("Each minus saying the mean, on the same resamples (two-sided p):", "predictor", comparison.gains),
    ):
        if differences:
            lines += ["", title, "", f"| {corner} | {' | '.join(metrics[name].label for name in shown)} |"]
            lines += ["|---" * (len(shown) + 1) + "|", *_tell_differences(comparison, differences, shown)]
    lines += ["", *_notes(comparison)]
    return "\n".join(lines) + "\n"


def metrics_of(comparison: Comparison) -> Mapping[str, Metric]:
    """The metrics that the comparison holds."""
    question = comparison.question
    return REGRESSION_METRICS if question.kind == "regression" else metric_table(len(question.classes))


def _head(metric: Metric) -> str:
    return f"{metric.label} ({'higher' if metric.better == 'higher' else 'lower'} is better)"


def _name(answers: Answers) -> str:
    return f"**{answers.label}**" if answers.is_model else answers.label


def _tell(found: Estimate) -> str:
    if not np.isfinite(found.value):
        return "undefined"
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _tell_differences(comparison: Comparison, differences: Sequence[Difference], shown: tuple[str, ...]) -> list[str]:
    """One row a baseline that the model is held against, or a predictor that is held against the mean."""
    label = {answers.name: answers.label for answers in comparison.answers}
    of = {
        id(each): each.name if each.baseline == "mean" and each.name != "model" else each.baseline
        for each in differences
    }
    found = {(of[id(each)], each.metric): each for each in differences}
    rows = []
    for name in label:
        if (name, shown[0]) in found:
            cells = [f"{_tell(found[name, metric].found)} (p {found[name, metric].p_value:.2g})" for metric in shown]
            rows.append(f"| {label[name]} | {' | '.join(cells)} |")
    return rows


def _notes(comparison: Comparison) -> list[str]:
    question, config = comparison.question, comparison.config
    num_groups = len({question.groups[scan_id] for _, scan_id in comparison.judged})
    notes = [
        f"- {len(question.folds)} folds, test people pooled: {len(comparison.judged)} scans of {num_groups} families "
        "or people. Intervals: 95 % percentile bootstrap over these, "
        f"{config.num_resamples} resamples, seed {config.seed}.",
        *(f"- {sentence}" for sentence in comparison.inputs),
    ]
    if question.kind == "regression":
        notes.append("- Measures are taken from the training mean of their fold before folds are pooled.")
    notes += [f"- {name} was not run: {reason}." for name, reason in comparison.skipped.items()]
    if question.learned_from:
        notes.append(f"- Fitted on people with {question.learned_from} alone; everybody was judged.")
    if question.left_out:
        by_site = question.folds[0][1].config.hold_out == "site"
        why = (
            "without the target or a site, or of people who were scanned at the first site too,"
            if by_site
            else "without the target"
        )
        notes.append(f"- {len(question.left_out)} scans {why} were left out.")
    return notes


def _tabulate(comparison: Comparison) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["predictor", "is_model", "metric", "value", "low", "high", "better"])
    metrics = metrics_of(comparison)
    for answers in comparison.answers:
        for name, found in answers.metrics.items():
            numbers = [f"{value:.9g}" if np.isfinite(value) else "" for value in (found.value, found.low, found.high)]
            writer.writerow([answers.name, int(answers.is_model), name, *numbers, metrics[name].better])
    return text.getvalue()


def _list_predictions(comparison: Comparison) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    question = comparison.question
    outputs = [f"probability_{name}" for name in question.classes] or ["predicted"]
    writer.writerow(["predictor", "fold", "scan_id", "truth", *outputs])
    for answers in comparison.answers:
        for (fold, scan_id), truth, told in zip(comparison.judged, comparison.truths, answers.predictions, strict=True):
            named = question.classes[int(truth)] if question.classes else f"{truth:.9g}"
            writer.writerow([answers.name, fold, scan_id, named, *(f"{value:.9g}" for value in told)])
    return text.getvalue()

"""What stands on the page: figures with titles that tell, tables ready to print, sentences on method and origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from neuroray.platform.evaluate import figures, findings
from neuroray.platform.evaluate.evidence import AttentionProfile, Evaluation, Fold
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.metrics import CALIBRATION_BINS, REGRESSION_METRICS, Metric, metric_table
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.style import AXIS_LABELS, png_address, to_svg


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFigure:
    """A figure as the template takes it: an SVG, or the address of a PNG."""

    number: int
    title: str
    caption: str
    svg: str = ""
    png: str = ""
    wide: bool = False


class Sourced(Protocol):
    """An evaluation, as far as it says where it came from."""

    @property
    def folds(self) -> Sequence[Fold]:
        """With their facts."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Store, versions, commands."""
        ...


def describe_page(evaluation: Evaluation, picture: tuple[bytes, str, str] | None) -> dict[str, Any]:
    """All values of the template.

    Args:
        evaluation: What was found.
        picture: PNG, title and caption of an explained scan.
    """
    numbering = Numbering()
    provenance = evaluation.provenance
    return {
        "kicker": f"Evaluation of {provenance.get('model_title', evaluation.model_name)}",
        "headline": findings.tell_headline(evaluation),
        "lead": _lead(evaluation),
        "facts": describe_facts(evaluation),
        "key": _key_numbers(evaluation),
        "warnings": evaluation.warnings,
        "answer_text": _answer_text(evaluation),
        "answers": _answers(evaluation, numbering),
        "metrics": _metric_rows(evaluation),
        "fold_names": list_fold_names(evaluation),
        "seeds": describe_seeds(evaluation),
        "strata": _strata(evaluation, numbering),
        "strata_small": _small_strata(evaluation),
        "looks": _looks(evaluation, picture, numbering),
        "learning": _learning(evaluation, numbering),
        "classes": evaluation.classes,
        "sides": _sides(evaluation),
        "checks": describe_checks(evaluation),
        "methods": _methods(evaluation),
        "provenance": describe_provenance(evaluation),
        "footer": f"Made by neuroray {provenance['versions']['neuroray']} on {provenance['made_at']}. "
        "No diagnostic device: for research use.",
    }


class Numbering:
    """Makes figures of the page, and counts the figures that are really there."""

    def __init__(self) -> None:
        self._last = 0

    def plot(self, figure: Figure, name: str, title: str, caption: str, *, wide: bool = False) -> PageFigure:
        """The next figure, as SVG."""
        self._last += 1
        svg = to_svg(figure, name)
        return PageFigure(number=self._last, title=title, caption=caption, svg=svg, wide=wide)

    def picture(self, png: bytes, title: str, caption: str) -> PageFigure:
        """The next figure, a picture."""
        self._last += 1
        return PageFigure(number=self._last, title=title, caption=caption, png=png_address(png), wide=True)


def _lead(evaluation: Evaluation) -> str:
    auc, classes = evaluation.metrics["auc"], evaluation.classes
    counts = np.bincount(evaluation.labels, minlength=len(classes))
    who = " and ".join(f"{count} of class “{name}”" for name, count in zip(classes, counts, strict=True))
    folds = f", pooled over {len(evaluation.folds)} folds" if len(evaluation.folds) > 1 else ""
    return (
        f"On {len(evaluation.judged)} scans of {evaluation.num_people} held-out people ({who}{folds}) the area under "
        f"the ROC curve is {findings.tell_number(auc.value)}, with a 95 % interval of {findings.tell_interval(auc)}; "
        f"guessing reaches 0.50."
    )


def describe_facts(evaluation: Evaluation | NumberEvaluation) -> list[tuple[str, Any]]:
    """The line under the headline."""
    provenance = evaluation.provenance
    return [
        ("Target", evaluation.target),
        ("Modality", evaluation.modality),
        ("Run", provenance["run_name"]),
        ("Catalogue version", provenance["catalogue_version"]),
        ("Made", provenance["made_at"]),
    ]


def _key_numbers(evaluation: Evaluation) -> list[dict[str, str]]:
    table = metric_table(len(evaluation.classes))
    names = ("auc", "balanced_accuracy", "brier", "calibration_error")
    return [
        {
            "label": table[name].label,
            "value": findings.tell_number(evaluation.metrics[name].value),
            "note": findings.tell_interval(evaluation.metrics[name]) + _direction(table[name]),
        }
        for name in names
    ]


def _direction(metric: Metric) -> str:
    if metric.chance is not None:
        return f" · guessing {metric.chance:.2f}"
    return " · lower is better" if metric.better == "lower" else ""


def _answer_text(evaluation: Evaluation) -> str:
    if evaluation.positive is None:
        return "Each class is judged against all others; the AUC is their plain mean."
    return (
        f"“{evaluation.positive}” is the positive class. The AUC rests on stated probabilities and needs no "
        "threshold; sensitivity and specificity are those at 50 %."
    )


def _answers(evaluation: Evaluation, numbering: Numbering) -> list[PageFigure]:
    labels, probabilities, classes = evaluation.labels, evaluation.probabilities, evaluation.classes
    heap = "One dot is one scan" if len(labels) <= 2 * 150 else "Bars count scans"
    return [
        numbering.plot(
            figures.draw_roc(labels, probabilities, classes, evaluation.resamples),
            "roc",
            findings.tell_roc(evaluation),
            "Sensitivity against false alarms over all thresholds. The band holds 95 % of the resampled curves at each "
            "rate of false alarms.",
        ),
        numbering.plot(
            figures.draw_scores(labels, probabilities, classes),
            "scores",
            findings.tell_scores(evaluation),
            f"{heap}, by true class; the bar below each heap is its median"
            + (", the dashed line the threshold." if len(classes) == 2 else "."),
        ),
        numbering.plot(
            figures.draw_confusion(evaluation.confusion, classes),
            "confusion",
            findings.tell_confusion(evaluation),
            "Scans by true and likeliest class; the percentage is that of the true class.",
        ),
        numbering.plot(
            figures.draw_calibration(labels, probabilities, classes),
            "calibration",
            findings.tell_calibration(evaluation),
            f"How often what was stated came true, in {CALIBRATION_BINS} bins of equal width; bars are 95 % Wilson "
            "intervals, dots grow with the number of scans.",
        ),
    ]


def _metric_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows = []
    for name, metric in metric_table(len(evaluation.classes)).items():
        found = evaluation.metrics[name]
        rows.append(
            {
                "label": metric.label,
                "arrow": "↑" if metric.better == "higher" else "↓",
                "text": findings.tell_number(found.value),
                "interval": findings.tell_interval(found),
                "folds": list_fold_values(evaluation, name),
                "chance": metric.chance,
                **draw_range(found),
            }
        )
    return rows


def list_fold_names(evaluation: Evaluation | NumberEvaluation) -> list[str]:
    """Headings of the columns of folds; none where there is one fold."""
    if len(evaluation.folds) == 1:
        return []
    return [*(f"Fold {fold.index}" for fold in evaluation.folds), "Mean"]


def list_fold_values(evaluation: Evaluation | NumberEvaluation, metric: str) -> list[str]:
    """A metric in each fold, and the mean of them; none where there is one fold."""
    if len(evaluation.folds) == 1:
        return []
    values = [fold.metrics[metric] for fold in evaluation.folds]
    return [findings.tell_number(value) for value in (*values, float(np.mean(values)))]


def describe_seeds(evaluation: Evaluation | NumberEvaluation) -> dict[str, Any] | None:
    """The table of seeds; None where one training was judged."""
    if evaluation.seeds is None:
        return None
    is_number = isinstance(evaluation, NumberEvaluation)
    table = REGRESSION_METRICS if is_number else metric_table(len(evaluation.classes))
    labels = {name: table[name].label for name in evaluation.seeds.values}
    ensemble = {name: found.value for name, found in evaluation.metrics.items()}
    return {"names": evaluation.seeds.names, "rows": evaluation.seeds.rows(labels, ensemble)}


def draw_range(found: Estimate) -> dict[str, float | None]:
    """Value and interval for the whisker; null what is no number."""
    numbers = {"value": found.value, "low": found.low, "high": found.high}
    return {name: round(float(number), 4) if np.isfinite(number) else None for name, number in numbers.items()}


def _strata(evaluation: Evaluation, numbering: Numbering) -> PageFigure | None:
    rows = [
        (row.variable, row.level, " + ".join(map(str, row.counts)), row.found)
        for row in evaluation.strata
        if row.found is not None
    ]
    if not rows:
        return None
    figure = figures.draw_strata(rows, evaluation.metrics["auc"], "Area under the ROC curve", chance=0.5)
    caption = (
        "AUC within each part of the held-out people. The blue line and band are the whole with its interval; the grey "
        f"numbers are scans of {', '.join(evaluation.classes)}. Age is cut into thirds. Many small parts: some will "
        "stand apart by chance."
    )
    return numbering.plot(figure, "strata", findings.tell_strata(evaluation), caption, wide=True)


def _small_strata(evaluation: Evaluation) -> str:
    small = [row.level for row in evaluation.strata if row.found is None]
    return f"Too few of a class to be judged alone: {', '.join(small)}." if small else ""


def _looks(evaluation: Evaluation, picture: tuple[bytes, str, str] | None, numbering: Numbering) -> list[PageFigure]:
    found = []
    profile = evaluation.attention
    if profile is not None:
        found.append(_attention(evaluation, profile, numbering))
    if picture is not None:
        found.append(numbering.picture(*picture))
    return found


def _attention(evaluation: Evaluation, profile: AttentionProfile, numbering: Numbering) -> PageFigure:
    by_class = {name: profile.density_per_mm[profile.labels == index] for index, name in enumerate(evaluation.classes)}
    figure = figures.draw_attention(profile.position_mm, by_class, AXIS_LABELS[profile.axis], profile.uniform_per_mm)
    caption = (
        "Weight of a slice over the distance of slices, mean by true class; bands hold the middle half of the scans. "
        "Positions are the scans' own world coordinates, not a common template. Attention says what was pooled, which "
        "is not yet what the answer rests on: see the deletion test of “neuroray explain”."
    )
    return numbering.plot(figure, "attention", findings.tell_attention(profile), caption, wide=True)


def _learning(evaluation: Evaluation, numbering: Numbering) -> PageFigure | None:
    curves = [fold.curves for fold in evaluation.folds if any(len(points) for points in fold.curves.values())]
    if not curves:
        return None
    caption = (
        "Loss, and AUC on the people that the run was selected on; the ring marks the weights that were kept. The "
        "people judged had no part."
    )
    title = findings.tell_learning(evaluation.folds)
    return numbering.plot(figures.draw_learning_curves(curves), "learning", title, caption, wide=True)


def _sides(evaluation: Evaluation) -> list[dict[str, Any]]:
    rows = []
    for fold in evaluation.folds:
        row: dict[str, Any] = {"fold": fold.index}
        for side, counts in fold.counts.items():
            by_class = " + ".join(str(counts.get(name, 0)) for name in evaluation.classes)
            row[side] = {"people": fold.num_subjects[side], "scans": f"{sum(counts.values())} ({by_class})"}
        rows.append(row)
    return rows


def describe_checks(evaluation: Evaluation | NumberEvaluation) -> list[str]:
    """What was made sure of."""
    num_scans = len(evaluation.judged)
    cached = 0 if isinstance(evaluation, NumberEvaluation) else sum(row.from_cache for row in evaluation.judged)
    read = f"{cached} of {num_scans} scans judged from cached features"
    if cached == 0:
        read = f"All {num_scans} scans judged from their voxels"
    elif cached < num_scans:
        read = f"{read}; the others from their voxels"
    return [
        "No person and no family stands on two sides of a fold",
        f"Scans and labels are those of catalogue version {evaluation.provenance['catalogue_version']}, "
        + ("which the run recorded" if evaluation.provenance.get("catalogue_version_recorded", True) else "the newest"),
        read,
    ]


def _methods(evaluation: Evaluation) -> list[str]:
    return [
        f"Intervals are percentiles of {len(evaluation.resamples)} bootstrap resamples (seed {evaluation.seed}). "
        "Families, or people without a family id, are drawn with replacement within their class; all scans of one go "
        "together. The model is fixed: what another training run would give is not in the interval.",
        f"The expected calibration error is the mean distance between stated and true rate over {CALIBRATION_BINS} "
        "bins of equal width, weighted by their scans. The Brier score is the mean squared error of the stated "
        "probabilities.",
        "Weights were selected on the validation people only. The people judged here were used for nothing before.",
        "Held-out people come from the same store as the others: how the model does at another site, on another "
        "scanner, or after other preprocessing is not shown here.",
    ]


def describe_provenance(evaluation: Sourced) -> list[tuple[str, Any, bool]]:
    """Where it all came from: name, value, and whether it is code."""
    provenance = evaluation.provenance
    rows: list[tuple[str, Any, bool]] = [
        ("Store", provenance["store"], True),
        ("Catalogue version", provenance["catalogue_version"], False),
    ]
    for name in (
        "recipe",
        "weights_sha256",
        "tokenizer_sha256",
        "encoder_sha256",
        "feature_fingerprint",
        "split_sha256",
    ):
        values = sorted({str(fold.facts[name]) for fold in evaluation.folds if fold.facts.get(name)})
        rows += [(name.replace("_", " ").replace("sha256", "SHA-256"), value, True) for value in values]
    rows += [("Code", provenance["git_commit"], True)] if provenance.get("git_commit") else []
    rows.append(("Versions", _list_versions(provenance["versions"]), False))
    rows += [("Command", command, True) for command in provenance.get("commands", ())]
    return rows


def _list_versions(versions: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())

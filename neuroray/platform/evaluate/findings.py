"""What the figures show, in words: each title of the report says the finding, not the kind of plot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from neuroray.platform.evaluate.evidence import AttentionProfile, Evaluation, Fold
from neuroray.platform.evaluate.intervals import Estimate

# Below this many people in a class, one person moves sensitivity by five points or more.
_FEW_PEOPLE = 20
# An expected calibration error up to here is what ten bins of a few dozen people show for a perfect model.
_WELL_CALIBRATED = 0.08
# When the highest and lowest stated probability differ by less, nobody is told from anybody.
_NARROW_RANGE = 0.2


def tell_number(value: float) -> str:
    """Two decimals, with a true minus sign."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else "not defined"


def tell_millimetres(value: float) -> str:
    """A whole number, with a true minus sign."""
    return f"{value:.0f}".replace("-", "\N{MINUS SIGN}")


def tell_interval(found: Estimate) -> str:
    """`0.86 to 0.98`."""
    if not found.has_width:
        return "no interval"
    return f"{tell_number(found.low)} to {tell_number(found.high)}" if np.isfinite(found.low) else "no interval"


def tell_standing(found: Estimate, chance: float) -> str:
    """How an interval stands to what guessing reaches."""
    verdict = {"above": "better than guessing", "below": "worse than guessing", "includes": "guessing is not excluded"}
    return verdict[found.against(chance)]


def tell_headline(evaluation: Evaluation) -> str:
    """The one sentence that a reader takes away."""
    auc = evaluation.metrics["auc"]
    classes = evaluation.classes
    what = f"{classes[1]} from {classes[0]}" if len(classes) == 2 else f"{len(classes)} classes of {evaluation.target}"
    standing = auc.against(0.5)
    if standing == "above":
        return f"It tells {what} in people it has never seen"
    if standing == "below":
        return f"It ranks {what} the wrong way round"
    return f"It does not tell {what} better than guessing"


def tell_roc(evaluation: Evaluation) -> str:
    """On the ROC curve."""
    auc = evaluation.metrics["auc"]
    return f"AUC {tell_number(auc.value)} ({tell_interval(auc)}): {tell_standing(auc, 0.5)}"


def tell_confusion(evaluation: Evaluation) -> str:
    """On right and wrong answers."""
    counts = evaluation.confusion.astype(int)
    title = f"{np.trace(counts)} of {counts.sum()} scans are classified right"
    if len(evaluation.classes) == 2:
        title += f"; {counts[1, 0]} of class “{evaluation.classes[1]}” are missed"
    return title


def tell_scores(evaluation: Evaluation) -> str:
    """On stated probabilities by class."""
    labels, probabilities, classes = evaluation.labels, evaluation.probabilities, list(evaluation.classes)
    if len(classes) > 2:
        own = np.median(probabilities[np.arange(len(labels)), labels])
        return f"The true class is given {own:.0%} in the median"
    medians = [np.median(probabilities[labels == index, 1]) if (labels == index).any() else np.nan for index in (0, 1)]
    return f"The median score is {medians[1]:.0%} in “{classes[1]}” and {medians[0]:.0%} in “{classes[0]}”"


def tell_calibration(evaluation: Evaluation) -> str:
    """On whether stated probabilities can be taken at their word."""
    found = evaluation.metrics["calibration_error"].value
    if len(evaluation.judged) > 1 and np.ptp(evaluation.probabilities, axis=0).max() < _NARROW_RANGE:
        return "All are given about the same probability"
    if found <= _WELL_CALIBRATED:
        return f"Stated probabilities can be taken at their word, within {found:.0%}"
    return f"Stated probabilities are off by {found:.0%} on average"


def tell_learning(folds: Sequence[Fold]) -> str:
    """On how training went."""
    kept = [point for fold in folds for point in fold.curves.get("kept", ())]
    if not kept:
        return "How loss and validation score went"
    if len(kept) > 1:
        low, high = min(value for _, value in kept), max(value for _, value in kept)
        return f"The weights kept reach a validation AUC of {tell_number(low)} to {tell_number(high)}"
    last = max(epoch for epoch, _ in folds[0].curves["val_score"])
    epoch, value = kept[0]
    return f"The weights kept, of epoch {epoch:.0f} of {last:.0f}, reach a validation AUC of {tell_number(value)}"


def tell_attention(profile: AttentionProfile) -> str:
    """On where the weight lies."""
    mean = profile.mean()
    share = float(np.mean(profile.effective_slices / profile.num_slices))
    num_slices = float(np.mean(profile.num_slices))
    if share > 0.95:
        return f"Attention is spread almost evenly over all {num_slices:.0f} slices"
    peak = tell_millimetres(float(profile.position_mm[np.nanargmax(mean)]))
    axis = {"axial": "z", "coronal": "y", "sagittal": "x"}[profile.axis]
    spread = f"{share * num_slices:.0f} of {num_slices:.0f} slices"
    return f"Attention peaks at {axis} = {peak} mm and is as spread as {spread} alike"


def tell_strata(evaluation: Evaluation) -> str:
    """On whether a part of the people is served worse."""
    overall = evaluation.metrics["auc"]
    found = [(row.found.value, row) for row in evaluation.strata if row.found is not None]
    if not found:
        return "No stratum is large enough to be judged by itself"
    apart = [row for _, row in found if row.found is not None and row.found.high < overall.value]
    if apart:
        return f"Served worse than the whole: {', '.join(row.level for row in apart)}"
    value, lowest = min(found, key=lambda pair: pair[0])
    if value == 1.0:
        return "Every part of the people is told apart without a mistake"
    return f"No part of the people stands apart; the lowest AUC is {tell_number(value)} ({lowest.level})"


def gather_warnings(evaluation: Evaluation, *, shuffled: bool) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    found = []
    if shuffled:
        found.append("Labels were shuffled among people before training: a control experiment, in which 0.5 is right.")
    for index, name in enumerate(evaluation.classes):
        count = int((evaluation.labels == index).sum())
        if count == 0:
            found.append(f"Nobody of class “{name}” is among the held-out people: AUC is not defined.")
        elif count < _FEW_PEOPLE:
            found.append(
                f"Only {count} scans of class “{name}” were judged: one more error moves its rate by {1 / count:.0%}."
            )
    if any(value.kind == "exact" for value in evaluation.metrics.values()):
        found.append(
            "Some rates are 0 or 1 in every resample, so that resampling says nothing of how sure they are. Their "
            "intervals are exact ones for that many independent people (Clopper and Pearson)."
        )
    if len({row.scan_id for row in evaluation.judged}) < len(evaluation.judged):
        found.append("Some scans were judged by more than one fold; the bootstrap draws them together.")
    undefined = max(value.num_undefined for value in evaluation.metrics.values())
    if undefined:
        found.append(f"{undefined} of {len(evaluation.resamples)} resamples left a metric undefined.")
    return tuple(found)

"""What the figures of a measure show, in words."""

from __future__ import annotations

import numpy as np

from neuroray.platform.evaluate.age_page import gather_age_warnings
from neuroray.platform.evaluate.findings import tell_interval, tell_number, tell_standing
from neuroray.platform.evaluate.number_evidence import NumberEvaluation

# Below this many people an interval of a correlation is wider than half of what it can be.
_FEW_PEOPLE = 20
# Predictions this much narrower than the truth are pulled to the mean.
_NARROW = 0.5


def tell_number_headline(evaluation: NumberEvaluation) -> str:
    """The one sentence that a reader takes away."""
    standing = evaluation.metrics["pearson_r"].against(0.0)
    if standing == "above":
        return f"It tells {evaluation.target} apart in people it has never seen"
    if standing == "below":
        return f"It ranks {evaluation.target} the wrong way round"
    return f"It does not tell {evaluation.target} better than guessing"


def tell_agreement(evaluation: NumberEvaluation) -> str:
    """On said against true values."""
    found = evaluation.metrics["pearson_r"]
    return f"Correlation {tell_number(found.value)} ({tell_interval(found)}): {tell_standing(found, 0.0)}"


def tell_errors(evaluation: NumberEvaluation) -> str:
    """On how far off it is, against saying the mean of everybody."""
    found, guessed = evaluation.metrics["mae"], evaluation.guess["mae"]
    unit = f" {evaluation.unit}" if evaluation.unit else ""
    return (
        f"Off by {found.value:.3g}{unit} on average ({found.low:.3g} to {found.high:.3g}); "
        f"the training mean by {guessed:.3g}"
    )


def tell_number_learning(evaluation: NumberEvaluation) -> str:
    """On how training went."""
    kept = [value for fold in evaluation.folds for _, value in fold.curves.get("kept", ())]
    if not kept:
        return "How loss and validation score went"
    reach = tell_number(kept[0]) if len(kept) == 1 else f"{tell_number(min(kept))} to {tell_number(max(kept))}"
    return f"The weights kept reach a validation correlation of {reach}"


def tell_number_strata(evaluation: NumberEvaluation) -> str:
    """On whether a part of the people is served worse."""
    found = [(row.found.value, row) for row in evaluation.strata if row.found is not None]
    if not found:
        return "No stratum is large enough to be judged by itself"
    overall = evaluation.metrics["pearson_r"].value
    apart = [row.level for _, row in found if row.found is not None and row.found.high < overall]
    if apart:
        return f"Served worse than the whole: {', '.join(apart)}"
    value, lowest = min(found, key=lambda pair: pair[0])
    return f"No part of the people stands apart; the lowest correlation is {tell_number(value)} ({lowest.level})"


def gather_number_warnings(evaluation: NumberEvaluation, *, shuffled: bool) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    found = []
    if shuffled:
        found.append("Labels were shuffled among people before training: a control experiment, in which 0 is right.")
    if evaluation.num_people < _FEW_PEOPLE:
        found.append(f"Only {evaluation.num_people} people were judged: a correlation of so few is hardly known.")
    spread, truth = float(evaluation.predicted.std()), float(evaluation.values.std())
    if truth > 0 and spread < _NARROW * truth:
        found.append(
            f"What is said differs less between people than the truth does ({spread:.3g} against {truth:.3g}): errors "
            "are large at both ends."
        )
    if len({row.scan_id for row in evaluation.judged}) < len(evaluation.judged):
        found.append("Some scans were judged by more than one fold; the bootstrap draws them together.")
    undefined = max(value.num_undefined for value in evaluation.metrics.values())
    if undefined:
        found.append(f"{undefined} of {len(evaluation.resamples)} resamples left a metric undefined.")
    if not np.isfinite(evaluation.metrics["pearson_r"].value):
        found.append("The model says the same of everybody, or everybody is the same: there is no correlation.")
    if evaluation.age is not None:
        found += gather_age_warnings(evaluation, evaluation.age)
    return (*evaluation.provenance.get("caveats", ()), *found)

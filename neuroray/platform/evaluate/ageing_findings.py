"""What an evaluation of brains at other ages shows, in words, and what is to be known before it is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuroray.platform.evaluate.ageing_evidence import CEILING, MODEL, REAL, AgeingEvaluation, RowsFound
from neuroray.platform.evaluate.brain_regions import VENTRICLES
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.labelled_regions import TISSUES, name_region

LEAST_PSNR_DB = 25.0
"""What a tokenizer should reach in the brain before a transformer is worth its training."""
FEWEST_SURE = 6
"""People; fewer all lie on one side by chance in more than one of twenty evaluations, whatever a bootstrap says."""
_FEW_PEOPLE = 20


def tell_ageing_headline(evaluation: AgeingEvaluation) -> str:
    """The one sentence: nearer to the follow-up than the scan itself, or not."""
    standing = compare_with_copy(evaluation.whole, MODEL, "l1_brain", "lower")
    if standing == "better":
        return "The model's brains are nearer to the follow-up than the previous scan is"
    if standing == "worse":
        return "The previous scan itself is nearer to the follow-up than the model's brains"
    return "The model's brains are no nearer to the follow-up than the previous scan, as far as these people show"


def tell_change(evaluation: AgeingEvaluation) -> str:
    """Whether the main region's change is foreseen."""
    region, rows = evaluation.main_region, evaluation.regions.get(evaluation.main_region)
    if not rows:
        return f"The change of {region} could not be measured"
    found = rows[MODEL].change["pearson_r"]
    if found.value != found.value:
        return f"What is told of {region} never changes"
    if evaluation.num_people < FEWEST_SURE:
        return (
            f"How predicted and true change of {region} go together, so few people do not show (r = {found.value:.2f})"
        )
    if found.against(0.0) == "above":
        return f"Predicted and true change of {region} go together (r = {found.value:.2f})"
    return f"Predicted change of {region} does not follow the true one (r = {found.value:.2f})"


def tell_structures(evaluation: AgeingEvaluation) -> list[str]:
    """What the model foresees of each structure that label maps name."""
    if evaluation.labels is None:
        return []
    found = [f"{evaluation.labels.num_known} of {evaluation.labels.num_pairs} pairs have label maps at both visits"]
    for structure in TISSUES:
        rows = evaluation.regions.get(name_region(structure))
        if rows:
            change, real = rows[MODEL].change, rows[REAL].change
            told = f"{name_region(structure)}: predicted and true change {_tell_fit(change)}, off by "
            found.append(
                f"{told}{change['mae'].value:.2f} ml; real follow-ups, measured alike: {_tell_fit(real)} "
                f"({rows[MODEL].num_pairs} pairs)"
            )
    return found


def tell_sweep(evaluation: AgeingEvaluation) -> str:
    """How many rise at each step."""
    share, region = evaluation.sweep.rising_share, evaluation.main_region
    if share is None:
        return "Nobody could be told at older ages: all are at the end of the training's"
    return f"In {share.value:.0%} of people {region} widen{'' if region == VENTRICLES else 's'} at every step of age"


def tell_gaps(evaluation: AgeingEvaluation) -> str:
    """Where the model stands to the copy, by gap."""
    long = list(evaluation.by_gap.items())[-1]
    gain = long[1].gains[MODEL]["psnr_brain"]
    pairs = f"{long[1].num_pairs} pair{'' if long[1].num_pairs == 1 else 's'}"
    return f"At gaps of {long[0]} ({pairs}) the model has {gain.value:+.2f} dB over the copy"


def gather_ageing_warnings(
    evaluation: AgeingEvaluation, card: Mapping[str, Any], trained: Sequence[Sequence[Any]]
) -> tuple[str, ...]:
    """Notes of the page.

    Args:
        evaluation: What was found.
        card: Of the model.
        trained: Scans of the training people that are there, by fold.
    """
    found = []
    if evaluation.num_people < _FEW_PEOPLE:
        people = "person was" if evaluation.num_people == 1 else "people were"
        found.append(f"Only {evaluation.num_people} {people} judged: intervals are wide, or tell nothing.")
    ceiling = evaluation.whole.metrics[CEILING]["psnr_brain"].value
    if ceiling < LEAST_PSNR_DB:
        found.append(
            f"The tokenizer draws the true follow-up itself with {ceiling:.1f} dB in the brain, less than the "
            f"{LEAST_PSNR_DB:g} worth a transformer: what it cannot draw, no age shows."
        )
    low, high = card["age_range_years"]
    beyond = sum(not low <= age <= high for one in evaluation.judged for age in one.pair.ages_years)
    if beyond:
        found.append(f"{beyond} ages of these pairs lie outside the {low:g} to {high:g} years of the training.")
    if evaluation.main_region != VENTRICLES:
        found.append("Scans are not registered to a template: ventricles and cortex are not told from other tissue.")
    if evaluation.read_age is None:
        found.append("No age was read off what is told: too few training people for a regression, and no --age-model.")
    if not any(trained):
        found.append("The training people's scans are out of reach: there is no mean change to compare with.")
    elif len(evaluation.row_labels) == 3:
        found.append("No training person has two visits: there is no mean change to compare with.")
    return tuple(found)


def compare_with_copy(found: RowsFound, row: str, metric: str, better: str) -> str:
    """`better` or `worse` where a row is that surely, by pairs of six people or more; else nothing.

    Args:
        found: Over some pairs.
        row: Not that of the copy.
        metric: Which.
        better: Whether `lower` or `higher` is.
    """
    gain = found.gains[row][metric]
    if found.num_people < FEWEST_SURE or not gain.has_width or gain.against(0.0) == "includes":
        return ""
    return "better" if gain.against(0.0) == ("below" if better == "lower" else "above") else "worse"


def _tell_fit(found: Mapping[str, Estimate]) -> str:
    return f"r = {found['pearson_r'].value:.2f}, slope {found['slope'].value:.2f}"

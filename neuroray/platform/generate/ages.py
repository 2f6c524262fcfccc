"""Ages that a model is asked for: which are none, which its training has not seen, and what they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from neuroray.errors import NeurorayError

_OLDEST_YEARS = 130.0
_ADULT_YEARS = 18.0


class GenerationError(NeurorayError, ValueError):
    """A scan, an age or a model that nothing can be generated from."""


class UnseenError(GenerationError):
    """An age or a diagnosis that the model's training has not seen."""


def check_ages(age_years: float | None, target_ages_years: Sequence[float]) -> float:
    """The present age, where it and all others are ages; needs no model.

    Args:
        age_years: Of the person when the scan was made.
        target_ages_years: For which the brain is to be told.

    Raises:
        GenerationError: an age that is not given or is none, or one that is asked for twice.
    """
    if not target_ages_years:
        raise GenerationError("no age is asked for", expected="one or more", fix="--ages 65 70 75 80")
    if age_years is None:
        raise GenerationError(
            "the age at which the scan was made is not given",
            expected="years; the model tells how a brain changes from one age to another",
            fix="--age-years 61.5",
        )
    _check_age("age", age_years)
    check_targets(target_ages_years)
    return age_years


def check_targets(target_ages_years: Sequence[float]) -> None:
    """Raises GenerationError for a target age that is none, or that is asked for twice; needs no scan."""
    for age in target_ages_years:
        _check_age("target age", age)
    names = [name_age(age) for age in target_ages_years]
    if len(set(names)) < len(names):
        raise GenerationError("an age is asked for twice", given=" ".join(names), expected="each once")


def compare_ages(
    age_years: float, target_ages_years: Sequence[float], card: Mapping[str, Any], *, allow_outside: bool
) -> tuple[str, ...]:
    """What in these ages the training has not seen, in words.

    Args:
        age_years: At the scan.
        target_ages_years: To be told.
        card: The model's `config.json`: `age_range_years` and `gap_range_years` of the training pairs.
        allow_outside: Ages outside the training's are a warning, and no error.

    Raises:
        UnseenError: such ages, where they are not allowed.
    """
    low, high = card["age_range_years"]
    outside = [age for age in (age_years, *target_ages_years) if not low <= age <= high]
    told = ", ".join(name_age(age) for age in outside)
    if outside and not allow_outside:
        raise UnseenError(
            _tell_unseen(age_years, target_ages_years, low),
            given=f"{told} years",
            expected=f"{low:g} to {high:g} years",
            fix="a model of such ages; or --allow-outside, which says in the output that nothing vouches for them",
        )
    notes = [f"{told} years: the model was trained on {low:g} to {high:g}; nothing vouches for this"] if outside else []
    shortest, longest = card["gap_range_years"]
    gaps = [age - age_years for age in target_ages_years]
    beyond = [gap for gap in gaps if not min(shortest, 0) <= gap <= max(longest, 0)]
    if beyond:
        steps = ", ".join(f"{gap:+g}" for gap in beyond)
        notes.append(f"{steps} years from the scan: the model was trained on {shortest:+g} to {longest:+g}")
    return tuple(notes)


def compare_diagnosis(diagnosis: str | None, card: Mapping[str, Any], *, allow_outside: bool) -> tuple[str, ...]:
    """What in this diagnosis the training has not seen, in words.

    Args:
        diagnosis: Of the person, as the study calls it; None: not told.
        card: The model's `config.json`: `diagnoses`, people of the training by diagnosis; one that was not recorded
            stands under "".
        allow_outside: Such a diagnosis is a warning, and no error.

    Raises:
        UnseenError: such a diagnosis, where it is not allowed.
    """
    if diagnosis is None:
        return ()
    known = card.get("diagnoses")
    if not known or set(known) == {""}:
        return (f"{diagnosis}: which diagnoses the model was trained on is not recorded, so nothing was compared",)
    if diagnosis.casefold() in {name.casefold() for name in known}:
        return ()
    learned = ", ".join(name or "not recorded" for name in known)
    if not allow_outside:
        raise UnseenError(
            "the model was trained on nobody with this diagnosis: it would tell how others age",
            given=diagnosis,
            expected=learned,
            fix="a model of such people; or --allow-outside, which says in the output that nothing vouches for it",
        )
    return (f"{diagnosis}: the model was trained on {learned}; nothing vouches for this",)


def name_age(age_years: float) -> str:
    """As it stands in names of files."""
    return f"{age_years:.6g}"


def _check_age(kind: str, age: float) -> None:
    expected = f"years from birth, 0 to {_OLDEST_YEARS:g}"
    if not math.isfinite(age):
        raise GenerationError(f"the {kind} is no number", given=age, expected=expected, fix="write it in digits: 70.5")
    if age < 0:
        fix = "an age, and not the years from the scan; of neuroray predict, --in-years takes these"
        raise GenerationError(f"the {kind} lies before birth", given=f"{age:g} years", expected=expected, fix=fix)
    if age > _OLDEST_YEARS:
        fix = f"in months? {age:g} months are {age / 12:.1f} years"
        raise GenerationError(f"the {kind} is beyond any person's", given=f"{age:g} years", expected=expected, fix=fix)


def _tell_unseen(age_years: float, target_ages_years: Sequence[float], low: float) -> str:
    """Of a child, or of somebody younger than all of the training, in those words."""
    if age_years < _ADULT_YEARS <= low:
        return "the scan is a child's, and the model was trained on adults alone"
    if age_years < low:
        return "the model was trained on no such ages: all of its people were older than this person"
    if any(age < _ADULT_YEARS <= low for age in target_ages_years):
        return "a child's brain is asked for, and the model was trained on adults alone"
    return "the model was trained on no such ages"

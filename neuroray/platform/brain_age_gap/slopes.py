"""How a gap changes over the years in those who came more than once: a slope a person, and a mixed model of all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.brain_age_gap.answers import AgeAnswer
from neuroray.platform.brain_age_gap.effects import Effect
from neuroray.platform.evaluate.intervals import draw_resamples

# Two visits closer than this give a slope that is noise over next to nothing.
_SHORTEST_YEARS = 0.1
_FEWEST_PEOPLE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSlope:
    """Change of the gap per year in one group.

    Attributes:
        group: Its name.
        num_people: With visits at two ages or more.
        num_scans: Of these people.
        mean: Mean over people of each one's least-squares slope; interval from a bootstrap over families or people.
        mixed: From the mixed model; NaN where it could not be fitted.
    """

    group: str
    num_people: int
    num_scans: int
    mean: Effect
    mixed: Effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Slopes:
    """Of all groups with enough people.

    Attributes:
        groups: In order of name.
        difference: Cases less controls, per year; each as in `GroupSlope`. None without both.
        notes: What was left out.
    """

    groups: tuple[GroupSlope, ...]
    difference: tuple[Effect, Effect] | None = None
    notes: tuple[str, ...] = field(default=())


def person_slopes(answers: Sequence[AgeAnswer], gaps: Float[np.ndarray, " row"]) -> dict[str, tuple[float, list[int]]]:
    """Least-squares slope of the gap on age of each person with visits at two ages or more, and his or her rows."""
    rows: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if np.isfinite(gaps[index]):
            rows.setdefault(answer.subject, []).append(index)
    found = {}
    for subject, indices in rows.items():
        ages = np.array([answers[index].age_years for index in indices])
        if np.ptp(ages) >= _SHORTEST_YEARS:
            found[subject] = (float(np.polyfit(ages - ages.mean(), gaps[indices], 1)[0]), indices)
    return found


def measure_slopes(
    answers: Sequence[AgeAnswer],
    gaps: Float[np.ndarray, " row"],
    groups: Sequence[str],
    *,
    pair: tuple[str, str] | None,
    seed: int,
    num_resamples: int,
) -> Slopes | None:
    """Slopes by group; None where nobody came twice.

    Args:
        answers: All scans.
        gaps: Of each, in years.
        groups: The group of each scan; a person is in that of the first.
        pair: Names of controls and cases, to be compared.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
    """
    by_person = person_slopes(answers, gaps)
    members: dict[str, list[str]] = {}
    for subject, (_, indices) in by_person.items():
        members.setdefault(groups[indices[0]], []).append(subject)
    small = sorted(name for name, people in members.items() if len(people) < _FEWEST_PEOPLE)
    kept = {name: people for name, people in sorted(members.items()) if len(people) >= _FEWEST_PEOPLE}
    notes = [f"Too few people came twice to tell a slope: {', '.join(small)}."] if small else []
    if not kept:
        return None
    drawn = {name: _bootstrap(people, by_person, answers, seed, num_resamples) for name, people in kept.items()}
    mixed, told = _fit_mixed(kept, by_person, answers, gaps, pair)
    notes += [told] if told else []
    found = tuple(
        GroupSlope(
            group=name,
            num_people=len(people),
            num_scans=sum(len(by_person[subject][1]) for subject in people),
            mean=_summarise(float(np.mean([by_person[subject][0] for subject in people])), drawn[name]),
            mixed=mixed.get(name, Effect(value=float("nan"))),
        )
        for name, people in kept.items()
    )
    means = {slope.group: slope.mean.value for slope in found}
    difference = None
    if pair is not None and set(pair) <= set(kept):
        apart = _summarise(means[pair[1]] - means[pair[0]], drawn[pair[1]] - drawn[pair[0]])
        difference = (apart, mixed.get("difference", Effect(value=float("nan"))))
    return Slopes(groups=found, difference=difference, notes=tuple(notes))


def _bootstrap(
    people: Sequence[str],
    by_person: dict[str, tuple[float, list[int]]],
    answers: Sequence[AgeAnswer],
    seed: int,
    num_resamples: int,
) -> Float[np.ndarray, " resample"]:
    kin = [answers[by_person[subject][1][0]].kin for subject in people]
    weights = draw_resamples(kin, [0] * len(kin), seed=seed, num_resamples=num_resamples)
    slopes = np.array([by_person[subject][0] for subject in people])
    return weights @ slopes / weights.sum(axis=1)


def _summarise(value: float, drawn: Float[np.ndarray, " resample"]) -> Effect:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Effect(value=value, low=float(low), high=float(high))


def _fit_mixed(
    kept: dict[str, list[str]],
    by_person: dict[str, tuple[float, list[int]]],
    answers: Sequence[AgeAnswer],
    gaps: Float[np.ndarray, " row"],
    pair: tuple[str, str] | None,
) -> tuple[dict[str, Effect], str]:
    """`gap ~ group + years : group + (1 | person)` by REML: slopes by group, and cases less controls."""
    import statsmodels.api as sm

    names = list(kept)
    columns, target, persons = [], [], []
    for place, name in enumerate(names):
        for subject in kept[name]:
            indices = by_person[subject][1]
            first = min(answers[index].age_years for index in indices)
            for index in indices:
                row = np.zeros(2 * len(names))
                row[place], row[len(names) + place] = 1.0, answers[index].age_years - first
                columns.append(row)
                target.append(gaps[index])
                persons.append(subject)
    try:
        with warnings.catch_warnings():
            # That the spread between people lies on its border of 0 changes nothing in the slopes.
            warnings.simplefilter("ignore")
            fitted: Any = sm.MixedLM(np.array(target), np.array(columns), groups=np.array(persons)).fit(reml=True)
    except (np.linalg.LinAlgError, ValueError) as error:
        return {}, f"The mixed model could not be fitted ({error})."
    if not fitted.converged:
        return {}, "The mixed model did not come to an end."
    found = {name: _contrast(fitted, _pick(len(names) + place, len(columns[0]))) for place, name in enumerate(names)}
    if pair is not None and set(pair) <= set(names):
        low, high = (_pick(len(names) + names.index(name), len(columns[0])) for name in pair)
        found["difference"] = _contrast(fitted, high - low)
    return found, ""


def _pick(place: int, size: int) -> np.ndarray:
    return np.eye(size)[place]


def _contrast(fitted: Any, weights: np.ndarray) -> Effect:
    test = fitted.t_test(weights[None])
    (low, high) = np.asarray(test.conf_int())[0]
    return Effect(
        value=float(np.ravel(test.effect)[0]), low=float(low), high=float(high), p_value=float(np.ravel(test.pvalue)[0])
    )

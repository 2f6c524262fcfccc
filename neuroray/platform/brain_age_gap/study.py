"""study_gap: raw numbers first, then gaps corrected without those who are judged, then what the gaps go with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from neuroray.platform.brain_age_gap.answers import AgeAnswer, ages_of, first_visits, predictions_of
from neuroray.platform.brain_age_gap.association import associate
from neuroray.platform.brain_age_gap.correction import GAP_KINDS, GapCorrection, GapKind, fit_correction
from neuroray.platform.brain_age_gap.errors import GapError
from neuroray.platform.brain_age_gap.evidence import CaseStudy, GapStudy
from neuroray.platform.brain_age_gap.findings import gather_warnings
from neuroray.platform.brain_age_gap.groups import compare_groups, tabulate_high_gaps
from neuroray.platform.brain_age_gap.slopes import Slopes, measure_slopes
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES, Estimate, draw_resamples, estimate
from neuroray.platform.evaluate.metrics import regression_metrics

FitOn = Literal["auto", "other_folds", "validation", "table"]
EVERYBODY = "everybody"


def study_gap(
    answers: Sequence[AgeAnswer],
    *,
    controls: Sequence[str] = (),
    further: Sequence[AgeAnswer] = (),
    fit_on: FitOn = "auto",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> GapStudy:
    """Corrects the gaps of everybody judged, and sets them against groups, sites and time.

    Args:
        answers: Held-out people.
        controls: Which groups are controls; without any, the correction is fitted on everybody who is not judged, and
            no group is compared.
        further: What the model said of people who are not judged: the validation side, or another table.
        fit_on: `other_folds` (for each fold the held-out controls of the others), `validation` (those of `further` whom
            the fold's own model was selected on), `table` (all of `further`). `auto` is `other_folds` with two folds or
            more, else `validation`.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.

    Raises:
        GapError: no such group, too few controls, or controls who are judged.
    """
    answers = tuple(sorted(answers, key=lambda answer: (answer.fold, answer.scan_id)))
    _require_groups(answers, controls)
    chosen = _choose_fit(answers, further, fit_on)
    corrections = {
        fold: _fit_fold(fold, answers, further, chosen, controls) for fold in sorted({row.fold for row in answers})
    }
    corrected: dict[GapKind, np.ndarray] = {kind: _correct(kind, answers, corrections) for kind in GAP_KINDS}
    measured = partial(_measure, corrections=corrections, seed=seed, num_resamples=num_resamples)
    held = [row for row in answers if row.group in controls]
    study = GapStudy(
        answers=answers,
        corrections=corrections,
        fit_on=chosen,
        corrected=corrected,
        raw=measured(answers, predictions_of(answers)),
        raw_of_controls=measured(held, predictions_of(held)) if len({row.subject for row in held}) > 1 else {},
        after={
            kind: measured(answers, corrected[kind])
            for kind in GAP_KINDS
            if kind != "raw" and np.isfinite(corrected[kind]).all()
        },
        controls=tuple(controls),
        cases=_study_cases(answers, corrected, corrections, controls),
        slopes=_study_slopes(answers, corrected, controls, seed=seed, num_resamples=num_resamples),
        seed=seed,
        num_resamples=num_resamples,
    )
    return dataclasses.replace(study, warnings=gather_warnings(study))


def _require_groups(answers: Sequence[AgeAnswer], controls: Sequence[str]) -> None:
    if not answers:
        raise GapError("nobody was judged")
    known = {row.group for row in answers} - {None}
    unknown = sorted(set(controls) - known)
    if unknown:
        raise GapError(
            f"no scan that was judged is of the group {', '.join(unknown)}",
            expected=f"one of {', '.join(sorted(map(str, known))) or 'no group at all'}",
            fix="--diagnosis-column names the column, --controls its values",
        )


def _choose_fit(answers: Sequence[AgeAnswer], further: Sequence[AgeAnswer], fit_on: FitOn) -> FitOn:
    has_folds = len({row.fold for row in answers}) > 1
    chosen = fit_on if fit_on != "auto" else "other_folds" if has_folds else "validation"
    if chosen == "other_folds" and not has_folds:
        raise GapError("there are no other folds to fit the correction on", fix="--fit-on validation")
    if chosen in ("validation", "table") and not further:
        raise GapError(
            "there is nobody to fit the correction on who is not judged",
            given="one fold, and no predictions of its validation side",
            expected="predictions_val.csv beside predictions.csv, or several folds",
            fix="evaluate the run again, or name a table: --fit-predictions",
        )
    return chosen


def _fit_fold(
    fold: int,
    answers: Sequence[AgeAnswer],
    further: Sequence[AgeAnswer],
    fit_on: FitOn,
    controls: Sequence[str],
) -> GapCorrection:
    judged = [row for row in answers if row.fold == fold]
    if fit_on == "other_folds":
        own = {row.kin for row in judged}
        pool = [row for row in answers if row.fold != fold and row.kin not in own]
    elif fit_on == "validation":
        pool = [row for row in further if row.fold == fold]
    else:
        pool = list(further)
    return fit_correction([row for row in pool if not controls or row.group in controls], judged)


def _correct(
    kind: GapKind, answers: Sequence[AgeAnswer], corrections: Mapping[int, GapCorrection]
) -> Float[np.ndarray, " row"]:
    ages, predicted = ages_of(answers), predictions_of(answers)
    folds = np.array([row.fold for row in answers])
    corrected = np.empty(len(answers))
    for fold, correction in corrections.items():
        rows = folds == fold
        corrected[rows] = correction.correct(kind, ages[rows], predicted[rows])
    return corrected


def _measure(
    answers: Sequence[AgeAnswer],
    predicted: Float[np.ndarray, " row"],
    *,
    corrections: Mapping[int, GapCorrection],
    seed: int,
    num_resamples: int,
) -> dict[str, Estimate]:
    ages = ages_of(answers)
    guess = np.array([corrections[row.fold].mean_age_years for row in answers])

    def weigh(weights: Float[np.ndarray, "resample row"]) -> dict[str, np.ndarray]:
        found = regression_metrics(ages, predicted, weights)
        guessed = regression_metrics(ages, guess, weights)["mae"]
        return found | {"guess_mae": guessed, "mae_gain": guessed - found["mae"]}

    kin = [row.kin for row in answers]
    return estimate(weigh, draw_resamples(kin, [0] * len(kin), seed=seed, num_resamples=num_resamples))


def _study_cases(
    answers: Sequence[AgeAnswer],
    corrected: Mapping[GapKind, np.ndarray],
    corrections: Mapping[int, GapCorrection],
    controls: Sequence[str],
) -> tuple[CaseStudy, ...]:
    """On first visits: two scans of a person are not two people."""
    if not controls:
        return ()
    place = {(row.fold, row.scan_id): index for index, row in enumerate(answers)}
    people = first_visits(answers)
    rows = np.array([place[row.fold, row.scan_id] for row in people])
    groups = np.array([row.group or "" for row in people])
    ages = ages_of(people)
    found = []
    for case in sorted(set(groups.tolist()) - set(controls) - {""}):
        for kind in GAP_KINDS:
            kept = np.isin(groups, [*controls, case])
            gaps, is_case = (corrected[kind][rows] - ages)[kept], groups[kept] == case
            defined = np.isfinite(gaps)
            threshold = float(np.mean([correction.residual(kind) for correction in corrections.values()]))
            some = [row for row, keep in zip(people, kept, strict=True) if keep]
            found.append(
                CaseStudy(
                    kind=kind,
                    case=case,
                    comparison=compare_groups(gaps[defined & ~is_case], gaps[defined & is_case]),
                    association=associate(some, gaps, is_case),
                    tables=tabulate_high_gaps(gaps[defined], is_case[defined], threshold),
                    threshold_years=threshold,
                )
            )
    return tuple(found)


def _study_slopes(
    answers: Sequence[AgeAnswer],
    corrected: Mapping[GapKind, np.ndarray],
    controls: Sequence[str],
    **draws: Any,
) -> dict[GapKind, Slopes]:
    named = "controls" if len(controls) > 1 else (controls[0] if controls else EVERYBODY)
    groups = [_name_group(row, controls, named) for row in answers]
    cases = sorted({group for group in groups if group not in (named, "unknown")})
    pair = (named, cases[0]) if len(cases) == 1 else None
    found: dict[GapKind, Slopes | None] = {
        kind: measure_slopes(answers, corrected[kind] - ages_of(answers), groups, pair=pair, **draws)
        for kind in GAP_KINDS
    }
    return {kind: slopes for kind, slopes in found.items() if slopes is not None}


def _name_group(row: AgeAnswer, controls: Sequence[str], named: str) -> str:
    if not controls or row.group in controls:
        return named
    return row.group or "unknown"

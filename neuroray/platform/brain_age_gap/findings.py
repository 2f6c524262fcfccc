"""What a study of the gap found, in sentences, and what a reader must know before believing it."""

from __future__ import annotations

import numpy as np

from neuroray.platform.brain_age_gap.answers import ages_of
from neuroray.platform.brain_age_gap.correction import GAP_LABELS
from neuroray.platform.brain_age_gap.effects import tell_effect
from neuroray.platform.brain_age_gap.evidence import CaseStudy, GapStudy

_FEW_CONTROLS = 20
# Butler et al. 2021 and de Lange et al. 2022: after correction hardly any model is below this.
_STEEP_ENOUGH = 0.5


def tell_headline(study: GapStudy) -> str:
    """The one sentence that a reader takes away."""
    if study.is_useless:
        return "The model is not known to see age, so its gap means nothing"
    told = next((case for case in study.cases if case.kind == study.shown and case.comparison), None)
    if told is None or told.comparison is None:
        return f"Ages are off by {study.raw['mae'].value:.1f} years before any correction"
    found = told.comparison.difference_years
    if found.low <= 0 <= found.high:
        return f"Brains of “{told.case}” are not known to look older or younger than those of controls"
    word = "older" if found.value > 0 else "younger"
    return f"Brains of “{told.case}” look {abs(found.value):.1f} years {word} than those of controls"


def tell_raw(study: GapStudy) -> str:
    """The uncorrected model, against saying one age of everybody."""
    mae, gain, r = study.raw["mae"], study.raw["mae_gain"], study.raw["pearson_r"]
    stands = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not known to be better than"
    told_r = f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})" if np.isfinite(r.value) else "undefined"
    return (
        f"Uncorrected, off by {mae.value:.2f} years on average ({mae.low:.2f} to {mae.high:.2f}), correlation "
        f"{told_r}; saying the mean age is off by {study.guess_mae:.2f}: the model is {stands} that."
    )


def tell_case(case: CaseStudy) -> str:
    """One group by one kind of gap."""
    if case.comparison is None:
        return f"{case.case}, {GAP_LABELS[case.kind]}: too few people to be compared."
    told = f"{case.case}, {GAP_LABELS[case.kind]}: {tell_effect(case.comparison.difference_years)} years"
    odds = case.association.per_year
    if np.isfinite(odds.value):
        return f"{told}; odds ratio per year {tell_effect(odds)}."
    return f"{told}; no odds ratio{' (the groups are separated)' if case.association.is_separated else ''}."


def gather_warnings(study: GapStudy) -> tuple[str, ...]:
    """What a reader must know before believing the numbers, the gravest first."""
    found = []
    after = study.after.get("beheshti")
    if study.is_useless:
        shine = ""
        if after is not None:
            shine = (
                f" After correction it would seem to reach r {after['pearson_r'].value:.2f} and an error of "
                f"{after['mae'].value:.1f} years: that is the true age, which the correction puts in."
            )
        found.append(f"The uncorrected model is not known to beat saying the mean age.{shine} Do not use this gap.")
    slopes = [correction.slope for correction in study.corrections.values()]
    if min(slopes) < _STEEP_ENOUGH:
        found.append(
            f"A year of age moves the prediction by {min(slopes):.2f} years only: a corrected gap rests mostly on the "
            "true age that was put in, and a gap by inversion mostly on noise made larger."
        )
    if any(not correction.can_invert for correction in study.corrections.values()):
        found.append("The line of a fold is too flat to be inverted: there is no gap after Cole for its people.")
    fewest = min(correction.num_people for correction in study.corrections.values())
    if fewest < _FEW_CONTROLS:
        found.append(f"A correction rests on {fewest} controls only.")
    found += _tell_beyond(study)
    groups = {row.group for row in study.answers} - {None}
    if not study.controls:
        whom = f", though there are the groups {', '.join(sorted(map(str, groups)))}" if len(groups) > 1 else ""
        found.append(f"No controls were named{whom}: corrections were fitted on everybody who is not judged.")
    unknown = sum(row.group is None for row in study.answers)
    if study.controls and unknown:
        found.append(f"The group of {unknown} scans is not known; they are in the table, and in no comparison.")
    if any(case.association.is_separated for case in study.cases):
        found.append("Where groups are separated without error there is no odds ratio, however large the effect.")
    return tuple(found)


def _tell_beyond(study: GapStudy) -> list[str]:
    ages = ages_of(study.answers)
    low = np.array([study.corrections[row.fold].ages_years[0] for row in study.answers])
    high = np.array([study.corrections[row.fold].ages_years[1] for row in study.answers])
    num_beyond = int(((ages < low) | (ages > high)).sum())
    if not num_beyond:
        return []
    return [
        f"{num_beyond} scans are of people younger or older than the controls of the correction ({low.min():.0f} to "
        f"{high.max():.0f} years): their correction is extrapolated."
    ]

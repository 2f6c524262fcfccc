"""The brain age gap of one answer: raw, and corrected by the line of controls that the run carries, or why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuroray.platform.brain_age_gap.answer_line import LINE_FILE, AnswerLine, parse_answer_line
from neuroray.platform.brain_age_gap.correction import GapKind
from neuroray.platform.brain_age_gap.errors import GapError
from neuroray.platform.evaluate.age_evidence import is_age
from neuroray.platform.evaluate.conformal import PredictionInterval
from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.storage.locations import Location

_PLACES = ("gap", "")
NO_LINE = (
    "no corrected gap: the model carries no line of controls; `neuroray evaluate RUN` and `neuroray gap RUN --controls "
    "...` fit one on people held out"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GapAnswer:
    """How much older a brain looks than the person is, in years. The raw gap judges; corrected ones compare people.

    Attributes:
        age_years: The true age, as it was told.
        raw_years: Predicted less true age.
        interval: Of the raw gap, where the prediction has one.
        beheshti_years: Raw gap less what the controls' line expects at this age; None where there is no line.
        cole_years: The same over the line's slope, which keeps years; None, besides, where the line is too flat.
        sds_of_controls: Corrected gap over the standard deviation of controls around the line; None without a line.
        no_correction: Why there is no corrected gap.
        fitted_on: Where the line's controls come from: `validation`, `held_out` or `table`; None without a line.
        controls: Their groups; empty: everybody.
        num_controls: People.
        control_ages_years: Youngest and oldest of them.
    """

    age_years: float
    raw_years: float
    interval: PredictionInterval | None = None
    beheshti_years: float | None = None
    cole_years: float | None = None
    sds_of_controls: float | None = None
    no_correction: str | None = None
    fitted_on: str | None = None
    controls: tuple[str, ...] = ()
    num_controls: int | None = None
    control_ages_years: tuple[float, float] | None = None


def find_line(folder: Location, weights_sha256: Sequence[str]) -> tuple[AnswerLine | None, str | None]:
    """The line beside a run or an exported model, or why there is none for it."""
    for place in _PLACES:
        there = folder.child(place) if place else folder
        if there.exists(LINE_FILE):
            try:
                return parse_answer_line(there.read_bytes(LINE_FILE), weights_sha256), None
            except GapError as fault:
                return None, f"no corrected gap: {fault}"
    return None, NO_LINE


def measure_gap(
    targets: Sequence[TargetAnswer], age_years: float | None, line: AnswerLine | None, no_line: str | None
) -> GapAnswer | None:
    """The gap of an answer; None where no age was told, or none was predicted."""
    said = next((answer for answer in targets if is_age(answer.name) and answer.value is not None), None)
    if age_years is None or said is None or said.value is None:
        return None
    raw = said.value - age_years
    bounds = said.interval
    if bounds is not None:
        bounds = PredictionInterval(
            low=bounds.low - age_years, high=bounds.high - age_years, level=bounds.level, num_people=bounds.num_people
        )
    if line is None:
        return GapAnswer(age_years=age_years, raw_years=raw, interval=bounds, no_correction=no_line or NO_LINE)
    ages, predicted = np.array([age_years]), np.array([said.value])

    def correct(kind: GapKind) -> float:
        return float(line.correction.correct(kind, ages, predicted)[0] - age_years)

    beheshti, spread = correct("beheshti"), line.correction.residual_years
    return GapAnswer(
        age_years=age_years,
        raw_years=raw,
        interval=bounds,
        beheshti_years=beheshti,
        cole_years=correct("cole") if line.correction.can_invert else None,
        sds_of_controls=beheshti / spread if spread > 0 else None,
        fitted_on=line.fitted_on,
        controls=line.controls,
        num_controls=line.correction.num_people,
        control_ages_years=line.correction.ages_years,
    )


def caution_gap(gap: GapAnswer | None, line: AnswerLine | None) -> list[str]:
    """What speaks against a corrected gap."""
    if gap is None or line is None:
        return []
    found = []
    low, high = line.correction.ages_years
    if not low <= gap.age_years <= high:
        found.append(f"{gap.age_years:g} years old; the gap is corrected by controls of {low:g} to {high:g} years")
    if line.is_useless:
        found.append(
            "the uncorrected model is not known to do better than saying the mean age: its corrected gaps say next to "
            "nothing of this brain"
        )
    return found

"""What is asked of a scan besides its answer, and the one way in which all who ask get it: by files, and by HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from neuroray.serve.config import ServeError
from neuroray.serve.maps import NUM_STEPS, AnswerMap
from neuroray.serve.prediction import Prediction
from neuroray.serve.predictor import Predictor
from neuroray.storage.scan import Scan

OLDEST_YEARS = 120.0
"""Above this an age is in months, or wrong."""

MOST_STEPS = 64
"""Of a map that is asked for beside an answer; each step is a pass forward and back, so it also bounds the time."""


class QuestionError(ServeError):
    """Options of a question that make no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is told of the person scanned, and whether a map is wanted.

    Attributes:
        sex: Of the person, where it is known.
        age_years: At the time of the scan, where it is known: what a predicted age is held against.
        explain: Whether the map of what the answer rests on is wanted.
        num_steps: Of the map's path, where its method has one.
    """

    sex: Literal["M", "F"] | None = None
    age_years: float | None = None
    explain: bool = False
    num_steps: int = NUM_STEPS

    def __post_init__(self) -> None:
        if self.sex not in (None, "M", "F"):
            raise QuestionError("not a sex that models know", given=repr(self.sex), expected="M or F, or nothing")
        if self.age_years is not None:
            _check_age(self.age_years)
        if not 1 <= self.num_steps <= MOST_STEPS:
            raise QuestionError("a map cannot take so many steps", given=self.num_steps, expected=f"1 to {MOST_STEPS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a question.

    Attributes:
        prediction: The answer.
        map: What it rests on, where that was asked for.
    """

    prediction: Prediction
    map: AnswerMap | None = None


def ask_predictor(predictor: Predictor, scan: Scan, question: Question) -> Reply:
    """The answer for a scan, as it was read, and its map.

    Raises:
        ScanError: a scan of another kind than the model takes, or one that cannot be prepared.
        ModelError: a scan whose shape the model cannot take, or a map of a model that has none.
        ExplainError: gradients that are no numbers.
    """
    prediction = predictor.predict(scan, sex=question.sex, age_years=question.age_years)
    if not question.explain:
        return Reply(prediction=prediction)
    return Reply(prediction=prediction, map=predictor.explain(scan, num_steps=question.num_steps))


def _check_age(age_years: float) -> None:
    if not math.isfinite(age_years) or age_years < 0:
        raise QuestionError("not an age", given=age_years, expected=f"years from 0 to {OLDEST_YEARS:g}")
    if age_years > OLDEST_YEARS:
        months = f"in months? {age_years:g} months are {age_years / 12:.1f} years"
        raise QuestionError("nobody is of this age", given=f"{age_years:g} years", expected="years", fix=months)

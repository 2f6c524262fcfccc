"""What is asked of a scan besides its answer, and the one way in which all who ask get it: by files, and by HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from neuroray.config import ConfigError
from neuroray.platform.generate.ages import GenerationError, check_ages
from neuroray.platform.generate.generated import check_sampling
from neuroray.platform.generate.sweep import AgesAsked, AgeSweep
from neuroray.platform.models.neuroar.generate import SamplingConfig
from neuroray.serve.ageing import AgeingPredictor
from neuroray.serve.config import ServeError
from neuroray.serve.maps import NUM_STEPS, AnswerMap
from neuroray.serve.prediction import Prediction
from neuroray.serve.predictor import Predictor
from neuroray.storage.scan import Scan

OLDEST_YEARS = 120.0
"""Above this an age is in months, or wrong."""

MOST_STEPS = 64
"""Of a map that is asked for beside an answer; each step is a pass forward and back, so it also bounds the time."""


MOST_AGES, MOST_SAMPLES = 16, 16
"""Of one question to a model that tells brains at other ages: each is a volume on the scan's own grid."""

SentFiles = Literal["none", "volumes", "all"]

_SAMPLING: Final = ("temperature", "top_k", "top_p", "age_guidance", "previous_guidance")
_AGEING: Final = ("ages", "samples", *_SAMPLING, "seed", "diagnosis", "allow_outside", "files")


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
        ages: For models that tell brains at other ages: those ages, in years.
        samples: Brains drawn for each of them.
        temperature: With which codes are drawn; 0: none is drawn.
        top_k: Among so many likeliest alone; 0: all.
        top_p: Among those that together have this probability.
        age_guidance: How far to go in the direction in which ages change what is told.
        previous_guidance: The same of the scan.
        seed: Of the draws.
        diagnosis: Of the person, as the study calls it.
        allow_outside: Ages and a diagnosis outside the training are told all the same, with a warning.
        files: What is sent besides numbers and pictures: nothing, the volume of each age, or also its difference and
            spread and the reconstruction.
    """

    sex: Literal["M", "F"] | None = None
    age_years: float | None = None
    explain: bool = False
    num_steps: int = NUM_STEPS
    ages: tuple[float, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    age_guidance: float = 1.0
    previous_guidance: float = 1.0
    seed: int = 0
    diagnosis: str | None = None
    allow_outside: bool = False
    files: SentFiles = "volumes"

    def __post_init__(self) -> None:
        if self.sex not in (None, "M", "F"):
            raise QuestionError("not a sex that models know", given=repr(self.sex), expected="M or F, or nothing")
        if self.age_years is not None:
            _check_age(self.age_years)
        if not 1 <= self.num_steps <= MOST_STEPS:
            raise QuestionError("a map cannot take so many steps", given=self.num_steps, expected=f"1 to {MOST_STEPS}")
        if self.ages:
            self.asked()

    def asked(self) -> AgesAsked:
        """What a model that tells brains at other ages is asked.

        Raises:
            QuestionError: no ages, too many, or what is no age; draws that are none.
        """
        if len(self.ages) > MOST_AGES or self.samples > MOST_SAMPLES:
            given, expected = (
                f"{len(self.ages)} ages, {self.samples} samples",
                f"{MOST_AGES} and {MOST_SAMPLES} at most",
            )
            raise QuestionError("too much is asked at once", given=given, expected=expected, fix="ask several times")
        if self.files not in get_args(SentFiles):
            raise QuestionError("no such files", given=repr(self.files), expected=" or ".join(get_args(SentFiles)))
        if not 0 <= self.seed < 2**63:
            raise QuestionError("no such seed", given=self.seed, expected="0 or more")
        try:
            age_years = check_ages(self.age_years, self.ages)
            sampling = SamplingConfig(**{name: getattr(self, name) for name in _SAMPLING})
            check_sampling(sampling, self.samples)
        except (GenerationError, ConfigError) as fault:
            raise QuestionError(fault.fault, given=fault.given, expected=fault.expected, fix=fault.fix) from None
        return AgesAsked(
            age_years=age_years,
            target_ages_years=self.ages,
            sampling=sampling,
            num_samples=self.samples,
            seed=self.seed,
            allow_outside=self.allow_outside,
            diagnosis=self.diagnosis,
        )

    def names_ageing(self) -> list[str]:
        """What of it only a model that tells brains at other ages can follow."""
        return [name for name in _AGEING if getattr(self, name) != Question.__dataclass_fields__[name].default]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What came of a question.

    Attributes:
        prediction: The answer.
        map: What it rests on, where that was asked for.
        ageing: Of a model that tells brains at other ages: these.
        files: Which of their volumes are sent.
    """

    prediction: Prediction
    map: AnswerMap | None = None
    ageing: AgeSweep | None = None
    files: SentFiles = "volumes"


def ask_predictor(predictor: Predictor, scan: Scan, question: Question) -> Reply:
    """The answer for a scan, as it was read, and its map.

    Raises:
        ScanError: a scan of another kind than the model takes, or one that cannot be prepared.
        ModelError: a scan whose shape the model cannot take, or a map of a model that has none.
        ExplainError: gradients that are no numbers.
        QuestionError: other ages of a model that tells none, or none of one that does.
        GenerationError: ages that its training has not seen.
    """
    if isinstance(predictor, AgeingPredictor):
        sweep = predictor.tell_ages(scan, question.asked())
        return Reply(
            prediction=predictor.tell(sweep, sex=question.sex),
            map=predictor.map_change(sweep) if question.explain else None,
            ageing=sweep,
            files=question.files,
        )
    idle = question.names_ageing()
    if idle:
        raise QuestionError(
            "this model tells nothing of other ages",
            given=", ".join(idle),
            expected=f"what {predictor.card.model_name} takes",
            fix="ask a model of neuroar, or leave these out",
        )
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

"""Prediction intervals by split conformal prediction: errors in people held out from training bound those in others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from neuroray.platform.evaluate.metrics import EvaluationError

LEVEL = 0.9
"""Of the intervals of answers: they hold the truth of 9 people in 10 from the same population, on average."""

NOT_RECORDED = "no interval: the model was saved without the errors of its validation people"
"""What is told of a model of an older run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionInterval:
    """Where the truth of a person lies, by the errors in others.

    Attributes:
        low: Lower end, in the target's unit.
        high: Upper end.
        level: How often such intervals hold the truth of a new person from the population of the validation people.
        num_people: Whose errors it rests on.
    """

    low: float
    high: float
    level: float
    num_people: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How far answers for a measure were off in people that the model was not trained on.

    Attributes:
        level: Of the intervals made of it.
        num_people: Whose errors were ranked, one scan of each, one person of a family.
        half_width: Of the intervals, in the target's unit; None where the people are too few for the level.
    """

    level: float
    num_people: int
    half_width: float | None

    @property
    def reason(self) -> str | None:
        """Why there is no interval; None where there is one."""
        if self.half_width is not None:
            return None
        needed = fewest_people(self.level)
        return (
            f"no interval: it would rest on the errors in {self.num_people} unrelated validation people, "
            f"and {self.level:.0%} takes {needed} or more"
        )

    def around(self, value: float) -> PredictionInterval | None:
        """The interval of an answer; None where there is none, see `reason`."""
        if self.half_width is None:
            return None
        low, high = value - self.half_width, value + self.half_width
        return PredictionInterval(low=low, high=high, level=self.level, num_people=self.num_people)

    def to_json(self) -> dict[str, Any]:
        """All of it, and how it was made."""
        return {"method": "split conformal, absolute errors of validation people", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` described."""
        return cls(level=data["level"], num_people=data["num_people"], half_width=data["half_width"])


def calibrate_errors(errors: Sequence[float], groups: Sequence[str], *, level: float = LEVEL) -> Calibration:
    """Split conformal prediction (Vovk et al. 2005; Lei et al. 2018, with absolute residuals).

    The half width is the `ceil((n + 1) level)`-th smallest of n absolute errors: an interval of this width around an
    answer for one more person holds the truth with a probability of at least `level`, whatever the model and however
    errors are distributed, as long as that person comes as the n did. The n must be independent: of the scans of one
    person, and of the people of one family, the first counts.

    Args:
        errors: Answer less truth of each scan, in the target's unit.
        groups: The family or person of each.
        level: Wanted coverage.

    Raises:
        EvaluationError: a level outside 0 to 1, or errors that are no numbers.
    """
    if not 0 < level < 1:
        raise EvaluationError("an interval cannot have this coverage", given=level, expected="between 0 and 1")
    first: dict[str, float] = {}
    for error, group in zip(errors, groups, strict=True):
        first.setdefault(group, abs(float(error)))
    sizes = np.sort(np.array(list(first.values()), dtype=np.float64))
    if not np.isfinite(sizes).all():
        raise EvaluationError("errors that are no numbers", given=f"{int((~np.isfinite(sizes)).sum())} of {len(sizes)}")
    rank = _rank(len(sizes), level)
    half_width = float(sizes[rank - 1]) if 0 < rank <= len(sizes) else None
    return Calibration(level=level, num_people=len(sizes), half_width=half_width)


def fewest_people(level: float) -> int:
    """`1 / (1 - level) - 1`: with fewer, even the largest error seen does not bound the next one so probably."""
    return math.ceil(1 / (1 - level) - 1 - 1e-9)


def read_calibrations(training: Mapping[str, Any]) -> dict[str, Calibration]:
    """By target, from what stands under `training` in a model's `config.json`; empty where nothing was recorded."""
    found = training.get("intervals") or {}
    return {name: Calibration.from_json(described) for name, described in found.items()}


def _rank(num_people: int, level: float) -> int:
    # 10 * 0.9 must not become 9.000000000000002 and so 10.
    return math.ceil((num_people + 1) * level - 1e-9)

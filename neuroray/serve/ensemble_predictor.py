"""Seeds and folds of a run that answer together: the mean, how far they differ, an interval that holds for the mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from neuroray.platform.evaluate.ensemble import EnsembleCalibration, Member, combine_answers
from neuroray.serve.maps import NUM_STEPS, AnswerMap
from neuroray.serve.prediction import ModelCard, Prediction, Said
from neuroray.storage.scan import Scan

Look = Any
"""A scan as a model sees it; only the model knows more of it."""


class Answerer(Protocol):
    """One member: a predictor whose work is parted into seeing, saying and telling."""

    @property
    def card(self) -> ModelCard:
        """That of the ensemble."""
        ...

    @property
    def sees_as(self) -> str:
        """Members that see alike share their looks."""
        ...

    def look(self, scan: Scan) -> Look:
        """Prepares and encodes a scan: most of the work."""
        ...

    def say(self, look: Look, *, sex: str | None) -> Said:
        """The answer to what was seen."""
        ...

    def tell(self, look: Look, said: Said, *, sex: str | None, age_years: float | None) -> Prediction:
        """The answer with all that is to be known of it."""
        ...

    def explain(self, scan: Scan, *, num_steps: int = ...) -> AnswerMap:
        """What this member's answer rests on."""
        ...


class EnsemblePredictor:
    """Loaded models that answer together; called as one.

    Attributes:
        card: What is told of them.
    """

    def __init__(
        self,
        card: ModelCard,
        answerers: Sequence[Answerer],
        members: Sequence[Member],
        calibration: EnsembleCalibration | None,
        no_calibration: str | None,
    ) -> None:
        self.card = card
        self._answerers = tuple(answerers)
        self._members = tuple(members)
        self._calibration = calibration
        self._no_calibration = no_calibration

    def predict(self, scan: Scan, *, sex: str | None = None, age_years: float | None = None) -> Prediction:
        """Answers for one scan, as it was read. What members see alike is prepared and encoded once.

        Args:
            scan: A volume or a run, as the models were trained on.
            sex: `M` or `F`, where it is known.
            age_years: Of the person, where it is known.

        Raises:
            ScanError: as a single model.
            ModelError: as a single model.
        """
        look, said = self._ask(scan, sex)
        return self._answerers[0].tell(look, self._combine(said), sex=sex, age_years=age_years)

    def explain(self, scan: Scan, *, num_steps: int = NUM_STEPS) -> AnswerMap:
        """The map of the member whose answer is nearest to that of all, which the facts name.

        Raises:
            ScanError: as a single model.
            ModelError: as a single model.
            ExplainError: as a single model.
        """
        _, said = self._ask(scan, None)
        nearest = _find_nearest(said, self._combine(said))
        found = self._answerers[nearest].explain(scan, num_steps=num_steps)
        of = (
            f"{self._members[nearest].path}, of {len(self._members)} models the one whose answer is nearest to the mean"
        )
        return dataclasses.replace(found, facts={**found.facts, "of": of})

    def _ask(self, scan: Scan, sex: str | None) -> tuple[Look, list[Said]]:
        """What the first sees, and what each says."""
        looks: dict[str, Look] = {}
        said = []
        for one in self._answerers:
            if one.sees_as not in looks:
                looks[one.sees_as] = one.look(scan)
            said.append(one.say(looks[one.sees_as], sex=sex))
        return looks[self._answerers[0].sees_as], said

    def _combine(self, said: Sequence[Said]) -> Said:
        folds = [member.fold for member in self._members]
        answers = [one.targets for one in said]
        weights = [one.slice_weights for one in said if one.slice_weights is not None]
        by_sex = [one.by_sex for one in said if one.by_sex is not None]
        return Said(
            targets=combine_answers(answers, folds, self._calibration, self._no_calibration),
            slice_weights=np.mean(weights, axis=0) if weights else None,
            by_sex=(float(np.mean([m for m, _ in by_sex])), float(np.mean([f for _, f in by_sex]))) if by_sex else None,
        )


def _find_nearest(said: Sequence[Said], combined: Said) -> int:
    """By the main target: its number, or the probability of the class that all together give."""
    main = combined.targets[0]

    def distance(one: Said) -> float:
        if main.value is not None:
            value = one.targets[0].value
            return float("inf") if value is None else abs(value - main.value)
        label = str(main.label)
        return abs(one.targets[0].probabilities[label] - main.probabilities[label])

    return int(np.argmin([distance(one) for one in said]))

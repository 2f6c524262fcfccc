"""Bias correction of predicted ages, fitted on controls who are not judged.

Every regression draws predictions towards the mean age: the young are told to be older, the old younger, so that a raw
gap holds age itself. Two corrections are in use, both from a line fitted on controls; de Lange's (2020) is Beheshti's
(2019) written otherwise: `pred - age - ((slope - 1) age + intercept) = pred + age - (slope age + intercept) - age`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from neuroray.platform.brain_age_gap.answers import AgeAnswer, ages_of, predictions_of
from neuroray.platform.brain_age_gap.errors import GapError

GapKind = Literal["raw", "beheshti", "cole"]
GAP_KINDS: tuple[GapKind, ...] = get_args(GapKind)
GAP_LABELS: dict[GapKind, str] = {
    "raw": "raw",
    "beheshti": "corrected for age (Beheshti, de Lange)",
    "cole": "corrected by inversion (Cole)",
}

_FEWEST_CONTROLS = 5
# Below this slope, dividing by it makes noise ten times as large.
_FLATTEST_SLOPE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class GapCorrection:
    """The line `predicted = slope * age + intercept` of controls who are not judged.

    Attributes:
        slope: 1 would need no correction; 0 is a model that sees no age.
        intercept_years: At age 0.
        num_scans: Scans of controls it was fitted on.
        num_people: People they are of.
        mean_age_years: Of these scans: what a guess would say of everybody.
        ages_years: Youngest and oldest of them.
        residual_years: Standard deviation of the predictions around the line: of a control's corrected gap.
    """

    slope: float
    intercept_years: float
    num_scans: int
    num_people: int
    mean_age_years: float
    ages_years: tuple[float, float]
    residual_years: float

    @property
    def can_invert(self) -> bool:
        """Whether Cole's correction, which divides by the slope, says anything."""
        return self.slope >= _FLATTEST_SLOPE

    def correct(
        self, kind: GapKind, ages: Float[np.ndarray, " row"], predicted: Float[np.ndarray, " row"]
    ) -> Float[np.ndarray, " row"]:
        """Predicted ages after the correction, in years; NaN where the line is too flat to be inverted.

        `beheshti` needs the true age of the person whom it corrects, and so brings every prediction nearer to it,
        whatever the model saw. `cole` does not.
        """
        if kind == "raw":
            return predicted
        line = self.slope * ages + self.intercept_years
        if kind == "beheshti":
            return predicted + ages - line
        if not self.can_invert:
            return np.full_like(predicted, np.nan)
        return (predicted - self.intercept_years) / self.slope

    def residual(self, kind: GapKind) -> float:
        """Standard deviation of a control's gap of this kind, age taken out."""
        return self.residual_years / self.slope if kind == "cole" and self.can_invert else self.residual_years


def fit_correction(controls: Sequence[AgeAnswer], judged: Sequence[AgeAnswer]) -> GapCorrection:
    """Fits the line on controls, none of whom, and no relative of whom, is judged by it.

    Args:
        controls: Scans of controls on the training or validation side, or in other folds.
        judged: Those whom the correction is for.

    Raises:
        GapError: somebody is on both sides, fewer than five controls, or controls of one age.
    """
    shared = {answer.kin for answer in controls} & {answer.kin for answer in judged}
    if shared:
        raise GapError(
            "a correction must not be fitted on those it corrects",
            given=f"{len(shared)} people or families on both sides",
            fix="fit it on controls of the training or validation side, or of other folds",
        )
    num_people = len({answer.subject for answer in controls})
    if num_people < _FEWEST_CONTROLS:
        raise GapError(
            "too few controls to fit a correction on",
            given=f"{num_people} people",
            expected=f"{_FEWEST_CONTROLS} or more who are not judged",
            fix="name the controls' group (--controls), or judge several folds and fit on the others",
        )
    ages, predicted = ages_of(controls), predictions_of(controls)
    if ages.std() == 0:
        raise GapError("controls of one age alone give no line", given=f"{ages[0]} years")
    slope, intercept = np.polyfit(ages, predicted, 1)
    residuals = predicted - (slope * ages + intercept)
    return GapCorrection(
        slope=float(slope),
        intercept_years=float(intercept),
        num_scans=len(controls),
        num_people=num_people,
        mean_age_years=float(ages.mean()),
        ages_years=(float(ages.min()), float(ages.max())),
        residual_years=float(np.sqrt((residuals**2).sum() / max(len(ages) - 2, 1))),
    )

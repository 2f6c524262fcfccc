"""What a study of the gap found, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from neuroray.platform.brain_age_gap.answers import AgeAnswer, ages_of
from neuroray.platform.brain_age_gap.association import Association
from neuroray.platform.brain_age_gap.correction import GapCorrection, GapKind
from neuroray.platform.brain_age_gap.groups import GroupComparison, HighGapTable
from neuroray.platform.brain_age_gap.slopes import Slopes
from neuroray.platform.evaluate.intervals import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseStudy:
    """One group against the controls, by one kind of gap.

    Attributes:
        kind: Of the gap.
        case: Name of the group.
        comparison: Of the two groups; None with too few.
        association: With age, sex and site held.
        tables: High gaps against the rest and against low ones.
        threshold_years: Of a high gap: one standard deviation of the gap of controls who are not judged.
    """

    kind: GapKind
    case: str
    comparison: GroupComparison | None
    association: Association
    tables: tuple[HighGapTable, ...]
    threshold_years: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GapStudy:
    """All that the report tells.

    Attributes:
        answers: Everybody judged.
        corrections: Of each fold.
        fit_on: Where the controls came from that the corrections were fitted on.
        corrected: Predicted age of each kind, in years.
        raw: Metrics of the predictions as they are, and of saying the mean age of the correction's controls
            (`guess_mae`, and `mae_gain`: by how much the model's error is smaller).
        raw_of_controls: The same of held-out controls alone; empty without controls.
        after: Metrics after each correction: what they say of the model is next to nothing.
        controls: Names of the groups of controls; empty where none were named.
        cases: Every other group against these, by every kind of gap.
        slopes: Of those who came twice, by kind of gap.
        warnings: What a reader must know.
    """

    answers: tuple[AgeAnswer, ...]
    corrections: Mapping[int, GapCorrection]
    fit_on: str
    corrected: Mapping[GapKind, Float[np.ndarray, " row"]]
    raw: Mapping[str, Estimate]
    raw_of_controls: Mapping[str, Estimate]
    after: Mapping[GapKind, Mapping[str, Estimate]]
    controls: tuple[str, ...]
    cases: tuple[CaseStudy, ...]
    slopes: Mapping[GapKind, Slopes]
    seed: int
    num_resamples: int
    warnings: tuple[str, ...] = field(default=())

    def gaps(self, kind: GapKind) -> Float[np.ndarray, " row"]:
        """Predicted less true age of each scan, in years."""
        return self.corrected[kind] - ages_of(self.answers)

    @property
    def num_people(self) -> int:
        """People judged."""
        return len({answer.subject for answer in self.answers})

    @property
    def is_useless(self) -> bool:
        """Whether the uncorrected model is not known to do better than saying the mean age of everybody."""
        return not (self.raw["mae_gain"].low > 0 and self.raw["pearson_r"].low > 0)

    @property
    def shown(self) -> GapKind:
        """The kind that figures and headline show: Cole's, which keeps years, where there is one."""
        return "cole" if "cole" in self.after else "beheshti"

    @property
    def guess_mae(self) -> float:
        """Error of saying the mean age of the correction's controls."""
        return self.raw["guess_mae"].value

"""Whether prediction intervals hold the truth of held-out people as often as they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.conformal import PredictionInterval
from neuroray.platform.evaluate.intervals import Estimate, bound_extreme, estimate


class Bounded(Protocol):
    """A held-out scan with its truth and the interval that was given for it."""

    @property
    def value(self) -> float:
        """The truth."""
        ...

    @property
    def group(self) -> str:
        """The family or person."""
        ...

    @property
    def interval(self) -> PredictionInterval | None:
        """What was given."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How often the truth lay inside.

    Attributes:
        level: How often it should.
        found: Share of held-out scans, with its interval over people.
        num_scans: Of which it was told.
        mean_width: Of the intervals, in the target's unit.
        num_people: Validation people on whose errors the intervals rest, the fewest of the folds.
    """

    level: float
    found: Estimate
    num_scans: int
    mean_width: float
    num_people: int

    def to_json(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "level": self.level,
            "coverage": self.found.to_json(),
            "num_scans": self.num_scans,
            "mean_width": self.mean_width,
            "num_validation_people": self.num_people,
        }

    def tell(self, unit: str) -> str:
        """One sentence for people."""
        found = self.found
        return (
            f"Prediction intervals that are to hold the truth of {self.level:.0%} of people held it for "
            f"{found.value:.0%} of {self.num_scans} held-out scans (95 % interval "
            f"{found.low:.0%} to {found.high:.0%}). "
            f"They are {self.mean_width:.3g}{unit} wide and rest on the errors in {self.num_people} validation people."
        )


def measure_coverage(judged: Sequence[Bounded], resamples: Float[np.ndarray, "resample row"]) -> Coverage | None:
    """Over all held-out scans; None where any of them came without an interval: a part of them would flatter."""
    bounds = [row.interval for row in judged if row.interval is not None]
    if not bounds or len(bounds) < len(judged):
        return None
    held = np.array([one.low <= row.value <= one.high for one, row in zip(bounds, judged, strict=True)], dtype=float)

    def weigh(weights: Float[np.ndarray, "resample row"]) -> dict[str, Float[np.ndarray, " resample"]]:
        return {"coverage": weights @ held / weights.sum(axis=1)}

    found = bound_extreme(estimate(weigh, resamples)["coverage"], len({row.group for row in judged}))
    return Coverage(
        level=bounds[0].level,
        found=found,
        num_scans=len(judged),
        mean_width=float(np.mean([one.high - one.low for one in bounds])),
        num_people=min(one.num_people for one in bounds),
    )

"""Intervals: what a metric could have been with other people from the same population."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
NUM_RESAMPLES = 2000
# Resamples are weighted in blocks, so that 2000 of 10,000 rows take 40 MB and not 160.
_BLOCK = 500

Weigh = Callable[[Float[np.ndarray, "resample row"]], Mapping[str, Float[np.ndarray, " resample"]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A metric with its percentile bootstrap interval.

    Attributes:
        value: On the people as they are.
        low: Lower end; NaN when no resample defined the metric.
        high: Upper end.
        num_undefined: Resamples in which the metric had no value, left out of the interval.
        kind: `exact` where the bootstrap bounds nothing, see `bound_extreme`.
    """

    value: float
    low: float
    high: float
    num_undefined: int = 0
    kind: Literal["bootstrap", "exact"] = "bootstrap"

    def against(self, chance: float) -> Literal["above", "below", "includes"]:
        """Where the interval lies with respect to what a guess reaches."""
        if self.low > chance:
            return "above"
        return "below" if self.high < chance else "includes"

    @property
    def has_width(self) -> bool:
        """False when every resample gave the same value: the bootstrap then bounds nothing."""
        return self.high > self.low

    def to_json(self) -> dict[str, Any]:
        """For report.json; what is not a number becomes null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        kept = {name: number if np.isfinite(number) else None for name, number in numbers.items()}
        return kept | {"num_undefined": self.num_undefined, "interval": self.kind}


def draw_resamples(
    groups: Sequence[str], strata: Sequence[object], *, seed: int, num_resamples: int = NUM_RESAMPLES
) -> Float[np.ndarray, "resample row"]:
    """How often each row counts in each resample, when whole groups are drawn with replacement.

    Rows of one person (or family) are not independent, so they are drawn or left out together. Groups are drawn within
    the set of strata that their rows have: each resample keeps the number of groups per class, and no class can vanish.

    Args:
        groups: The person or family of each row.
        strata: The class of each row (one and the same for all where there are none).
        seed: The same seed gives the same resamples.
        num_resamples: How many.
    """
    names, group_of_row = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    kinds: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(names)):
        rows = np.flatnonzero(group_of_row == index)
        kinds.setdefault(tuple(sorted({str(strata[int(row)]) for row in rows})), []).append(index)
    rng = np.random.default_rng(seed)
    counts = np.zeros((num_resamples, len(names)))
    for kind in sorted(kinds):
        members = kinds[kind]
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=num_resamples)
    return counts[:, group_of_row]


def estimate(weigh: Weigh, resamples: Float[np.ndarray, "resample row"]) -> dict[str, Estimate]:
    """Every metric that `weigh` computes, with the 95 % percentile interval over the resamples."""
    values = weigh(np.ones((1, resamples.shape[1])))
    blocks = [weigh(resamples[start : start + _BLOCK]) for start in range(0, len(resamples), _BLOCK)]
    return {
        name: _summarise(float(value[0]), np.concatenate([block[name] for block in blocks]))
        for name, value in values.items()
    }


def bound_extreme(found: Estimate, num_independent: int) -> Estimate:
    """An exact interval for a proportion that is 0 or 1 in the sample and so in every resample; else what was found.

    All of `num_independent` trials came out alike; Clopper and Pearson's interval for that ends at `0.025 ** (1 / n)`.
    For an AUC the trials are disjoint pairs of a positive and a negative person, one for each of the smaller class.
    """
    if found.has_width or found.value not in (0.0, 1.0) or num_independent < 1:
        return found
    reach = 1 - ((1 - LEVEL) / 2) ** (1 / num_independent)
    low, high = (1 - reach, 1.0) if found.value == 1.0 else (0.0, reach)
    return replace(found, low=low, high=high, kind="exact")


def _summarise(value: float, drawn: Float[np.ndarray, " resample"]) -> Estimate:
    defined = drawn[np.isfinite(drawn)]
    num_undefined = int(len(drawn) - len(defined))
    if len(defined) == 0:
        return Estimate(value=value, low=float("nan"), high=float("nan"), num_undefined=num_undefined)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high), num_undefined=num_undefined)

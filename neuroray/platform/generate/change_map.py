"""Change per year: how fast each voxel changes over the ages told, and whether the order of ages matters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float64

from neuroray.platform.generate.ages import GenerationError
from neuroray.platform.generate.generated import Volume
from neuroray.platform.generate.sweep import AgeSweep

_MOST_ORDERS: Final = 2000
FEWEST_AGES: Final = 5
"""Of fewer ages there are too few orders to say anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeMap:
    """The slope of each voxel over age.

    Attributes:
        values: On the file's grid, in the scan's units per year; 0 outside the brain.
        ages_years: Over which the line goes.
        linear_share: Of all that changes over these ages, the part that the lines tell; 1: every voxel on a line.
        orders_as_linear: Part of other orders of the same ages whose lines would tell as much; None where there are
            fewer ages than `FEWEST_AGES`. Small: the brains are in the order of their ages.
        regions_ml_per_year: The slope of each region's volume; NaN where it cannot be measured.
    """

    values: Volume = field(hash=False)
    ages_years: tuple[float, ...]
    linear_share: float
    orders_as_linear: float | None
    regions_ml_per_year: dict[str, float]

    @property
    def magnitudes(self) -> Volume:
        """Whichever way."""
        return np.abs(self.values)

    def to_json(self) -> dict[str, Any]:
        """What stands beside the map."""
        slopes = self.regions_ml_per_year
        return {
            "method": "change_per_year",
            "target": "the brain over age",
            "quantity": "least-squares slope of each voxel over the ages told, in the scan's units per year",
            "ages_years": list(self.ages_years),
            "linear_share": self.linear_share,
            "orders_as_linear": self.orders_as_linear,
            "regions_ml_per_year": {name: one if math.isfinite(one) else None for name, one in slopes.items()},
        }


def map_change(sweep: AgeSweep, *, seed: int = 0) -> ChangeMap:
    """The line through the brains told; it is nobody's forecast.

    The scan's own reconstruction is not among them: what a transformer does not copy well would be taken for a change.
    The present age is told like any other: see `add_present`.

    Args:
        sweep: Two ages or more.
        seed: Of the orders that are tried where there are too many for all.

    Raises:
        GenerationError: one age alone.
    """
    regions = sweep.regions
    told = [(one.age_years, one.values, regions.ages[one.age_years]) for one in sweep.made]
    told.sort(key=lambda one: one[0])
    ages = np.array([age for age, _, _ in told])
    if np.ptp(ages) == 0:
        given = f"{ages[0]:g} years alone"
        raise GenerationError("a change per year needs another age", given=given, fix="--ages 65 70 75 80")
    weights = _slope_weights(ages)
    volumes = [values for _, values, _ in told]
    slope = sum(np.float32(weight) * values for weight, values in zip(weights, volumes, strict=True))
    gram = _cross_products([values[sweep.brain] for values in volumes])
    share, orders = _weigh_orders(ages, gram, seed)
    return ChangeMap(
        values=np.asarray(slope, np.float32),
        ages_years=tuple(float(age) for age in ages),
        linear_share=share,
        orders_as_linear=orders if len(ages) >= FEWEST_AGES else None,
        regions_ml_per_year={
            name: float(weights @ [of_age[name] for _, _, of_age in told]) for name in regions.reconstruction
        },
    )


def _slope_weights(ages: Float64[np.ndarray, " age"]) -> Float64[np.ndarray, " age"]:
    """What values at these ages are weighed with, so that they sum to their slope."""
    centred = ages - ages.mean()
    return centred / (centred**2).sum()


def _cross_products(columns: Sequence[Float[np.ndarray, " voxel"]]) -> Float64[np.ndarray, "age age"]:
    """Of each two brains, about the mean over ages: all that shares of variance need."""
    stacked = np.stack(columns).astype(np.float64)
    stacked -= stacked.mean(axis=0)
    return stacked @ stacked.T


def _weigh_orders(ages: np.ndarray, gram: Float64[np.ndarray, "age age"], seed: int) -> tuple[float, float]:
    """The share that lines tell, and the part of other orders that tell as much.

    An order and its reverse have the same lines but for their sign, so the reverse is left out with the order itself.
    """
    total, count = float(np.trace(gram)), len(ages)
    if total <= 0:
        return 0.0, 1.0
    centred = ages - ages.mean()

    def share(order: Sequence[int]) -> float:
        turned = centred[list(order)]
        return float(turned @ gram @ turned / (turned @ turned) / total)

    true = share(range(count))
    if math.factorial(count) <= _MOST_ORDERS:
        orders = list(itertools.permutations(range(count)))
    else:
        generator = np.random.default_rng(seed)
        orders = [tuple(generator.permutation(count).tolist()) for _ in range(_MOST_ORDERS)]
    own = tuple(range(count))
    others = [order for order in orders if order not in (own, own[::-1])]
    as_much = sum(share(order) >= true * (1 - 1e-9) for order in others)
    return true, as_much / max(1, len(others))

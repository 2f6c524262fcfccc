"""A number that statistics gave, with its 95 % interval and p, as files and pages tell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

Z = float(norm.ppf(0.975))
"""Half the width of a 95 % Wald interval, in standard errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An estimate; NaN for what it has not.

    Attributes:
        value: The estimate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Two-sided.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    p_value: float = float("nan")

    def to_json(self) -> dict[str, float | None]:
        """For the report; what is not a finite number becomes null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high, "p_value": self.p_value}
        return {name: float(number) if np.isfinite(number) else None for name, number in numbers.items()}


def tell_effect(effect: Effect, *, digits: int = 3) -> str:
    """As `1.84 (1.2 to 2.8), p 0.004`."""
    if not np.isfinite(effect.value):
        return "undefined"
    told = f"{effect.value:.{digits}g}"
    if np.isfinite(effect.low) and np.isfinite(effect.high):
        told += f" ({effect.low:.{digits}g} to {effect.high:.{digits}g})"
    return f"{told}, p {tell_p(effect.p_value)}" if np.isfinite(effect.p_value) else told


def tell_p(p_value: float) -> str:
    """Two digits, and no zero that is none."""
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.2g}"


def to_json(value: Any) -> Any:
    """Effects inside dictionaries and lists, ready for JSON; numbers that are none become null."""
    if isinstance(value, Effect):
        return value.to_json()
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value

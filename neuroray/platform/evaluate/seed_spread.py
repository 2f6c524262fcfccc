"""How much a metric differs between trainings that differ in their seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedSpread:
    """Every seed's metrics on the same test people.

    Attributes:
        names: The seeds.
        values: By metric, one a seed.
    """

    names: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]

    def mean(self, metric: str) -> float:
        """Over seeds."""
        return float(np.mean(self.values[metric]))

    def deviation(self, metric: str) -> float:
        """Standard deviation over seeds (n - 1)."""
        return float(np.std(self.values[metric], ddof=1))

    def to_json(self) -> dict[str, Any]:
        """For report.json; what is not a number becomes null."""
        return {
            "seeds": list(self.names),
            "meaning": "each seed's value on the same test people, their mean and standard deviation (n - 1); all else "
            "in this report is of the ensemble, the mean of what the seeds say of a scan",
            "metrics": {
                name: {
                    "values": [_finite(value) for value in values],
                    "mean": _finite(self.mean(name)),
                    "sd": _finite(self.deviation(name)),
                }
                for name, values in self.values.items()
            },
        }

    def rows(self, labels: Mapping[str, str], ensemble: Mapping[str, float]) -> list[dict[str, Any]]:
        """Of the page's table: label, each seed's value, mean and deviation, and the ensemble's."""
        return [
            {
                "label": labels[name],
                "values": [_tell(value) for value in values],
                "mean": f"{_tell(self.mean(name))} \N{PLUS-MINUS SIGN} {_tell(self.deviation(name))}",
                "ensemble": _tell(ensemble[name]),
            }
            for name, values in self.values.items()
        ]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _tell(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}") if np.isfinite(value) else "not defined"

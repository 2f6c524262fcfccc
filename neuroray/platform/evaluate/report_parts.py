"""What stands in `report.json` alike, whether classes or a measure were judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neuroray.platform.evaluate.evidence import Fold
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.metrics import Metric

FORMAT = 1


def describe_metrics(table: Mapping[str, Metric], found: Mapping[str, Estimate]) -> dict[str, Any]:
    """Values with their intervals, which side is better, and how they stand to chance."""
    return {name: _describe(table[name], estimate) for name, estimate in found.items()}


def describe_interval(kind: str, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """How intervals were made."""
    return {"level": 0.95, "kind": kind, "num_resamples": num_resamples, "seed": seed}


def describe_folds(folds: Sequence[Fold]) -> list[dict[str, Any]]:
    """Who was on which side, and what each fold reached by itself."""
    return [
        {
            "fold": fold.index,
            "counts": {side: dict(counts) for side, counts in fold.counts.items()},
            "num_subjects": dict(fold.num_subjects),
            "metrics": {name: finite_or_none(value) for name, value in fold.metrics.items()},
            **fold.facts,
        }
        for fold in folds
    ]


def finite_or_none(value: float) -> float | None:
    """JSON has no word for NaN."""
    return float(value) if np.isfinite(value) else None


def _describe(metric: Metric, found: Estimate) -> dict[str, Any]:
    described: dict[str, Any] = {**found.to_json(), "better": metric.better}
    if metric.chance is not None:
        described |= {"chance": metric.chance, "interval_against_chance": found.against(metric.chance)}
    return described

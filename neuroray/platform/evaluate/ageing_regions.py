"""Regions that grow and shrink with age: what each row says has changed against what has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.ageing_evidence import (
    COPY,
    LONG_GAP_YEARS,
    REAL,
    JudgedPair,
    draw_pairs,
    estimate_means,
)
from neuroray.platform.evaluate.intervals import Estimate, estimate
from neuroray.platform.evaluate.metrics import regression_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionRow:
    """A region as one row tells it.

    Attributes:
        change: Of predicted against true change in ml: `pearson_r`, `mae`, `bias`, and the least-squares `slope`.
        volume_error_ml: Mean distance of its volume, as it draws it, from the follow-up's.
        less_copy_ml: The same less that of copying, pair by pair.
        less_copy_long_ml: Of pairs with a long gap alone; None where there are none.
        num_pairs: With a volume.
    """

    change: Mapping[str, Estimate]
    volume_error_ml: Estimate
    less_copy_ml: Estimate
    less_copy_long_ml: Estimate | None
    num_pairs: int

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "num_pairs": self.num_pairs,
            "change": {name: found.to_json() for name, found in self.change.items()},
            "volume_error_ml": self.volume_error_ml.to_json(),
            "less_copy_ml": self.less_copy_ml.to_json(),
            "less_copy_long_ml": None if self.less_copy_long_ml is None else self.less_copy_long_ml.to_json(),
        }


def weigh_regions(
    judged: Sequence[JudgedPair], rows: Sequence[str], *, seed: int, num_resamples: int
) -> dict[str, dict[str, RegionRow]]:
    """By region, then by row; a region that could not be measured in two pairs or more is left out.

    Labelled structures have the row `REAL` besides.
    """
    found: dict[str, dict[str, RegionRow]] = {}
    # Labelled structures are those of some pairs alone.
    regions = dict.fromkeys(region for one in judged if one.volumes_ml for region in one.volumes_ml["target"])
    for region in regions:
        known = [one for one in judged if one.volumes_ml and _is_known(one, region, rows)]
        if len(known) >= 2:
            draws = {"seed": seed, "num_resamples": num_resamples}
            real = [REAL] if all(region in one.changes_ml.get(REAL, {}) for one in known) else []
            found[region] = {row: _weigh_row(known, region, row, **draws) for row in (*real, *rows)}
    return found


def weigh_change(
    true_ml: Float[np.ndarray, " pair"],
    told_ml: Float[np.ndarray, " pair"],
    resamples: Float[np.ndarray, "resample pair"],
) -> dict[str, Estimate]:
    """Correlation, mean distance and mean difference, and the slope of what is told over what is true."""

    def weigh(weights: Float[np.ndarray, "resample pair"]) -> dict[str, Float[np.ndarray, " resample"]]:
        metrics = regression_metrics(true_ml, told_ml, weights)
        share = weights / weights.sum(axis=1, keepdims=True)
        away = true_ml - (share @ true_ml)[:, None]
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (share * away * told_ml).sum(axis=1) / (share * away**2).sum(axis=1)
        return {**{name: metrics[name] for name in ("pearson_r", "mae", "bias")}, "slope": slope}

    return estimate(weigh, resamples)


def _is_known(one: JudgedPair, region: str, rows: Sequence[str]) -> bool:
    volumes = [one.volumes_ml[row].get(region, np.nan) for row in ("previous", "target", *rows)]
    return bool(np.isfinite(volumes).all())


def _weigh_row(judged: Sequence[JudgedPair], region: str, row: str, **draws: int) -> RegionRow:
    resamples = draw_pairs(judged, **draws)
    true_ml = np.array([one.true_change_ml(region) for one in judged])
    told_ml = np.array([one.changes_ml[row][region] for one in judged])
    error, less = _find_errors(judged, region, row)
    means = estimate_means({"error": error, "less": less}, resamples)
    long = [one for one in judged if abs(one.pair.gap_years) >= LONG_GAP_YEARS]
    less_long = None
    if long:
        of_long = {"less": _find_errors(long, region, row)[1]}
        less_long = estimate_means(of_long, draw_pairs(long, **draws))["less"]
    return RegionRow(
        change=weigh_change(true_ml, told_ml, resamples),
        volume_error_ml=means["error"],
        less_copy_ml=means["less"],
        less_copy_long_ml=less_long,
        num_pairs=len(judged),
    )


def _find_errors(
    judged: Sequence[JudgedPair], region: str, row: str
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """How far the row's volume is from the follow-up's, and how much farther than that of copying."""
    truth, told, copied = (np.array([one.volumes_ml[name][region] for one in judged]) for name in ("target", row, COPY))
    error = np.abs(told - truth)
    return error, error - np.abs(copied - truth)

"""What an evaluation of a model of brains at other ages found: every row of its table on the same held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.evidence import Fold
from neuroray.platform.evaluate.image_quality import IMAGE_METRICS
from neuroray.platform.evaluate.intervals import Estimate, draw_resamples, estimate
from neuroray.platform.evaluate.metrics import Metric
from neuroray.platform.evaluate.perceptual import PERCEPTUAL, PERCEPTUAL_METRIC, PerceptualMeter, keep_measured
from neuroray.platform.evaluate.visits import VisitPair

if TYPE_CHECKING:
    from neuroray.platform.evaluate.ageing_pictures import Picture
    from neuroray.platform.evaluate.ageing_regions import RegionRow
    from neuroray.platform.evaluate.ageing_sweep import SweepFound
    from neuroray.platform.evaluate.labelled_regions import LabelMeter

COPY, CEILING, MODEL = "copy", "ceiling", "model"
ROW_LABELS: Final = {
    COPY: "Copy of the previous scan",
    CEILING: "Ceiling: the true follow-up through the tokenizer",
    MODEL: "The model",
}
"""The rows that every table has, in its order."""
REAL: Final = "real"
"""Of labelled structures alone: the real follow-up, measured as told brains are, which shows what that way can see."""
REAL_LABEL: Final = "The real follow-up, measured as told brains are"
PAIR_METRICS: Final = IMAGE_METRICS | {
    PERCEPTUAL: PERCEPTUAL_METRIC,
    "token_accuracy": Metric(label="Tokens right", better="higher"),
    "changed_token_accuracy": Metric(label="Changed tokens right", better="higher"),
}
LONG_GAP_YEARS: Final = 5.0
"""From here on a gap is long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedPair:
    """One held-out pair and how near each row came to its follow-up.

    Attributes:
        fold: Which model told it.
        pair: Ids go into pairs.csv and nowhere else.
        scores: By row, the metrics of `PAIR_METRICS`; NaN what a row has not; without the perceptual distance where
            nothing measures it.
        volumes_ml: Soft volumes of regions, and those of labels: of `previous`, `target` and every row, then by region;
            a labelled structure only where both visits have labels.
        changes_ml: By row and region, what it says has changed: against what it says of the previous scan itself, so
            that what the tokenizer blurs is in both. Of labelled structures also of `REAL`.
        predicted_ages_years: What another model reads off `previous`, `target` and every row.
        predicted_starts_years: The same off what each row says of the previous scan itself.
    """

    fold: int
    pair: VisitPair
    scores: Mapping[str, Mapping[str, float]]
    volumes_ml: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    changes_ml: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    predicted_ages_years: Mapping[str, float] = field(default_factory=dict)
    predicted_starts_years: Mapping[str, float] = field(default_factory=dict)

    def true_change_ml(self, region: str) -> float:
        """From the previous scan to the follow-up, both measured alike."""
        return self.volumes_ml["target"][region] - self.volumes_ml["previous"][region]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsFound:
    """Every row on some pairs.

    Attributes:
        num_pairs: How many.
        num_people: Of how many people.
        metrics: By row, then by metric: the mean over pairs with its interval over people.
        gains: The mean of row minus copy, pair by pair, of all rows but the copy.
    """

    num_pairs: int
    num_people: int
    metrics: Mapping[str, Mapping[str, Estimate]]
    gains: Mapping[str, Mapping[str, Estimate]]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "num_pairs": self.num_pairs,
            "num_people": self.num_people,
            "metrics": describe_table(self.metrics),
            "less_copy": describe_table(self.gains),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeRead:
    """What another model reads off each row, against the age that was told.

    Attributes:
        label: The other model.
        rows: By row, and for the real follow-up (`target`): `mae`, `bias`, `pearson_r` and `slope` of age read over
            age told, and `years_per_year`: how much older it looks than what the row tells of the scan's own age.
    """

    label: str
    rows: Mapping[str, Mapping[str, Estimate]]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        rows = {row: {name: found.to_json() for name, found in told.items()} for row, told in self.rows.items()}
        return {"reader": self.label, "rows": rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Downstream:
    """Age told of held-out real scans by one kind of regression, trained on real scans, and on generated ones besides.

    Attributes:
        metrics: `real` and `real_and_generated`: `mae`, `r2`.
        less_error: Mean absolute error of the second less that of the first, scan by scan, in years.
        num_real: Scans trained on, over all folds.
        num_generated: Brains trained on besides.
        num_judged: Real scans judged.
    """

    metrics: Mapping[str, Mapping[str, Estimate]]
    less_error: Estimate
    num_real: int
    num_generated: int
    num_judged: int

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "metrics": {row: {name: one.to_json() for name, one in told.items()} for row, told in self.metrics.items()},
            "less_error_years": self.less_error.to_json(),
            "num_real": self.num_real,
            "num_generated": self.num_generated,
            "num_judged": self.num_judged,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeingEvaluation:
    """All that the report tells.

    Attributes:
        row_labels: What each row of the table is, in its order.
        judged: Every pair.
        whole: On all pairs.
        by_gap: The same on pairs with a short and with a long gap; a part without pairs is left out.
        backward: Whether older scans were given and younger ones told.
        regions: Change by region and row; empty where it cannot be measured.
        main_region: The one that widens with age.
        region_method: How volumes were measured.
        sweep: The same people at rising ages.
        read_age: What another model reads off each row; None where none could be had.
        downstream: Age told from real scans, and from real and generated ones; None where it was not asked for.
        perceptual: What measured the perceptual distance; None where it was not.
        labels: Label maps by which structures were measured besides; None where there were none.
        pictures: Of some pairs.
        warnings: What is to be known before the numbers are believed.
    """

    model_name: str
    modality: str
    row_labels: Mapping[str, str]
    judged: tuple[JudgedPair, ...]
    folds: tuple[Fold, ...]
    whole: RowsFound
    by_gap: Mapping[str, RowsFound]
    regions: Mapping[str, Mapping[str, RegionRow]]
    main_region: str
    region_method: str
    sweep: SweepFound
    backward: bool
    seed: int
    num_resamples: int
    provenance: Mapping[str, Any]
    read_age: AgeRead | None = None
    downstream: Downstream | None = None
    perceptual: PerceptualMeter | None = None
    labels: LabelMeter | None = None
    pictures: tuple[Picture, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def num_people(self) -> int:
        """People judged, each counted once."""
        return len({row.pair.previous.subject for row in self.judged})

    @property
    def is_external(self) -> bool:
        """Whether another cohort was judged."""
        return self.provenance.get("protocol") == "external"

    @property
    def who(self) -> str:
        """Who was judged, in words."""
        return "people of another cohort" if self.is_external else "held-out people"

    @property
    def metrics(self) -> dict[str, Metric]:
        """What was measured of images and tokens."""
        return find_metrics(self.judged)


def find_metrics(judged: Sequence[JudgedPair]) -> dict[str, Metric]:
    """`PAIR_METRICS`, the perceptual distance only where it was measured."""
    return keep_measured(PAIR_METRICS, (scores for one in judged for scores in one.scores.values()))


def weigh_rows(judged: Sequence[JudgedPair], rows: Sequence[str], *, seed: int, num_resamples: int) -> RowsFound:
    """Means over pairs, and what each row has over the copy; families, or people, are drawn whole."""
    resamples = draw_pairs(judged, seed=seed, num_resamples=num_resamples)
    names = find_metrics(judged)
    values = {row: {name: column(judged, row, name) for name in names} for row in rows}
    less = {
        row: {name: found - values[COPY][name] for name, found in columns.items()}
        for row, columns in values.items()
        if row != COPY
    }
    return RowsFound(
        num_pairs=len(judged),
        num_people=len({row.pair.previous.subject for row in judged}),
        metrics={row: estimate_means(columns, resamples) for row, columns in values.items()},
        gains={row: estimate_means(columns, resamples) for row, columns in less.items()},
    )


def part_by_gap(judged: Sequence[JudgedPair]) -> dict[str, list[JudgedPair]]:
    """Pairs with a short and with a long gap; what is empty is left out."""
    short = [row for row in judged if abs(row.pair.gap_years) < LONG_GAP_YEARS]
    long = [row for row in judged if abs(row.pair.gap_years) >= LONG_GAP_YEARS]
    parts = {f"under {LONG_GAP_YEARS:g} years": short, f"{LONG_GAP_YEARS:g} years or more": long}
    return {name: some for name, some in parts.items() if some}


def column(judged: Sequence[JudgedPair], row: str, metric: str) -> Float[np.ndarray, " pair"]:
    """A metric of a row over pairs."""
    return np.array([one.scores[row].get(metric, float("nan")) for one in judged])


def draw_pairs(judged: Sequence[JudgedPair], *, seed: int, num_resamples: int) -> Float[np.ndarray, "resample pair"]:
    """How often each pair counts in each resample."""
    groups = [one.pair.group for one in judged]
    return draw_resamples(groups, ["all"] * len(groups), seed=seed, num_resamples=num_resamples)


def estimate_means(
    columns: Mapping[str, Float[np.ndarray, " pair"]], resamples: Float[np.ndarray, "resample pair"]
) -> dict[str, Estimate]:
    """The mean of each column over the pairs that have it, with its interval; NaN where none has."""

    def weigh(weights: Float[np.ndarray, "resample pair"]) -> dict[str, Float[np.ndarray, " resample"]]:
        found = {}
        for name, values in columns.items():
            known = np.isfinite(values)
            total = weights @ known
            with np.errstate(invalid="ignore", divide="ignore"):
                found[name] = np.where(total > 0, weights @ np.where(known, values, 0) / total, np.nan)
        return found

    return estimate(weigh, resamples)


def describe_table(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """For report.json, by row and then by what was measured."""
    return {row: {name: found.to_json() for name, found in columns.items()} for row, columns in table.items()}

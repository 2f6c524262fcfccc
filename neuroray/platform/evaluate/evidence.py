"""What an evaluation found, as plain values: who was judged, how well, in which parts, looking where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from neuroray.platform.evaluate.intervals import Estimate, bound_extreme, draw_resamples, estimate
from neuroray.platform.evaluate.metrics import classification_metrics, confusion_counts
from neuroray.platform.evaluate.seed_spread import SeedSpread

# Below two people a class, an AUC within a stratum is one coin.
_FEWEST_PER_CLASS = 2
_NUM_AGE_GROUPS = 3
_SHARED_FRACTION = 0.5


class JudgedPerson(Protocol):
    """What is known of somebody judged besides the answer."""

    @property
    def age_years(self) -> float | None:
        """At the scan."""
        ...

    @property
    def sex(self) -> str | None:
        """F, M, or another word."""
        ...

    @property
    def site(self) -> str | None:
        """Where the scan was made."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One held-out scan and what the model said of it.

    Attributes:
        fold: Which model said it.
        scan_id: Of the store; goes into predictions.csv and nowhere else.
        subject: Whose scan it is; as above.
        family_id: Whom the person is related to; as above.
        label: The true class, as an index.
        probabilities: Of every class.
        slice_weights: How much each slice counted; empty for a model without slices.
        position_mm: World coordinate of these slices along the slice axis.
        from_cache: Whether the features were in the store already.
    """

    fold: int
    scan_id: str
    subject: str
    family_id: str | None = None
    label: int
    probabilities: tuple[float, ...]
    age_years: float | None = None
    sex: str | None = None
    site: str | None = None
    slice_weights: tuple[float, ...] = ()
    position_mm: tuple[float, ...] = ()
    from_cache: bool = True

    @property
    def group(self) -> str:
        """The family or the person: what a bootstrap draws or leaves as a whole."""
        return f"family:{self.family_id}" if self.family_id else f"subject:{self.subject}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """The metric of a part of the people; `found` is None where it has too few of a class."""

    variable: str
    level: str
    counts: tuple[int, ...]
    found: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionProfile:
    """Where on the slice axis the weight lay, on a grid that all scans share.

    Attributes:
        axis: `axial`, `coronal` or `sagittal`.
        position_mm: The grid: where at least half of the scans have slices.
        density_per_mm: Slice weight over slice distance, for each scan; NaN where a scan has no slices.
        labels: The true class of each scan.
        uniform_per_mm: The density if every slice counted alike, mean over scans.
        effective_slices: exp(entropy) of each scan's weights: how many slices alike would be as spread.
        num_slices: Slices with a place in the volume, of each scan.
    """

    axis: str
    position_mm: Float[np.ndarray, " point"]
    density_per_mm: Float[np.ndarray, "row point"]
    labels: Int[np.ndarray, " row"]
    uniform_per_mm: float
    effective_slices: Float[np.ndarray, " row"]
    num_slices: Int[np.ndarray, " row"]

    def mean(self, label: int | None = None) -> Float[np.ndarray, " point"]:
        """Mean density of a class, or of all; NaN where none of its scans has slices."""
        rows = self.density_per_mm if label is None else self.density_per_mm[self.labels == label]
        defined = np.isfinite(rows)
        count = defined.sum(axis=0)
        return np.where(count > 0, np.where(defined, rows, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One model of the run: who was on which side, how it learned, how it did on its own test people.

    Attributes:
        counts: Scans per class for each side.
        num_subjects: People on each side.
        curves: `train_loss`, `val_loss`, `val_score` and, of it, `kept`, as (epoch, value) points.
        metrics: On its own test side, without intervals.
        facts: Fingerprints and versions, for the report.
    """

    index: int
    counts: Mapping[str, Mapping[str, int]]
    num_subjects: Mapping[str, int]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """All that the report tells.

    Attributes:
        metrics: Over scans.
        metrics_by_person: Over people, of whom the scans with one label are averaged; empty where it was not asked for,
            or all have one scan.
        seeds: Where several seeds were judged together; the rest is then of the mean of what they say.
    """

    model_name: str
    classes: tuple[str, ...]
    target: str
    modality: str
    judged: tuple[Judged, ...]
    folds: tuple[Fold, ...]
    metrics: Mapping[str, Estimate]
    strata: tuple[Stratum, ...]
    attention: AttentionProfile | None
    resamples: Float[np.ndarray, "resample row"]
    seed: int
    provenance: Mapping[str, Any]
    warnings: tuple[str, ...] = field(default=())
    metrics_by_person: Mapping[str, Estimate] = field(default_factory=dict)
    seeds: SeedSpread | None = None

    @property
    def labels(self) -> Int[np.ndarray, " row"]:
        """True classes, one a held-out scan."""
        return np.array([row.label for row in self.judged])

    @property
    def probabilities(self) -> Float[np.ndarray, "row class"]:
        """What the model said of each."""
        return np.array([row.probabilities for row in self.judged])

    @property
    def positive(self) -> str | None:
        """The class that sensitivity speaks of; None with more than two."""
        return self.classes[-1] if len(self.classes) == 2 else None

    @property
    def confusion(self) -> Float[np.ndarray, "true predicted"]:
        """Counts of true against likeliest class."""
        return confusion_counts(self.labels, self.probabilities, np.ones((1, len(self.judged))))[0]

    @property
    def num_people(self) -> int:
        """People judged, each counted once."""
        return len({row.subject for row in self.judged})


def draw_for(judged: Sequence[Judged], *, seed: int, num_resamples: int) -> Float[np.ndarray, "resample row"]:
    """Resamples over families or people, within classes."""
    groups, labels = [row.group for row in judged], [row.label for row in judged]
    return draw_resamples(groups, labels, seed=seed, num_resamples=num_resamples)


def measure(judged: Sequence[Judged], resamples: Float[np.ndarray, "resample row"]) -> dict[str, Estimate]:
    """Every classification metric with its interval; rates without a single error, or hit, get an exact one."""
    labels, probabilities = np.array([row.label for row in judged]), np.array([row.probabilities for row in judged])
    found = estimate(partial(classification_metrics, labels, probabilities), resamples)
    num_classes = probabilities.shape[1]
    people = [len({row.group for row in judged if row.label == index}) for index in range(num_classes)]
    trials = {"accuracy": len({row.group for row in judged}), "balanced_accuracy": min(people)}
    if num_classes == 2:
        trials |= {"auc": min(people), "specificity": people[0], "sensitivity": people[1]}
    return {name: bound_extreme(value, trials.get(name, 0)) for name, value in found.items()}


def average_by_person(judged: Sequence[Judged]) -> list[Judged]:
    """One row a person and fold, the mean of what is said of his or her scans; another label makes another row."""
    rows: dict[tuple[int, str, int], list[Judged]] = {}
    for row in judged:
        rows.setdefault((row.fold, row.subject, row.label), []).append(row)
    means = [tuple(np.mean([row.probabilities for row in some], axis=0).tolist()) for some in rows.values()]
    return [replace(some[0], probabilities=mean) for some, mean in zip(rows.values(), means, strict=True)]


def stratify(
    judged: Sequence[Judged], num_classes: int, *, metric: str, seed: int, num_resamples: int
) -> tuple[Stratum, ...]:
    """The metric by sex, by third of age and by site, as far as known; a variable with one level is left out."""
    found = []
    for variable, levels in part_people(judged).items():
        if len(levels) < 2:
            continue
        for level, rows in levels.items():
            counts = np.bincount([row.label for row in rows], minlength=num_classes)
            value = None
            if counts.min() >= _FEWEST_PER_CLASS:
                value = measure(rows, draw_for(rows, seed=seed, num_resamples=num_resamples))[metric]
            found.append(Stratum(variable=variable, level=level, counts=tuple(counts.tolist()), found=value))
    return tuple(found)


def part_people[Row: JudgedPerson](judged: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Those judged by sex, by third of age and by site, as far as known."""
    parts: dict[str, dict[str, list[Row]]] = {"Sex": {}, "Age": {}, "Site": {}}
    names = {"F": "women", "M": "men"}
    for row in sorted(judged, key=lambda row: (row.sex or "", row.site or "", row.age_years or 0)):
        if row.sex:
            parts["Sex"].setdefault(names.get(row.sex, row.sex), []).append(row)
        if row.site:
            parts["Site"].setdefault(row.site, []).append(row)
    aged = sorted((row.age_years, index) for index, row in enumerate(judged) if row.age_years is not None)
    for third in np.array_split(np.array([index for _, index in aged], dtype=int), _NUM_AGE_GROUPS) if aged else ():
        rows = [judged[index] for index in third]
        if rows:
            ages = [row.age_years for row in rows if row.age_years is not None]
            parts["Age"].setdefault(f"{min(ages):.0f} to {max(ages):.0f} years", []).extend(rows)
    return parts


def profile_attention(judged: Sequence[Judged], axis: str) -> AttentionProfile | None:
    """Slice weights of all scans on one grid in world millimetres; None for a model without slices.

    Positions are the scans' own world coordinates: where scans are not registered, the same millimetre is not the same
    anatomy.
    """
    with_slices = [row for row in judged if len(row.slice_weights) > 1]
    if not with_slices:
        return None
    spacings = [float(np.median(np.abs(np.diff(row.position_mm)))) for row in with_slices]
    every = np.concatenate([row.position_mm for row in with_slices])
    grid = np.arange(every.min(), every.max() + min(spacings) / 2, min(spacings))
    densities, effective = [], []
    for row, spacing_mm in zip(with_slices, spacings, strict=True):
        order = np.argsort(row.position_mm)
        position, weights = np.array(row.position_mm)[order], np.array(row.slice_weights)[order]
        densities.append(np.interp(grid, position, weights / spacing_mm, left=np.nan, right=np.nan))
        positive = weights[weights > 0]
        effective.append(np.exp(-(positive * np.log(positive)).sum()))
    num_slices = np.array([len(row.slice_weights) for row in with_slices])
    # At the ends only a few scans have slices; their mean would jump with each that falls away.
    shared = np.isfinite(densities).mean(axis=0) >= _SHARED_FRACTION
    return AttentionProfile(
        axis=axis,
        position_mm=grid[shared],
        density_per_mm=np.array(densities)[:, shared],
        labels=np.array([row.label for row in with_slices]),
        uniform_per_mm=float(np.mean(1 / (num_slices * np.array(spacings)))),
        effective_slices=np.array(effective),
        num_slices=num_slices,
    )

"""The same people at rising ages: whether ventricles widen at each step, how fast, what is read of the age itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from neuroray.platform.evaluate.ageing_evidence import JudgedPair, draw_pairs, estimate_means
from neuroray.platform.evaluate.ageing_rows import AgeTeller, Told
from neuroray.platform.evaluate.intervals import Estimate, bound_extreme, draw_resamples
from neuroray.platform.evaluate.visits import Visit

NUM_AGES: Final = 6
"""The age of the scan, and as many steps up to the longest gap of the training as make so many ages."""
_LEAST_SPAN_YEARS = 1.0

Measure = Callable[[np.ndarray, np.ndarray, Visit], Mapping[str, float]]
"""Regions in ml of a volume: of the volume, the brain in it, and the visit whose space it is in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptPerson:
    """One person at rising ages, the first of them that of the scan.

    Attributes:
        group: Family or person.
        ages_years: Rising.
        volumes_ml: By region, at each age.
        same_age_l1: Mean distance, in the brain, of what is told of the scan's own age from where changes start: the
            scan's reconstruction, or the scan where its detail is kept.
        reconstruction_l1: That of the reconstruction from the scan.
        same_age_change_ml: By region, the same of volumes: told less where changes start.
        reconstruction_error_ml: Reconstructed less measured.
        read_ages_years: What another model reads off each; empty without one.
    """

    group: str
    ages_years: tuple[float, ...]
    volumes_ml: Mapping[str, tuple[float, ...]]
    same_age_l1: float
    reconstruction_l1: float
    same_age_change_ml: Mapping[str, float]
    reconstruction_error_ml: Mapping[str, float]
    read_ages_years: tuple[float, ...] = ()

    def slope(self, values: Sequence[float]) -> float:
        """Least squares, per year."""
        return float(np.polyfit(self.ages_years, values, 1)[0])

    def rises(self, region: str) -> bool:
        """Whether the region is larger at each age than at the one before: Spearman's correlation with age is 1."""
        return bool((np.diff(self.volumes_ml[region]) > 0).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFound:
    """What the ages show.

    Attributes:
        people: Everybody who could be told at older ages.
        num_left_out: People at the end of the training's ages.
        slope_ml: Of the main region per year: `model` over the ages, and `real` between visits.
        rising_share: People whose main region rises at each step.
        same_age: `l1` told and `l1_reconstruction`, and `within`: the share of people of whom the first is not larger.
        read_slope: Years read off by another model per year told; None without one.
    """

    people: tuple[SweptPerson, ...]
    num_left_out: int
    slope_ml: Mapping[str, Estimate]
    rising_share: Estimate | None
    same_age: Mapping[str, Estimate]
    read_slope: Estimate | None

    def to_json(self) -> dict[str, Any]:
        """All but the people."""
        return {
            "num_people": len(self.people),
            "num_left_out": self.num_left_out,
            "num_ages": NUM_AGES,
            "slope_ml_per_year": {name: found.to_json() for name, found in self.slope_ml.items()},
            "rising_share": None if self.rising_share is None else self.rising_share.to_json(),
            "same_age": {name: found.to_json() for name, found in self.same_age.items()},
            "read_years_per_year": None if self.read_slope is None else self.read_slope.to_json(),
        }


def choose_ages(age_years: float, card: Mapping[str, Any]) -> tuple[float, ...]:
    """The age of the scan and older ones, as far as gaps and ages of the training reach; none where that is no year."""
    span = min(card["gap_range_years"][1], card["age_range_years"][1] - age_years)
    if span < _LEAST_SPAN_YEARS or age_years < card["age_range_years"][0]:
        return ()
    return tuple(float(age) for age in age_years + np.linspace(0, span, NUM_AGES))


def sweep_person(
    visit: Visit,
    ages_years: Sequence[float],
    teller: AgeTeller,
    *,
    group: str,
    reconstruction: np.ndarray,
    measure: Measure,
    read_age: Callable[[np.ndarray, Visit], float] | None = None,
) -> SweptPerson:
    """Tells one person at each of these ages.

    Args:
        visit: The scan.
        ages_years: As `choose_ages` gives them.
        teller: The model.
        group: Family or person.
        reconstruction: Of the scan by the tokenizer.
        measure: Of regions.
        read_age: What another model reads off a volume.
    """
    told: list[Told] = [teller.tell(visit, age) for age in ages_years]
    volumes = [measure(one.volume, visit.brain, visit) for one in told]
    start, rebuilt, own = (
        measure(volume, visit.brain, visit) for volume in (told[0].start, reconstruction, visit.volume)
    )
    return SweptPerson(
        group=group,
        ages_years=tuple(ages_years),
        volumes_ml={region: tuple(one[region] for one in volumes) for region in rebuilt},
        same_age_l1=_distance(told[0].volume, told[0].start, visit.brain),
        reconstruction_l1=_distance(reconstruction, visit.volume, visit.brain),
        same_age_change_ml={region: volumes[0][region] - value for region, value in start.items()},
        reconstruction_error_ml={region: value - own[region] for region, value in rebuilt.items()},
        read_ages_years=() if read_age is None else tuple(read_age(one.volume, visit) for one in told),
    )


def weigh_sweep(
    people: Sequence[SweptPerson],
    judged: Sequence[JudgedPair],
    region: str,
    *,
    num_left_out: int,
    seed: int,
    num_resamples: int,
) -> SweepFound:
    """Means over people, with intervals over families.

    Args:
        people: Those that were told at several ages.
        judged: All pairs, for the real slope.
        region: The one that widens with age.
        num_left_out: People at the end of the training's ages.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
    """
    draws = {"seed": seed, "num_resamples": num_resamples}
    real = np.array([one.true_change_ml(region) / one.pair.gap_years for one in judged])
    slopes = {"real": estimate_means({"slope": real}, draw_pairs(judged, **draws))["slope"]}
    if not people:
        empty: dict[str, Estimate] = {}
        return SweepFound(
            people=(), num_left_out=num_left_out, slope_ml=slopes, rising_share=None, same_age=empty, read_slope=None
        )
    groups = [one.group for one in people]
    resamples = draw_resamples(groups, ["all"] * len(groups), **draws)
    near, rebuilt = (np.array([getattr(one, name) for one in people]) for name in ("same_age_l1", "reconstruction_l1"))
    columns = {
        "slope": np.array([one.slope(one.volumes_ml[region]) for one in people]),
        "rising": np.array([float(one.rises(region)) for one in people]),
        "l1": near,
        "l1_reconstruction": rebuilt,
        "within": (near <= rebuilt).astype(float),
    }
    if people[0].read_ages_years:
        columns["read"] = np.array([one.slope(one.read_ages_years) for one in people])
    found = estimate_means(columns, resamples)
    num_groups = len(set(groups))
    return SweepFound(
        people=tuple(people),
        num_left_out=num_left_out,
        slope_ml={"model": found["slope"], **slopes},
        rising_share=bound_extreme(found["rising"], num_groups),
        same_age={
            "l1": found["l1"],
            "l1_reconstruction": found["l1_reconstruction"],
            "within": bound_extreme(found["within"], num_groups),
        },
        read_slope=found.get("read"),
    )


def _distance(
    one: Float[np.ndarray, "x y z"], other: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"]
) -> float:
    """Mean absolute difference of values in [0, 1]."""
    return float(np.abs(one - other)[brain].mean(dtype=np.float64)) / 2

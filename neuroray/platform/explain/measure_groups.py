"""Maps of many people's numbers on one grid: means, agreement of signs, decades of age, parts with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.explain.groups import GroupMap, average_shares, lay_over
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.runs import Share

NO_AGE = "unknown"
"""The decade of people whose age is not known."""


class MapMean:
    """Maps added up one after another on the grid of the first, so that a hundred people take no more than four.

    Args:
        affine: Of the grid, voxel indices to world in mm.
        shape: Of the grid.
        adds_up: Values are amounts in a voxel: between grids they are scaled by the voxels' sizes, and sums stay.
    """

    def __init__(self, affine: Float[np.ndarray, "4 4"], shape: tuple[int, int, int], *, adds_up: bool) -> None:
        self.affine = affine
        self.shape = shape
        self._adds_up = adds_up
        self._sum, self._magnitudes = np.zeros(shape), np.zeros(shape)
        self._above, self._below = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
        self._num_people = 0

    def add(self, values: Float[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> None:
        """One more person's map, laid over by its affine, linearly."""
        laid = lay_over(values, affine, self.affine, self.shape)
        if self._adds_up:
            laid = laid * abs(np.linalg.det(np.linalg.inv(affine) @ self.affine))
        self._sum += laid
        self._magnitudes += np.abs(laid)
        self._above += laid > 0
        self._below += laid < 0
        self._num_people += 1

    def result(self) -> GroupMap:
        """Means over people, nobody scaled.

        Raises:
            ExplainError: nobody was added.
        """
        if not self._num_people:
            raise ExplainError("a group needs people", given="none")
        has_value = self._above + self._below
        same = np.where(self._sum > 0, self._above, np.where(self._sum < 0, self._below, 0))
        return GroupMap(
            values=(self._sum / self._num_people).astype(np.float32),
            magnitudes=(self._magnitudes / self._num_people).astype(np.float32),
            agreement=(same / np.maximum(has_value, 1)).astype(np.float32),
            num_people=self._num_people,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What is kept of one person of a group, beside the maps' sums.

    Attributes:
        group: Family, or person of none.
        decade: First year of the decade of age, as text; `NO_AGE`.
        parts: Shares by kind of part.
    """

    group: str
    decade: str
    parts: Mapping[str, Sequence[Share]]


def name_decade(age_years: float | None) -> str:
    """ "60" for 60 up to below 70; `NO_AGE` for None."""
    return NO_AGE if age_years is None or not np.isfinite(age_years) else str(int(age_years // 10) * 10)


def average_parts(
    members: Sequence[Member], kind: str, *, seed: int, num_resamples: int = 2000
) -> dict[str, dict[str, Estimate]]:
    """Mean total, share of magnitudes and density of each part over people, with bootstrap intervals over families."""
    shares = [member.parts[kind] for member in members]
    groups = [member.group for member in members]
    columns = ("total", "magnitude_fraction", "density")
    return average_shares(shares, groups, columns=columns, seed=seed, num_resamples=num_resamples)


def average_decades(members: Sequence[Member], kind: str) -> dict[str, dict[str, dict[str, float]]]:
    """Mean total and density of each part by decade of age, youngest first, without intervals: decades are small."""
    found = {}
    for decade in sort_decades({member.decade for member in members}):
        tables = [{share.name: share for share in one.parts[kind]} for one in members if one.decade == decade]
        names = set.intersection(*(set(table) for table in tables))
        found[decade] = {
            name: {
                what: float(np.mean([getattr(table[name], what) for table in tables])) for what in ("total", "density")
            }
            for name in sorted(names)
        }
    return found


def sort_decades(decades: set[str]) -> list[str]:
    """Youngest first, those without an age last."""
    return sorted(decades, key=lambda decade: (decade == NO_AGE, int(decade) if decade != NO_AGE else 0))

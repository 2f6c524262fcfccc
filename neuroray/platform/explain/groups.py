"""Explanations of several people together: a mean map on one grid, and networks with intervals over people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from neuroray.platform.evaluate.intervals import Estimate, draw_resamples, estimate
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.runs import RunExplanation, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupMap:
    """Mean maps of a group on the grid of its first member.

    Attributes:
        values: Mean of signed maps.
        magnitudes: Mean of magnitudes.
        agreement: Of those who have a value there, the part whose sign is that of the mean; 0 where nobody has one.
        num_people: Members.
    """

    values: Float[np.ndarray, "x y z"]
    magnitudes: Float[np.ndarray, "x y z"]
    agreement: Float[np.ndarray, "x y z"]
    num_people: int


def average_maps(explanations: Sequence[RunExplanation], affines: Sequence[Float[np.ndarray, "4 4"]]) -> GroupMap:
    """Mean maps, each laid by its affine (world mm, linear interpolation) over the grid of the first.

    The scans must share a space: one template's, or one head position. Each person's map is divided by its sum of
    magnitudes first, so that nobody counts more for a larger change of the score.

    Raises:
        ExplainError: no maps, or another number of affines.
    """
    if not explanations or len(explanations) != len(affines):
        raise ExplainError(
            "a group needs a map and an affine of each member",
            given=f"{len(explanations)} maps, {len(affines)} affines",
        )
    shape = explanations[0].values.shape
    signed, sizes = [], []
    for explanation, affine in zip(explanations, affines, strict=True):
        whole = float(explanation.magnitudes.sum(dtype=np.float64)) or 1.0
        signed.append(lay_over(explanation.values / whole, affine, affines[0], shape))
        sizes.append(lay_over(explanation.magnitudes / whole, affine, affines[0], shape))
    mean = np.mean(signed, axis=0)
    has_value = np.abs(signed) > 0
    same = ((np.sign(signed) == np.sign(mean)) & has_value).sum(axis=0)
    return GroupMap(
        values=mean.astype(np.float32),
        magnitudes=np.mean(sizes, axis=0).astype(np.float32),
        agreement=(same / np.maximum(has_value.sum(axis=0), 1)).astype(np.float32),
        num_people=len(explanations),
    )


def lay_over(
    values: Float[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    onto: Float[np.ndarray, "4 4"],
    shape: tuple[int, ...],
) -> Float[np.ndarray, "x y z"]:
    """A map on another grid of the same world: linear between voxels, 0 beyond them."""
    if np.allclose(affine, onto) and values.shape == shape:
        return np.asarray(values, dtype=np.float64)
    to_index = np.linalg.inv(affine) @ onto
    # A homogeneous matrix, in the order of scipy: from places on the new grid to places on the old.
    return ndimage.affine_transform(np.asarray(values, dtype=np.float64), to_index, output_shape=shape, order=1)


def average_shares(
    shares: Sequence[Sequence[Share]],
    groups: Sequence[str],
    *,
    columns: Sequence[str] = ("density", "magnitude_fraction"),
    seed: int = 0,
    num_resamples: int = 2000,
) -> dict[str, dict[str, Estimate]]:
    """Means of each network over people, with bootstrap intervals.

    Args:
        shares: Of each person; networks that somebody lacks are left out.
        groups: Family or person of each, drawn or left as a whole.
        columns: Which numbers of a share, `density` among them.
        seed: Of the resamples.
        num_resamples: How many.

    Returns:
        By network, largest mean density first: the columns.
    """
    tables = [{share.name: share for share in person} for person in shares]
    names = set.intersection(*(set(table) for table in tables)) if tables else set()
    resamples = draw_resamples(groups, [0] * len(groups), seed=seed, num_resamples=num_resamples)
    found = {}
    for name in names:
        of_people = {what: np.array([getattr(table[name], what) for table in tables]) for what in columns}

        def weigh(weights: np.ndarray, of_people: dict[str, np.ndarray] = of_people) -> dict[str, Any]:
            return {what: weights @ column / weights.sum(axis=1) for what, column in of_people.items()}

        found[name] = estimate(weigh, resamples)
    return dict(sorted(found.items(), key=lambda item: (-item[1]["density"].value, item[0])))

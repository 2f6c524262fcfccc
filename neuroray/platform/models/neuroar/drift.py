"""Drift: how latents of people change with the years on average, by age and by what each scan has at a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neuroray.platform.models.neuroar.quantiser import shrink
from neuroray.platform.models.neuroar.quantiser_config import Shape

if TYPE_CHECKING:
    from jaxtyping import Float

    Fits = Float[Tensor, "place pair channel"]

_TINY = 1e-12
# Of the mean square of what is regressed on; from hardly any ridge to one that leaves hardly anything.
_RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_PLACES_AT_ONCE = 256


class Drift(NamedTuple):
    """The change of the training people's latents by decade, all scales behind each other.

    Attributes:
        rate: On average, at the age `centre`.
        speeding: How much larger the rate is a decade later.
        leaning: By how much each channel of the rate grows with each channel of what the scan has at the place, beyond
            `contents`. Where a border lies elsewhere in a brain than in most, it moves elsewhere.
        contents: What scans have at each place on average.
        centre: In tens of years.
    """

    rate: Float[Tensor, "token channel"]
    speeding: Float[Tensor, "token channel"]
    leaning: Float[Tensor, "token of_channel channel"]
    contents: Float[Tensor, "token channel"]
    centre: float


def measure_drift(
    before: Float[Tensor, "pair channel x y z"],
    after: Float[Tensor, "pair channel x y z"],
    ages_years: Float[Tensor, "pair 2"],
    scales: Sequence[Shape],
) -> Drift:
    """Least squares at each place of each scale.

    Of rate and speeding as much is kept as stands out from what visits differ by chance (the positive part of James
    and Stein's estimate): where nothing changes, what a few people's noise leaves would else be taken for change. What
    is left is regressed on what the scans have there, by a ridge for each scale that is chosen by leaving out pair by
    pair; no ridge is among the choices that leaves nothing. Scans stand for this with the mean of both visits: what is
    chance in one visit is in its contents and, turned round, in its change, and would be taken for a way back.

    Args:
        before: Latents of one visit.
        after: Of the next.
        ages_years: At both; not all equal.
        scales: The coarsest first.
    """
    decades = (ages_years[:, 1] - ages_years[:, 0]).double() / 10
    midway = ages_years.double().mean(1) / 10
    # Around this age the rate and its change with age are told apart: one does not lean on the other.
    centre = (decades.square() * midway).sum() / decades.square().sum()
    bent = decades * (midway - centre)
    found = []
    for scale in scales:
        moved, held = (
            shrink(one.double(), scale).flatten(2).permute(2, 0, 1) for one in (after - before, (after + before) / 2)
        )
        rate, rest = _fit(moved, decades)
        speeding, rest = _fit(rest, bent)
        spread = rest.square().sum((1, 2)) / max(1, len(decades) - 2)
        rate = _keep_what_stands_out(rate, spread / decades.square().sum())
        speeding = _keep_what_stands_out(speeding, spread / bent.square().sum().clamp_min(_TINY))
        weights = decades.square() / decades.square().sum()
        contents = (weights[:, None] * held).sum(1)
        rest = moved - decades[:, None] * rate[:, None] - bent[:, None] * speeding[:, None]
        leaning = _lean(decades[:, None] * (held - contents[:, None]), rest)
        found.append((rate, speeding, leaning, contents))
    rate, speeding, leaning, contents = (torch.cat(parts).float() for parts in zip(*found, strict=True))
    return Drift(rate, speeding, leaning, contents, float(centre))


def _fit(moved: Fits, by: Float[Tensor, " pair"]) -> tuple[Float[Tensor, "place channel"], Fits]:
    """The slope at each place, and what it leaves; no slope where all are asked for alike."""
    column = by[:, None]
    slope = (column * moved).sum(1) / column.square().sum().clamp_min(_TINY)
    return slope, moved - column * slope[:, None]


def _keep_what_stands_out(slope: Float[Tensor, "place channel"], noise: Float[Tensor, " place"]) -> Tensor:
    share = 1 - noise / slope.square().sum(1).clamp_min(_TINY)
    return share.clamp_min(0)[:, None] * slope


def _lean(by: Fits, rest: Fits) -> Float[Tensor, "place of_channel channel"]:
    """Ridge regression of what is left on what is there, place by place; 0 where that foretells nothing left out."""
    parts = [slice(start, start + _PLACES_AT_ONCE) for start in range(0, len(by), _PLACES_AT_ONCE)]
    ridges = torch.tensor(_RIDGES, dtype=by.dtype)
    errors = sum((_leave_one_out(by[part], rest[part], ridges) for part in parts), torch.zeros_like(ridges))
    best = int(errors.argmin())
    if float(errors[best]) >= float(rest.square().sum()):
        return by.new_zeros(len(by), by.shape[2], rest.shape[2])
    solved = []
    for part in parts:
        left, sizes, right = torch.linalg.svd(by[part], full_matrices=False)
        shares = sizes / (sizes.square() + ridges[best] * _scale_of(sizes)).clamp_min(_TINY)
        solved.append(right.mT @ (shares[..., None] * (left.mT @ rest[part])))
    return torch.cat(solved)


def _leave_one_out(by: Fits, rest: Fits, ridges: Float[Tensor, " ridge"]) -> Float[Tensor, " ridge"]:
    """The squared error of each pair by a ridge regression on the others, summed (Allen's PRESS, in closed form)."""
    left, sizes, _ = torch.linalg.svd(by, full_matrices=False)
    turned, errors = left.mT @ rest, []
    for ridge in ridges:
        shares = sizes.square() / (sizes.square() + ridge * _scale_of(sizes)).clamp_min(_TINY)
        leverage = (left.square() * shares[:, None]).sum(2, keepdim=True)
        errors.append(((rest - left @ (shares[..., None] * turned)) / (1 - leverage).clamp_min(1e-6)).square().sum())
    return torch.stack(errors)


def _scale_of(sizes: Float[Tensor, "place rank"]) -> Float[Tensor, "place 1"]:
    return sizes.square().mean(1, keepdim=True)

"""NearestHead: codes told by their distances from what the previous scan asks for, plus a learned change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser, shrink
from neuroray.platform.models.neuroar.quantiser_config import Shape
from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig

if TYPE_CHECKING:
    from jaxtyping import Float

_SHARPNESS_AT_FIRST = 0.4
# Few numbers that matter much, and steps of an optimiser that are of one size for all: they count tenfold.
_QUICKLY = 10.0


class Unchanged(NamedTuple):
    """What the `nearest` head starts from, in two ways, to be lessened by what the target has so far.

    Attributes:
        own: The previous scan's code at each place and scale, and all that it had before: so that a target which has
            the same so far is told the same code.
        whole: All that it has, shrunk: more exact, for finer scales tell what the code has rounded off.
        shown: 1, or 0 for rows whose previous scan is hidden.
        decades: Tens of years to the target, by which learned change is multiplied; 0 where ages are hidden.
        midway: The age halfway to the target, in tens of years.
    """

    own: Float[Tensor, "batch token code_channel"]
    whole: Float[Tensor, "batch token code_channel"]
    shown: Float[Tensor, "batch 1 1"]
    decades: Float[Tensor, "batch 1 1"]
    midway: Float[Tensor, "batch 1 1"]


class Drift(NamedTuple):
    """The average change of the training people's latents, all scales behind each other.

    Attributes:
        rate: By decade, at the age `centre`.
        speeding: How much larger the rate is a decade later.
        centre: In tens of years.
    """

    rate: Float[Tensor, "token channel"]
    speeding: Float[Tensor, "token channel"]
    centre: float


class NearestHead(nn.Module):
    """Logits fall with the squared distance of a code from the told vector, as steeply as each scale learns.

    Were a target's true vector spread about the told one alike in all directions, these would be the log probabilities
    of its nearest codes, for codes that are far from each other. What the previous scan asks for is multiplied by a
    learned number per scale, for of what the last scales tell of one visit little is left in the next; what is learned
    and the drift, which is the average change of the training people at such an age, by the years to the target, so
    that at the scan's own age there is none.
    """

    codes: Tensor
    levels: Tensor
    drift: Tensor
    speeding: Tensor
    centre: Tensor
    scale_of: Tensor

    def __init__(self, config: NeuroARConfig) -> None:
        super().__init__()
        number = len(config.scales)
        self.change = nn.Linear(config.width, config.quantiser.code_dim)
        self.log_sharpness = nn.Parameter(torch.full((number,), math.log(_SHARPNESS_AT_FIRST) / _QUICKLY))
        self.log_kept = nn.Parameter(torch.zeros(number))
        # How much of the exact way to count, before a sigmoid: three quarters at first.
        self.share_whole = nn.Parameter(torch.full((number,), math.log(3) / _QUICKLY))
        # What the training people's latents change on average, at each place and scale (`Drift`).
        self.register_buffer("drift", torch.zeros(config.num_tokens, config.quantiser.code_dim))
        self.register_buffer("speeding", torch.zeros(config.num_tokens, config.quantiser.code_dim))
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("codes", torch.zeros(config.quantiser.num_codes, config.quantiser.code_dim))
        self.register_buffer("levels", torch.ones(number))
        sizes = torch.tensor([math.prod(scale) for scale in config.scales])
        self.register_buffer("scale_of", torch.arange(number).repeat_interleave(sizes), persistent=False)

    @torch.no_grad()
    def adopt(self, quantiser: MultiScaleQuantiser, config: NeuroARConfig) -> None:
        """Takes over the codes of the tokenizer, and how large each scale adds them."""
        self.codes.copy_(quantiser.codebook.codes)
        if config.quantiser.level_sizes:
            self.levels.copy_(quantiser.levels.sizes)

    @torch.no_grad()
    def drift_by(self, drift: Drift) -> None:
        """Starts from this average change."""
        self.drift.copy_(drift.rate)
        self.speeding.copy_(drift.speeding)
        self.centre.fill_(drift.centre)

    def forward(
        self,
        tokens: Float[Tensor, "batch token channel"],
        unchanged: Unchanged,
        so_far: Float[Tensor, "batch token code_channel"],
        offset: int,
    ) -> tuple[Float[Tensor, "batch token code"], Float[Tensor, "batch token code_channel"]]:
        """Logits, and the told vectors in the codes' size, in float32.

        Args:
            tokens: Some in a row.
            unchanged: Of all tokens.
            so_far: What the target has before each of these.
            offset: Number of the first.
        """
        part = slice(offset, offset + tokens.shape[1])
        scales = self.scale_of[part]
        share = (_QUICKLY * self.share_whole.float()).sigmoid()[scales, None]
        asked = (1 - share) * unchanged.own[:, part] + share * unchanged.whole[:, part] - so_far.float()
        # A rate that is linear in age, summed over the years to the target, is that halfway times the years.
        rate = self.drift[part].float() + (unchanged.midway - self.centre.float()) * self.speeding[part].float()
        asked = asked + unchanged.decades * rate
        kept = (_QUICKLY * self.log_kept.float()).exp()[scales, None] / self.levels.float()[scales, None]
        change = self.change(tokens.to(self.change.weight.dtype)).float()
        told = unchanged.shown * kept * asked + unchanged.decades * change
        codes = self.codes.float()
        nearness = told @ codes.T - codes.square().sum(-1) / 2
        return nearness * (_QUICKLY * self.log_sharpness.float()).exp()[scales, None], told


def measure_drift(
    changes: Float[Tensor, "pair channel x y z"], ages_years: Float[Tensor, "pair 2"], scales: Sequence[Shape]
) -> Drift:
    """What latents change in ten years on average, and how that changes with age, by least squares at each place.

    Of each place as much as stands out from what visits differ by chance (the positive part of James and Stein's
    estimate): where nothing changes, what a few people's noise leaves would else be taken for change.

    Args:
        changes: From one visit to the next.
        ages_years: At both visits; not all equal.
        scales: The coarsest first.
    """
    decades = (ages_years[:, 1] - ages_years[:, 0]).double() / 10
    midway = ages_years.double().mean(1) / 10
    # Around this age the rate and its change with age are told apart: one does not lean on the other.
    centre = (decades.square() * midway).sum() / decades.square().sum()
    bent = decades * (midway - centre)
    rates, speedings = [], []
    for scale in scales:
        moved = shrink(changes.double(), scale).flatten(2).transpose(1, 2)
        rate, rest = _fit(moved, decades)
        speeding, rest = _fit(rest, bent)
        spread = rest.square().sum((0, 2)) / max(1, len(moved) - 2)
        rates.append(_keep_what_stands_out(rate, spread / decades.square().sum()))
        speedings.append(_keep_what_stands_out(speeding, spread / bent.square().sum().clamp_min(1e-12)))
    return Drift(torch.cat(rates).float(), torch.cat(speedings).float(), float(centre))


def _fit(moved: Float[Tensor, "pair token channel"], by: Float[Tensor, " pair"]) -> tuple[Tensor, Tensor]:
    """The slope at each place, and what it leaves; no slope where all are asked for alike."""
    column = by[:, None, None]
    slope = (column * moved).sum(0) / column.square().sum().clamp_min(1e-12)
    return slope, moved - column * slope


def _keep_what_stands_out(slope: Float[Tensor, "token channel"], noise: Float[Tensor, " token"]) -> Tensor:
    share = 1 - noise / slope.square().sum(1).clamp_min(1e-12)
    return share.clamp_min(0)[:, None] * slope

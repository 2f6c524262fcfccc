"""NearestHead: codes told by their distances from what the previous scan asks for, plus a learned change."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from neuroray.platform.models.neuroar.drift import Drift
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
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


class NearestHead(nn.Module):
    """Logits fall with the squared distance of a code from the told vector, as steeply as each scale learns.

    Were a target's true vector spread about the told one alike in all directions, these would be the log probabilities
    of its nearest codes, for codes that are far from each other. What the previous scan asks for is multiplied by a
    learned number per scale, for of what the last scales tell of one visit little is left in the next; what is learned
    and the drift, which is how the training people's latents change at such an age and place, by the years to the
    target, so that at the scan's own age there is none.
    """

    codes: Tensor
    levels: Tensor
    drift: Tensor
    speeding: Tensor
    leaning: Tensor
    contents: Tensor
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
        tokens, channels = config.num_tokens, config.quantiser.code_dim
        self.register_buffer("drift", torch.zeros(tokens, channels))
        self.register_buffer("speeding", torch.zeros(tokens, channels))
        self.register_buffer("leaning", torch.zeros(tokens, channels, channels))
        self.register_buffer("contents", torch.zeros(tokens, channels))
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
        """Starts from this change."""
        self.drift.copy_(drift.rate)
        self.speeding.copy_(drift.speeding)
        self.leaning.copy_(drift.leaning)
        self.contents.copy_(drift.contents)
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
        asked = asked + unchanged.decades * self._tell_rate(unchanged, part)
        kept = (_QUICKLY * self.log_kept.float()).exp()[scales, None] / self.levels.float()[scales, None]
        change = self.change(tokens.to(self.change.weight.dtype)).float()
        told = unchanged.shown * kept * asked + unchanged.decades * change
        codes = self.codes.float()
        nearness = told @ codes.T - codes.square().sum(-1) / 2
        return nearness * (_QUICKLY * self.log_sharpness.float()).exp()[scales, None], told

    def _tell_rate(self, unchanged: Unchanged, part: slice) -> Float[Tensor, "batch token code_channel"]:
        """The change by decade that such a brain has at such an age."""
        # A rate that is linear in age, summed over the years to the target, is that halfway times the years.
        rate = self.drift[part].float() + (unchanged.midway - self.centre.float()) * self.speeding[part].float()
        beyond, leaning = unchanged.whole[:, part].float() - self.contents[part].float(), self.leaning[part].float()
        told = rate + unchanged.shown * torch.einsum("btc,tcd->btd", beyond, leaning)
        # As it was measured: by what will be there halfway (the midpoint rule).
        halfway = beyond + unchanged.decades / 2 * told
        return rate + unchanged.shown * torch.einsum("btc,tcd->btd", halfway, leaning)

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
    """

    own: Float[Tensor, "batch token code_channel"]
    whole: Float[Tensor, "batch token code_channel"]
    shown: Float[Tensor, "batch 1 1"]
    decades: Float[Tensor, "batch 1 1"]


class NearestHead(nn.Module):
    """Logits fall with the squared distance of a code from the told vector, as steeply as each scale learns.

    Were a target's true vector spread about the told one alike in all directions, these would be the log probabilities
    of its nearest codes, for codes that are far from each other. What the previous scan asks for is multiplied by a
    learned number per scale, for of what the last scales tell of one visit little is left in the next; what is learned
    and the drift, which is the average change of the training people, by the years to the target, so that at the scan's
    own age there is none.
    """

    codes: Tensor
    levels: Tensor
    drift: Tensor
    scale_of: Tensor

    def __init__(self, config: NeuroARConfig) -> None:
        super().__init__()
        number = len(config.scales)
        self.change = nn.Linear(config.width, config.quantiser.code_dim)
        self.log_sharpness = nn.Parameter(torch.full((number,), math.log(_SHARPNESS_AT_FIRST) / _QUICKLY))
        self.log_kept = nn.Parameter(torch.zeros(number))
        # How much of the exact way to count, before a sigmoid: three quarters at first.
        self.share_whole = nn.Parameter(torch.full((number,), math.log(3) / _QUICKLY))
        # By decade, at each place and scale: what the training people's latents change on average (`start_from`).
        self.register_buffer("drift", torch.zeros(config.num_tokens, config.quantiser.code_dim))
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
        asked = asked + unchanged.decades * self.drift[part].float()
        kept = (_QUICKLY * self.log_kept.float()).exp()[scales, None] / self.levels.float()[scales, None]
        change = self.change(tokens.to(self.change.weight.dtype)).float()
        told = unchanged.shown * kept * asked + unchanged.decades * change
        codes = self.codes.float()
        nearness = told @ codes.T - codes.square().sum(-1) / 2
        return nearness * (_QUICKLY * self.log_sharpness.float()).exp()[scales, None], told


def measure_drift(
    changes: Float[Tensor, "pair channel x y z"], decades: Float[Tensor, " pair"], scales: Sequence[Shape]
) -> Float[Tensor, "token channel"]:
    """What latents change in ten years on average, at each place of each scale, the scales behind each other.

    Of each place as much as stands out from what visits differ by chance (the positive part of James and Stein's
    estimate): where nothing changes, what a few people's noise leaves would else be taken for change.

    Args:
        changes: From one visit to the next.
        decades: Between them, in tens of years; not all 0.
        scales: The coarsest first.
    """
    found = []
    squares = decades.double().square().sum()
    for scale in scales:
        moved = shrink(changes.double(), scale).flatten(2).transpose(1, 2)
        drift = (decades.double()[:, None, None] * moved).sum(0) / squares
        rest = (moved - decades.double()[:, None, None] * drift).square().sum((0, 2)) / max(1, len(moved) - 1)
        share = 1 - rest / squares / drift.square().sum(1).clamp_min(1e-12)
        found.append(share.clamp_min(0)[:, None] * drift)
    return torch.cat(found).float()

"""DoRA on some rows of a linear layer: weight-decomposed low-rank adaptation (arXiv 2402.09353), merged afterwards.

Vision transformers of timm make queries, keys and values by one linear layer. peft adapts layers as wholes, so that of
such a layer it would adapt the keys too, with one pair of factors for all three; here each range of rows has its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Float


class DoraRows(nn.Module):
    """The update of one range of rows: `W' = m (W + s B A) / |W + s B A|`, row by row.

    Attributes:
        down: A, `rank input`; drawn as linear layers are.
        up: B, `row rank`; 0 at first, so that nothing is changed.
        magnitude: m, `row`: at first the norms of the rows of W.
    """

    def __init__(self, weight: Float[Tensor, "row input"], *, rank: int, scale: float) -> None:
        super().__init__()
        rows, inputs = weight.shape
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.magnitude = nn.Parameter(weight.detach().norm(dim=1))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def adapt(self, weight: Float[Tensor, "row input"]) -> Float[Tensor, "row input"]:
        """W'."""
        moved = weight + self.scale * (self.up @ self.down)
        return moved * (self.magnitude / moved.norm(dim=1))[:, None]

    def forward(
        self,
        weight: Float[Tensor, "row input"],
        inputs: Float[Tensor, "... input"],
        dropped: Float[Tensor, "... input"],
    ) -> Float[Tensor, "... row"]:
        """The adapted rows' outputs; what goes through the factors is `dropped`, the inputs after dropout."""
        moved = weight + self.scale * (self.up @ self.down)
        # As in the paper (section 4.3), no gradient passes through the norm: it saves memory and changes little.
        ratio = self.magnitude / moved.norm(dim=1).detach()
        low_rank = functional.linear(functional.linear(dropped, self.down), self.up)
        return ratio * (functional.linear(inputs, weight) + self.scale * low_rank)


class DoraLinear(nn.Module):
    """A frozen linear layer of which some ranges of rows are adapted.

    Args:
        linear: The layer; its own weight and bias stay as they are.
        ranges: First row and the row behind the last, of each range, without overlap.
        rank: r.
        alpha: The update is scaled by `alpha / rank`.
        dropout: Of what goes into the factors, in training.

    Raises:
        ModelError: ranges that overlap or lie outside of the layer.
    """

    def __init__(
        self, linear: nn.Linear, ranges: tuple[tuple[int, int], ...], *, rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__()
        bounds = [bound for one in ranges for bound in one]
        if bounds != sorted(set(bounds)) or not bounds or bounds[0] < 0 or bounds[-1] > linear.out_features:
            # Ranges that touch would share a bound; nothing needs them.
            raise ModelError("no ranges of rows of this layer", given=ranges, expected=f"within {linear.out_features}")
        self.linear = linear.requires_grad_(False)
        self.ranges = ranges
        self.dropout = dropout
        self.updates = nn.ModuleList(
            DoraRows(linear.weight[start:stop], rank=rank, scale=alpha / rank) for start, stop in ranges
        )

    def forward(self, inputs: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """The layer's outputs, of the adapted rows the adapted ones."""
        weight, bias = self.linear.weight, self.linear.bias
        dropped = functional.dropout(inputs, self.dropout, self.training)
        parts, done = [], 0
        for (start, stop), update in zip(self.ranges, self.updates, strict=True):
            parts += [functional.linear(inputs, weight[done:start])] if start > done else []
            parts.append(update(weight[start:stop], inputs, dropped))
            done = stop
        parts += [functional.linear(inputs, weight[done:])] if done < len(weight) else []
        outputs = torch.cat(parts, dim=-1)
        return outputs if bias is None else outputs + bias

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A plain linear layer that gives the same outputs as this one in eval mode."""
        weight = self.linear.weight.clone()
        for (start, stop), update in zip(self.ranges, self.updates, strict=True):
            assert isinstance(update, DoraRows)
            weight[start:stop] = update.adapt(weight[start:stop])
        merged = nn.Linear(self.linear.in_features, self.linear.out_features, bias=self.linear.bias is not None)
        merged.weight.copy_(weight)
        if self.linear.bias is not None:
            merged.bias.copy_(self.linear.bias)
        return merged.to(weight)

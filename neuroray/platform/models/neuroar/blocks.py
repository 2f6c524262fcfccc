"""Parts of the transformer: attention over scales so far without a mask, a look at the ages, AdaLN."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig

if TYPE_CHECKING:
    from jaxtyping import Float

    Tokens = Float[Tensor, "batch token channel"]

_LARGEST_SCALE = 100.0


class Memory(NamedTuple):
    """Keys and values of tokens that later ones may look at."""

    keys: Float[Tensor, "batch head token channel"]
    values: Float[Tensor, "batch head token channel"]


class ScaleAttention(nn.Module):
    """Each scale looks at itself and at all before it, and at what is remembered.

    One call per scale on keys that grow, and no mask: the hidden half is not computed, and fast kernels apply. Where
    tokens are told one by one, each looks at itself and at all before it, by the kernels' own causal mask.
    """

    def __init__(self, config: NeuroARConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.normalise = config.normalise_keys
        self.by_token = config.order == "token"
        self.project_in = nn.Linear(config.width, 3 * config.width, bias=False)
        # A bias of keys would shift all scores of a query alike: it changes nothing, so there is none.
        self.query_bias = nn.Parameter(torch.zeros(config.width))
        self.value_bias = nn.Parameter(torch.zeros(config.width))
        self.project_out = nn.Linear(config.width, config.width)
        if self.normalise:
            self.log_scale = nn.Parameter(torch.full((config.num_heads, 1, 1), math.log(4.0)))

    def forward(self, tokens: Tokens, ends: Sequence[int], memory: Memory | None) -> tuple[Tokens, Memory]:
        """What the tokens have seen, and all that later ones may see.

        Args:
            tokens: Scales behind each other.
            ends: 0, and behind which token each scale ends.
            memory: Of tokens before these, which all of these see.
        """
        bias = torch.cat([self.query_bias, torch.zeros_like(self.query_bias), self.value_bias])
        projected = self.project_in(tokens) + bias.to(tokens.dtype)
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        strength = 0.25 / math.sqrt(query.shape[-1])
        if self.normalise:
            scale = self.log_scale.clamp_max(math.log(_LARGEST_SCALE)).exp()
            query = (functional.normalize(query, dim=-1) * scale).to(value.dtype)
            key, strength = functional.normalize(key, dim=-1).to(value.dtype), 1.0
        offset = 0
        if memory is not None:
            offset = memory.keys.shape[2]
            key, value = torch.cat([memory.keys, key], 2), torch.cat([memory.values, value], 2)
        # Of tokens one by one: all at once with nothing remembered (training), or a single one that sees everything.
        causal = self.by_token and query.shape[2] > 1
        assert not causal or offset == 0
        spans = [(0, query.shape[2])] if causal else list(pairwise(ends))
        seen = [
            functional.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, : offset + end],
                value[:, :, : offset + end],
                is_causal=causal,
                scale=strength,
            )
            for start, end in spans
        ]
        return self.project_out(torch.cat(seen, 2).transpose(1, 2).flatten(2)), Memory(key, value)


class AgeAttention(nn.Module):
    """Each token looks at the ages; what it adds is 0 at first."""

    def __init__(self, config: NeuroARConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.project_query = nn.Linear(config.width, config.width)
        self.project_ages = nn.Linear(config.width, 2 * config.width, bias=False)
        self.project_out = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tokens, ages: Float[Tensor, "batch age channel"]) -> Tokens:
        """What they have seen."""
        query = self.project_query(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key, value = self.project_ages(ages).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.project_out(seen.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Scale attention, a look at the ages, MLP; norms without weights, scaled and shifted by age (AdaLN)."""

    def __init__(self, config: NeuroARConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.attention = ScaleAttention(config)
        self.age_attention = AgeAttention(config) if config.cross_attention else None
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulate = nn.Linear(width, 6 * width) if config.adaln == "own" else None
        if config.adaln != "own":
            self.offsets = nn.Parameter(torch.zeros(6, width))

    def forward(
        self,
        tokens: Tokens,
        condition: Float[Tensor, "batch 1 channel"],
        ages: Float[Tensor, "batch age channel"],
        ends: Sequence[int],
        memory: Memory | None = None,
    ) -> tuple[Tokens, Memory]:
        """The tokens, and what later ones may see of them.

        Args:
            tokens: Scales behind each other.
            condition: Of each row, for AdaLN: before this block's own weights; where these are shared, behind them.
            ages: What is looked at.
            ends: See `ScaleAttention`.
            memory: See `ScaleAttention`.
        """
        if self.modulate is not None:
            factors = self.modulate(functional.silu(condition)).unflatten(-1, (6, -1))
        else:
            factors = condition.unflatten(-1, (6, -1)) + self.offsets
        gamma1, gamma2, scale1, scale2, shift1, shift2 = factors.unbind(2)
        seen, kept = self.attention(_norm(tokens) * (1 + scale1) + shift1, ends, memory)
        tokens = tokens + gamma1 * seen
        if self.age_attention is not None:
            tokens = tokens + self.age_attention(_norm(tokens), ages)
        return tokens + gamma2 * self.mlp(_norm(tokens) * (1 + scale2) + shift2), kept


def _norm(tokens: Tokens) -> Tokens:
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)


def init_block(block: Block, config: NeuroARConfig) -> None:
    """VAR's initial weights: what is added to a token starts small, the more so the more blocks there are."""
    std = math.sqrt(1 / config.width / 3)
    for module in block.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    last = block.mlp[2]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        for layer in (block.attention.project_out, last):
            layer.weight.div_(math.sqrt(2 * config.depth))
        if block.age_attention is not None:
            nn.init.zeros_(block.age_attention.project_out.weight)
        if block.modulate is not None:
            init_modulation(block.modulate, config)
        elif config.adaln == "none":
            block.offsets[:2] = 1
        else:
            block.offsets.normal_(std=math.sqrt(1 / config.width))
            block.offsets[:2] *= config.gamma


def init_modulation(layer: nn.Linear, config: NeuroARConfig) -> None:
    """Halves it, and makes the two factors of what is added small."""
    with torch.no_grad():
        layer.weight.mul_(0.5)
        layer.weight[: 2 * config.width] *= config.gamma

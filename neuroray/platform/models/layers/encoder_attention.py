"""Attention inside a vision transformer of timm, as weights: seen while it runs, and rolled out to the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Float


def find_attentions(backbone: Any, name: str) -> list[Any]:
    """The attention layers, first block first.

    Raises:
        ModelError: the backbone is no vision transformer whose attention can be seen.
    """
    blocks = getattr(backbone, "blocks", None)
    found = [getattr(block, "attn", None) for block in blocks] if isinstance(blocks, _Blocks) else []
    if not found or not all(hasattr(attention, "fused_attn") for attention in found):
        raise ModelError(
            f"{name} has no attention between tokens that can be seen", expected="a vision transformer of timm"
        )
    return found


@contextmanager
def capture_attention(attentions: Sequence[Any]) -> Iterator[list[Tensor]]:
    """Within it the layers run unfused, and each call adds its weights `picture head query key` to the list.

    Fused kernels give no weights out, and hooks beside them see nothing, without a word; so they are switched off here
    and put back as they were.
    """
    seen: list[Tensor] = []
    fused = [attention.fused_attn for attention in attentions]
    handles = [
        attention.attn_drop.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        for attention in attentions
    ]
    for attention in attentions:
        attention.fused_attn = False
    try:
        yield seen
    finally:
        for attention, before, handle in zip(attentions, fused, handles, strict=True):
            attention.fused_attn = before
            handle.remove()


def roll_out(
    attentions: Sequence[Float[Tensor, "picture head query key"]], start: Float[Tensor, " token"]
) -> Float[Tensor, "picture token"]:
    """How much of each input token arrives in a weighted mean of the last tokens (Abnar & Zuidema 2020).

    Per layer: mean over heads, plus the identity for the residual way, rows to a sum of 1; layers multiplied. A row
    vector times matrices from the last layer to the first costs a fraction of the product of the matrices.

    Args:
        attentions: Of each layer, the first one first.
        start: The weights of the mean, which sum to 1.

    Returns:
        Shares that sum to 1, float64.
    """
    shares = start.double().expand(len(attentions[0]), -1)
    for weights in reversed(attentions):
        mean = weights.double().mean(dim=1)
        mixed = mean + torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        shares = torch.einsum("pq,pqk->pk", shares, mixed)
    return shares


_Blocks = nn.Sequential | nn.ModuleList

"""Attention pooling on a GPU: torch multiplies by [V; U], Triton kernels do all between that and the output.

A tile's program scores its rows and adds them up under the tile's own maximum; a second kernel merges a volume's tiles
in their order, so that two runs agree to the last bit. Backward takes the activations from the projections again.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from neuroray.kernels.attention_pool import projections
from neuroray.kernels.attention_pool.projections import (
    InputGradients,
    join_projections,
    refuse_second_derivative,
    split_gradients,
)
from neuroray.kernels.attention_pool.triton_kernels import (
    differentiate_scores,
    differentiate_weights,
    merge_tiles,
    score_tiles,
)

if TYPE_CHECKING:
    from neuroray.kernels.attention_pool.api import PoolInputs

SMALLEST_TILE = 64
MOST_TILES = 4096
"""Rows of a tile grow, doubling, until no more than this many tiles hold all rows: merging reads them all."""

MERGED_TILES = 32
GRADIENT_ROWS = 16
GRADIENT_HIDDEN = 32
"""What the last backward kernel keeps of rows and hidden units, over 8 warps: with 4, triton 3.6 spills on sm_80."""

GRADIENT_CHANNELS = 512
"""At most this many channels of 8 rows at a time in the first backward kernel: of 16 rows they spill on sm_90."""


class _Sizes(NamedTuple):
    """Sizes of one call, and how the kernels cut them up."""

    rows: int
    volumes: int
    heads: int
    hidden: int
    channels: int
    tile: int
    slots: int
    block_hidden: int
    block_channel: int
    num_warps: int


def _measure(inputs: PoolInputs) -> _Sizes:
    rows, channels = inputs.h.shape
    volumes, (heads, hidden) = inputs.offsets.numel() - 1, inputs.w.shape
    tile = SMALLEST_TILE
    while rows > tile * MOST_TILES:
        tile *= 2
    block_channel = min(triton.next_power_of_2(channels), 1024)
    return _Sizes(
        rows,
        volumes,
        heads,
        hidden,
        channels,
        tile,
        rows // tile + volumes,
        min(triton.next_power_of_2(hidden), 64),
        block_channel,
        8 if block_channel > 512 else 4,
    )


def pool_by_tiles(inputs: PoolInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled rows, weights and log-sum-exp; the softmax and the sums in float32 or float64."""
    return _PoolTiles.apply(*inputs)  # pyright: ignore[reportReturnType] - apply's own annotation is Any


class _PoolTiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        inputs = _name(tensors)
        projected = join_projections(inputs).apply(inputs.h)
        with _on(inputs.h.device):
            pooled, weights, log_sum_exp = _pool(inputs, projected, _measure(inputs))
        kept = projected if projected.numel() * projected.element_size() <= projections.KEPT_BYTES else None
        ctx.save_for_backward(*tensors, weights, kept)
        return pooled, weights, log_sum_exp

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        *tensors, weights, projected = ctx.saved_tensors
        inputs = _name(tuple(tensors))
        d_pooled, d_weights, d_log_sum_exp = (gradient.contiguous() for gradient in gradients)
        # The engine may run this while autocast is on, which would round the products again.
        with torch.autocast(inputs.h.device.type, enabled=False), _on(inputs.h.device):
            if projected is None:
                projected = join_projections(inputs).apply(inputs.h)
            return _differentiate(
                inputs, projected, weights, (d_pooled, d_weights, d_log_sum_exp), ctx.needs_input_grad
            )


def _name(tensors: tuple[Any, ...]) -> PoolInputs:
    from neuroray.kernels.attention_pool.api import PoolInputs

    # The kernels know row lengths only; a view with gaps is copied, here and again for backward.
    contiguous: list[Any] = [tensor if tensor is None else tensor.contiguous() for tensor in tensors]
    return PoolInputs(*contiguous)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the inputs' own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _state(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _pool(inputs: PoolInputs, projected: Tensor, sizes: _Sizes) -> tuple[Tensor, Tensor, Tensor]:
    state = torch.promote_types(inputs.h.dtype, torch.float32)
    pooled = inputs.h.new_empty(sizes.volumes, sizes.heads, sizes.channels)
    weights = inputs.h.new_empty(sizes.rows, sizes.heads, dtype=state)
    log_sum_exp = weights.new_empty(sizes.volumes, sizes.heads)
    if sizes.slots == 0:
        return pooled, weights, log_sum_exp
    scores = torch.empty_like(weights)
    peaks, totals = weights.new_empty(2, sizes.slots, sizes.heads)
    sums = weights.new_empty(sizes.slots, sizes.heads, sizes.channels)
    score_tiles[sizes.slots, sizes.heads, triton.cdiv(sizes.channels, sizes.block_channel)](
        inputs.h,
        projected,
        inputs.w,
        inputs.bias_w,
        inputs.mask,
        inputs.offsets,
        scores,
        peaks,
        totals,
        sums,
        sizes.volumes,
        sizes.tile,
        sizes.hidden,
        sizes.channels,
        **{
            "GATED": inputs.U is not None,
            "HAS_BIAS": inputs.bias_w is not None,
            "HAS_MASK": inputs.mask is not None,
            "STATE": _state(state),
            "BLOCK_ROWS": 16,
            "BLOCK_HIDDEN": sizes.block_hidden,
            "BLOCK_CHANNEL": sizes.block_channel,
            "num_warps": sizes.num_warps,
        },
    )
    merge_tiles[sizes.slots, sizes.heads](
        inputs.offsets,
        scores,
        peaks,
        totals,
        sums,
        pooled,
        weights,
        log_sum_exp,
        sizes.volumes,
        sizes.tile,
        sizes.channels,
        **{
            "STATE": _state(state),
            "BLOCK_TILES": MERGED_TILES,
            "BLOCK_ROWS": SMALLEST_TILE,
            "BLOCK_CHANNEL": 128,
            "num_warps": 4,
        },
    )
    return pooled, weights, log_sum_exp


def _differentiate(
    inputs: PoolInputs,
    projected: Tensor,
    weights: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    needs = dict(zip(InputGradients._fields, needed, strict=True))
    d_h, d_scores, d_projected, d_w = _run_backward(inputs, projected, weights, gradients, needs_h=needs["h"])
    joined, dtype = join_projections(inputs), inputs.h.dtype
    if d_h is not None:
        d_h.addmm_(d_projected, joined.weight)
    d_weight = d_bias = None
    if needs["V"] or needs["U"]:
        # A masked row's projection has no gradient, but 0 * NaN would be NaN.
        h = inputs.h if inputs.mask is None else torch.where(inputs.mask[:, None], inputs.h, 0.0)
        d_weight = d_projected.T @ h
    if needs["bias_v"] or needs["bias_u"]:
        d_bias = d_projected.sum(0, dtype=weights.dtype)
    d_bias_w = d_scores.sum(0).to(dtype) if needs["bias_w"] else None
    found = split_gradients(d_weight, d_bias, inputs)
    return tuple(found._replace(h=d_h, w=d_w.sum(0).to(dtype), bias_w=d_bias_w))


def _run_backward(
    inputs: PoolInputs,
    projected: Tensor,
    weights: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    *,
    needs_h: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Gradients of h (through the weighted sum alone), of the scores, of the projections, and w's, in parts."""
    sizes = _measure(inputs)
    d_pooled, d_weights, d_log_sum_exp = gradients
    d_h = torch.empty_like(inputs.h) if needs_h else None
    gains, d_scores, d_projected = torch.empty_like(weights), torch.empty_like(weights), torch.empty_like(projected)
    means = weights.new_empty(sizes.slots, sizes.heads)
    num_parts = sizes.rows // GRADIENT_ROWS + sizes.volumes
    d_w = weights.new_empty(num_parts, sizes.heads, sizes.hidden)
    if sizes.slots == 0:
        return d_h, d_scores, d_projected, d_w
    differentiate_weights[(sizes.slots,)](
        inputs.h,
        inputs.mask,
        inputs.offsets,
        weights,
        d_weights,
        d_pooled,
        gains,
        means,
        d_h,
        sizes.volumes,
        sizes.tile,
        sizes.channels,
        sizes.heads,
        **{
            "HAS_MASK": inputs.mask is not None,
            "NEEDS_H": needs_h,
            "STATE": _state(weights.dtype),
            "BLOCK_ROWS": 8,
            "BLOCK_CHANNEL": min(sizes.block_channel, GRADIENT_CHANNELS),
            "num_warps": 8,
        },
    )
    differentiate_scores[(num_parts,)](
        projected,
        inputs.w,
        inputs.mask,
        inputs.offsets,
        weights,
        gains,
        means,
        d_log_sum_exp,
        d_scores,
        d_projected,
        d_w,
        sizes.volumes,
        sizes.tile,
        sizes.hidden,
        sizes.heads,
        **{
            "GATED": inputs.U is not None,
            "HAS_MASK": inputs.mask is not None,
            "STATE": _state(weights.dtype),
            "BLOCK_ROWS": GRADIENT_ROWS,
            "BLOCK_HIDDEN": min(sizes.block_hidden, GRADIENT_HIDDEN),
            "BLOCK_TILES": MERGED_TILES,
            "num_warps": 8,
        },
    )
    return d_h, d_scores, d_projected, d_w

"""Attention pooling in torch: one product with [V; U], segment sums of fixed order, and a backward of its own.

Rows are taken in blocks, so that what lies between input and output never grows with the batch. With g the gradient of
the returned weights plus that through the weighted sum, and L the gradient of the log-sum-exp, a score's gradient is

    ds[k] = weights[k] (g[k] - sum over the volume of weights[j] g[j] + L[volume])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuroray.kernels.attention_pool import projections
from neuroray.kernels.attention_pool.projections import (
    InputGradients,
    join_projections,
    refuse_second_derivative,
    split_gradients,
)
from neuroray.kernels.attention_pool.segments import max_segments, name_volumes, sum_segments

if TYPE_CHECKING:
    from neuroray.kernels.attention_pool.api import PoolInputs

BLOCK_BYTES = {"cpu": 8 * 2**20}
OTHER_BLOCK_BYTES = 512 * 2**20
"""Of one float32 or float64 tensor between input and output: near a CPU's cache; on a GPU enough to fill it."""


def pool_by_segments(inputs: PoolInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled rows, weights and log-sum-exp; the softmax and the sums in float32 or float64."""
    return _PoolSegments.apply(*inputs)  # pyright: ignore[reportReturnType] - apply's own annotation is Any


class _PoolSegments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        inputs = _name(tensors)
        volume = name_volumes(inputs.offsets, len(inputs.h))
        joined = join_projections(inputs)
        state = _state_dtype(inputs)
        scores = inputs.h.new_empty(len(inputs.h), inputs.w.shape[0], dtype=state)
        size_bytes = len(inputs.h) * len(joined.weight) * inputs.h.element_size()
        keep = any(ctx.needs_input_grad) and size_bytes <= projections.KEPT_BYTES
        kept = []
        for rows in _blocks(inputs):
            projected = joined.apply(_read_rows(inputs, rows))
            active = _activate(projected.to(state), inputs)
            scores[rows] = _score(active, inputs)
            if keep:
                # Half precision keeps what was rounded once; else the activations, which lie in the same memory.
                kept.append(projected if projected.dtype != state else active)
        weights, log_sum_exp = _softmax(scores, inputs, volume)
        pooled = _sum_rows(weights, inputs, volume)
        ctx.save_for_backward(*tensors, volume, weights, *kept)
        return pooled.to(inputs.h.dtype), weights, log_sum_exp

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        d_pooled, d_weights, d_log_sum_exp = gradients
        saved = ctx.saved_tensors
        inputs, (volume, weights), kept = _name(saved[:9]), saved[9:11], saved[11:]
        # The engine may run this while autocast is on, which would round the products again.
        with torch.autocast(inputs.h.device.type, enabled=False):
            d_pooled = d_pooled.to(weights.dtype)
            d_scores = _differentiate_scores(inputs, volume, weights, d_pooled, d_weights, d_log_sum_exp)
            return _differentiate_rows(inputs, volume, weights, d_pooled, d_scores, kept, ctx.needs_input_grad)


def _name(tensors: tuple[Any, ...]) -> PoolInputs:
    from neuroray.kernels.attention_pool.api import PoolInputs

    return PoolInputs(*tensors)


def _state_dtype(inputs: PoolInputs) -> torch.dtype:
    return torch.promote_types(inputs.h.dtype, torch.float32)


def _blocks(inputs: PoolInputs) -> Iterator[slice]:
    """Rows, as many at a time as fit; the same ones forward and backward, so that both compute the same bits."""
    budget = BLOCK_BYTES.get(inputs.h.device.type, OTHER_BLOCK_BYTES)
    width = max(2 * inputs.V.shape[0], inputs.w.shape[0] * inputs.h.shape[1])
    size = max(1, budget // (width * _state_dtype(inputs).itemsize))
    for start in range(0, len(inputs.h), size):
        yield slice(start, min(start + size, len(inputs.h)))


def _read_rows(inputs: PoolInputs, rows: slice) -> Tensor:
    if inputs.mask is None:
        return inputs.h[rows]
    # A masked row is cleared, not only weighed by zero: 0 * NaN would be NaN, here and in the gradient.
    return torch.where(inputs.mask[rows, None], inputs.h[rows], 0.0)


def _activate(projected: Tensor, inputs: PoolInputs) -> Tensor:
    """Writes tanh over the half from V and sigmoid over the half from U."""
    hidden = inputs.V.shape[0]
    projected[:, :hidden].tanh_()
    projected[:, hidden:].sigmoid_()
    return projected


def _score(active: Tensor, inputs: PoolInputs) -> Tensor:
    score = _combine(active, inputs) @ inputs.w.to(active.dtype).T
    return score if inputs.bias_w is None else score + inputs.bias_w.to(active.dtype)


def _combine(active: Tensor, inputs: PoolInputs) -> Tensor:
    if inputs.U is None:
        return active
    value, gate = active.chunk(2, dim=-1)
    return value * gate


def _softmax(scores: Tensor, inputs: PoolInputs, volume: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `rows head` and log-sum-exp `volumes head`; 0 and -inf where nothing is seen."""
    hidden_rows = None if inputs.mask is None else ~inputs.mask[:, None]
    if hidden_rows is not None:
        scores.masked_fill_(hidden_rows, -torch.inf)
    peak = max_segments(scores, inputs.offsets)
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    exponents = scores.sub_(peak[volume]).exp_()
    total = sum_segments(exponents, inputs.offsets, volume)
    # The fullest row of a segment contributes exp(0) = 1, so a total of zero can only mean that no row was seen.
    empty = total == 0
    log_sum_exp = torch.where(empty, -torch.inf, torch.log(total) + peak)
    weights = exponents.div_(torch.where(empty, 1.0, total)[volume])
    # 0 / NaN is NaN: a volume that a NaN has reached still gives its masked rows no weight.
    return (weights if hidden_rows is None else weights.masked_fill_(hidden_rows, 0.0)), log_sum_exp


def _sum_rows(weights: Tensor, inputs: PoolInputs, volume: Tensor) -> Tensor:
    pooled = weights.new_zeros(inputs.offsets.numel() - 1, inputs.w.shape[0], inputs.h.shape[1])
    for rows in _blocks(inputs):
        weighted = weights[rows, :, None] * _read_rows(inputs, rows)[:, None].to(weights.dtype)
        pooled += sum_segments(weighted, _clip(inputs.offsets, rows), volume[rows])
    return pooled


def _clip(offsets: Tensor, rows: slice) -> Tensor:
    """The offsets of what these rows hold of every volume."""
    return offsets.clamp(rows.start, rows.stop) - rows.start


def _differentiate_scores(
    inputs: PoolInputs, volume: Tensor, weights: Tensor, d_pooled: Tensor, d_weights: Tensor, d_log_sum_exp: Tensor
) -> Tensor:
    total = torch.empty_like(weights)
    for rows in _blocks(inputs):
        h = _read_rows(inputs, rows).to(weights.dtype)
        total[rows] = (d_pooled[volume[rows]] * h[:, None]).sum(-1)
    total += d_weights
    mean = sum_segments(weights * total, inputs.offsets, volume)
    d_scores = total.sub_(mean[volume]).add_(d_log_sum_exp[volume]).mul_(weights)
    # A row without weight has no gradient, though its volume's may be NaN or infinite.
    return d_scores if inputs.mask is None else d_scores.masked_fill_(~inputs.mask[:, None], 0.0)


def _differentiate_rows(
    inputs: PoolInputs,
    volume: Tensor,
    weights: Tensor,
    d_pooled: Tensor,
    d_scores: Tensor,
    kept: tuple[Tensor, ...],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Every gradient from those of the scores, block by block; products that nobody asked for are not made."""
    needs = dict(zip(InputGradients._fields, needed, strict=True))
    joined, state = join_projections(inputs), weights.dtype
    d_h = torch.empty_like(inputs.h, memory_format=torch.contiguous_format) if needs["h"] else None
    d_weight = joined.weight.new_zeros(joined.weight.shape, dtype=state) if needs["V"] or needs["U"] else None
    d_bias = weights.new_zeros(joined.weight.shape[0]) if needs["bias_v"] or needs["bias_u"] else None
    d_w = torch.zeros_like(inputs.w, dtype=state)
    for index, rows in enumerate(_blocks(inputs)):
        h = _read_rows(inputs, rows)
        active = _recall(kept[index] if kept else joined.apply(h), inputs, fresh=not kept)
        d_w += d_scores[rows].T @ _combine(active, inputs)
        d_projected = _differentiate_gate(d_scores[rows] @ inputs.w.to(state), active, inputs)
        if d_bias is not None:
            d_bias += d_projected.sum(0)
        d_projected = d_projected.to(h.dtype)
        if d_weight is not None:
            _add_product(d_weight, d_projected.T, h)
        if d_h is not None:
            through_sum = (weights[rows, :, None] * d_pooled[volume[rows]]).sum(1).to(h.dtype)
            d_h[rows] = torch.addmm(through_sum, d_projected, joined.weight)
    if d_h is not None and inputs.mask is not None:
        d_h.masked_fill_(~inputs.mask[:, None], 0.0)
    d_bias_w = d_scores.sum(0).to(inputs.h.dtype) if needs["bias_w"] else None
    found = split_gradients(d_weight, d_bias, inputs)
    return tuple(found._replace(h=d_h, w=d_w.to(inputs.h.dtype), bias_w=d_bias_w))


def _recall(projected: Tensor, inputs: PoolInputs, *, fresh: bool) -> Tensor:
    """The activations again; what was kept in the state's dtype holds them already."""
    state = _state_dtype(inputs)
    return projected if projected.dtype == state and not fresh else _activate(projected.to(state), inputs)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _differentiate_gate(d_hidden: Tensor, active: Tensor, inputs: PoolInputs) -> Tensor:
    """Through tanh' = 1 - tanh^2 and sigmoid' = sigmoid (1 - sigmoid)."""
    if inputs.U is None:
        return d_hidden * (1 - active * active)
    value, gate = active.chunk(2, dim=-1)
    d_projected = torch.empty_like(active)
    d_value, d_gate = d_projected.chunk(2, dim=-1)
    torch.mul(d_hidden, gate, out=d_value).mul_(1 - value * value)
    torch.mul(d_hidden, value, out=d_gate).mul_(gate).mul_(1 - gate)
    return d_projected

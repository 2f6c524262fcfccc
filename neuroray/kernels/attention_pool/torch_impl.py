"""Attention pooling in vectorised torch: one product with [V; U] for all rows, then sums over each volume's segment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from neuroray.kernels.attention_pool.api import PoolInputs


def pool_by_segments(inputs: PoolInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled rows, weights and log-sum-exp; gradients by autograd, the softmax and the sums in float32 or float64."""
    num_volumes = inputs.offsets.numel() - 1
    volumes = torch.arange(num_volumes, device=inputs.h.device)
    segment = torch.repeat_interleave(volumes, inputs.offsets.diff(), output_size=len(inputs.h))
    h = inputs.h
    if inputs.mask is not None:
        # A masked row is cleared, not only weighed by zero: 0 * NaN would be NaN, here and in the gradient.
        h = torch.where(inputs.mask[:, None], h, 0.0)
    state = torch.promote_types(inputs.h.dtype, torch.float32)
    scores = _score_rows(inputs, h).to(state)
    if inputs.mask is not None:
        scores = scores.masked_fill(~inputs.mask[:, None], -torch.inf)
    weights, log_sum_exp = _softmax_segments(scores, segment, num_volumes)
    pooled = h.new_zeros((num_volumes, inputs.w.shape[0], h.shape[1]), dtype=state)
    pooled = pooled.index_add(0, segment, weights[:, :, None] * h[:, None, :].to(state))
    return pooled.to(inputs.h.dtype), weights, log_sum_exp


def _score_rows(inputs: PoolInputs, h: Tensor) -> Tensor:
    if inputs.U is None:
        hidden = torch.tanh(functional.linear(h, inputs.V, inputs.bias_v))
    else:
        both = functional.linear(h, torch.cat([inputs.V, inputs.U]), _join_biases(inputs))
        value, gate = both.chunk(2, dim=-1)
        hidden = torch.tanh(value) * torch.sigmoid(gate)
    return functional.linear(hidden, inputs.w, inputs.bias_w)


def _join_biases(inputs: PoolInputs) -> Tensor | None:
    if inputs.bias_v is None and inputs.bias_u is None:
        return None
    none = inputs.V.new_zeros(inputs.V.shape[0])
    return torch.cat([none if bias is None else bias for bias in (inputs.bias_v, inputs.bias_u)])


def _softmax_segments(scores: Tensor, segment: Tensor, num_volumes: int) -> tuple[Tensor, Tensor]:
    """Softmax over each segment: weights `rows head`, log-sum-exp `volumes head`; 0 and -inf where nothing is seen."""
    shape = (num_volumes, scores.shape[1])
    index = segment[:, None].expand_as(scores)
    peak = scores.new_full(shape, -torch.inf).scatter_reduce(0, index, scores.detach(), "amax")
    peak = torch.where(peak == -torch.inf, 0.0, peak)
    exponents = torch.exp(scores - peak[segment])
    total = scores.new_zeros(shape).index_add(0, segment, exponents)
    # The fullest row of a segment contributes exp(0) = 1, so a total of zero can only mean that no row was seen.
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    log_sum_exp = torch.where(empty, -torch.inf, torch.log(total) + peak)
    return exponents / total[segment], log_sum_exp

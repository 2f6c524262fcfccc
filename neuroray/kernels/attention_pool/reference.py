"""Attention pooling as its formula reads, a volume, a head and a row at a time: this file defines what is right."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from neuroray.kernels.attention_pool.api import PoolInputs


def pool_by_loops(inputs: PoolInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled rows, weights and log-sum-exp; differentiable by autograd, in float64 where the inputs are."""
    state = torch.promote_types(inputs.h.dtype, torch.float32)
    h = inputs.h.to(state)
    num_heads = inputs.w.shape[0]
    weights = [[torch.zeros((), dtype=state, device=h.device)] * num_heads for _ in range(len(h))]
    pooled, log_sum_exp = [], []
    bounds = inputs.offsets.tolist()
    for start, stop in pairwise(bounds):
        rows = [k for k in range(start, stop) if inputs.mask is None or bool(inputs.mask[k])]
        for head in range(num_heads):
            scores = [_score(inputs, h[k], head, state) for k in rows]
            exponent_sum = torch.logsumexp(torch.stack(scores), 0) if rows else h.new_full((), -torch.inf)
            total = torch.zeros_like(h[0]) if len(h) else h.new_zeros(h.shape[1])
            for k, score in zip(rows, scores, strict=True):
                weights[k][head] = torch.exp(score - exponent_sum)
                total = total + weights[k][head] * h[k]
            pooled.append(total)
            log_sum_exp.append(exponent_sum)
    return (
        _stack(pooled, h).reshape(-1, num_heads, h.shape[1]).to(inputs.h.dtype),
        _stack([weight for row in weights for weight in row], h).reshape(-1, num_heads),
        _stack(log_sum_exp, h).reshape(-1, num_heads),
    )


def _score(inputs: PoolInputs, row: Tensor, head: int, state: torch.dtype) -> Tensor:
    """`w . tanh(V h + b_v)`, or gated `w . (tanh(V h + b_v) * sigmoid(U h + b_u))`, plus `b_w`."""
    hidden = inputs.V.to(state) @ row
    if inputs.bias_v is not None:
        hidden = hidden + inputs.bias_v.to(state)
    hidden = torch.tanh(hidden)
    if inputs.U is not None:
        gate = inputs.U.to(state) @ row
        if inputs.bias_u is not None:
            gate = gate + inputs.bias_u.to(state)
        hidden = hidden * torch.sigmoid(gate)
    score = inputs.w[head].to(state) @ hidden
    return score if inputs.bias_w is None else score + inputs.bias_w[head].to(state)


def _stack(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values) if values else like.new_zeros(0)

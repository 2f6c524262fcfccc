"""The causal convolution in plain torch: one shifted product for each tap, and a backward that keeps only x.

With g the gradient by what goes into SiLU, that of x is g convolved with the same weights in the other direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from neuroray.kernels.causal_conv.inputs import ConvInputs

if TYPE_CHECKING:
    from jaxtyping import Float


def convolve(inputs: ConvInputs) -> Float[Tensor, "batch token channel"]:
    """Output in x's dtype, differentiable once in x, weight and bias; any float dtype."""
    return _Convolution.apply(*inputs)  # pyright: ignore[reportReturnType] - apply's own annotation is Any


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *fields: Any) -> Tensor:
        inputs = ConvInputs(*fields)
        total = _weigh(inputs)
        ctx.save_for_backward(inputs.x, inputs.weight, inputs.bias)
        ctx.silu, ctx.reverse = inputs.silu, inputs.reverse
        return (functional.silu(total, inplace=True) if inputs.silu else total).to(inputs.x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - once_differentiable's own
        x, weight, bias = ctx.saved_tensors
        inputs = ConvInputs(x, weight, bias, ctx.silu, ctx.reverse)
        gradient = grad_outputs[0].to(inputs.state_dtype).contiguous()
        if inputs.silu:
            gradient = differentiate_silu(gradient, _weigh(inputs))
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            by_x = add_taps(gradient, weight.to(gradient.dtype), reverse=not inputs.reverse).to(x.dtype)
        if ctx.needs_input_grad[1]:
            by_weight = _correlate(inputs, gradient).to(weight.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            by_bias = gradient.sum((0, 1)).to(bias.dtype)
        return by_x, by_weight, by_bias, None, None


def _weigh(inputs: ConvInputs) -> Tensor:
    """What goes into SiLU."""
    dtype = inputs.state_dtype
    total = add_taps(inputs.x.to(dtype).contiguous(), inputs.weight.to(dtype), reverse=inputs.reverse)
    return total if inputs.bias is None else total.add_(inputs.bias.to(dtype))


def add_taps(
    x: Float[Tensor, "batch token channel"], weight: Float[Tensor, "channel tap"], *, reverse: bool
) -> Float[Tensor, "batch token channel"]:
    """The sum over taps, without bias."""
    *earlier, present = weight.unbind(1)
    total = x * present
    for k, tap in enumerate(earlier):
        here, seen = pair_tokens(x.shape[1], len(earlier) - k, reverse=reverse)
        total[:, here].addcmul_(x[:, seen], tap)
    return total


def pair_tokens(tokens: int, lag: int, *, reverse: bool) -> tuple[slice, slice]:
    """The tokens that see another one `lag` tokens before them (`reverse`: after), and those that they see."""
    lag = min(lag, tokens)
    later, sooner = slice(lag, tokens), slice(0, tokens - lag)
    return (sooner, later) if reverse else (later, sooner)


def differentiate_silu(gradient: Tensor, total: Tensor) -> Tensor:
    """The gradient by what went into SiLU."""
    return torch.ops.aten.silu_backward(gradient, total)


def _correlate(inputs: ConvInputs, gradient: Tensor) -> Float[Tensor, "channel tap"]:
    """The gradient of each tap: over all tokens, of what it was multiplied by."""
    x, last = inputs.x.to(gradient.dtype).contiguous(), inputs.num_taps - 1
    pairs = (pair_tokens(x.shape[1], last - k, reverse=inputs.reverse) for k in range(inputs.num_taps))
    return torch.stack([(gradient[:, here] * x[:, seen]).sum((0, 1)) for here, seen in pairs], 1)

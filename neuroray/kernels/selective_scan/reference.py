"""The selective scan as its formula reads, one token after another: this file defines what is right.

With dt_t = softplus(delta_t + delta_bias) (or delta_t + delta_bias), for each channel c and state n (Gu and Dao 2023,
algorithm 2, with the simplified discretisation of B that their code uses):

    h_t[c, n] = exp(dt_t[c] A[c, n]) h_{t-1}[c, n] + dt_t[c] B_t[n] u_t[c]
    y_t[c]    = sum over n of C_t[n] h_t[c, n]  +  D[c] u_t[c]
    out_t[c]  = y_t[c] silu(z_t[c])
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.kernels.selective_scan.inputs import ScanInputs


def scan_by_tokens(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """Output in u's dtype and last state; differentiable by autograd, in float64 where the inputs are."""
    dtype = inputs.state_dtype
    u, delta, decay = inputs.u.to(dtype), inputs.delta.to(dtype), inputs.A.to(dtype)
    B, C = (_spread_groups(tensor.to(dtype), u.shape) for tensor in (inputs.B, inputs.C))  # noqa: N806 - the formula's
    if inputs.delta_bias is not None:
        delta = delta + inputs.delta_bias.to(dtype)
    if inputs.delta_softplus:
        delta = functional.softplus(delta)
    state = u.new_zeros(len(u), *decay.shape)
    if inputs.initial_state is not None:
        state = inputs.initial_state.to(dtype)
    # Taken apart once: indexing each token would make the gradient write all tokens again for every one of them.
    pieces = zip(*(tensor.unbind(1) for tensor in (u, delta, B, C)), strict=True)
    outputs: list[Tensor] = []
    for u_t, step, B_t, C_t in reversed(list(pieces)) if inputs.reverse else pieces:  # noqa: N806
        state = torch.exp(step[..., None] * decay) * state + (step * u_t)[..., None] * B_t
        outputs.append((C_t * state).sum(-1))
    if inputs.reverse:
        outputs.reverse()
    output = torch.stack(outputs, 1)
    if inputs.D is not None:
        output = output + inputs.D.to(dtype) * u
    if inputs.z is not None:
        output = output * functional.silu(inputs.z.to(dtype))
    return output.to(inputs.u.dtype), state


def _spread_groups(tensor: Tensor, shape: torch.Size) -> Tensor:
    """B or C as `batch token channel state`, whatever it was."""
    batch, tokens, channels = shape
    if tensor.ndim == 2:
        return tensor.expand(batch, tokens, *tensor.shape)
    return tensor.repeat_interleave(channels // tensor.shape[2], dim=2)

"""The causal convolution: checks its inputs once and hands them to one implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neuroray.kernels.causal_conv import torch_impl
from neuroray.kernels.causal_conv.inputs import ConvInputs, check_inputs
from neuroray.kernels.causal_conv.reference import convolve_by_tokens
from neuroray.kernels.choice import call_when_used, choose, find_obstacle_when_used, runs_anywhere

if TYPE_CHECKING:
    from jaxtyping import Float


class Implementation(NamedTuple):
    """One way to convolve.

    Attributes:
        convolve: The output, differentiable in x, weight and bias.
        find_obstacle: Why it cannot run for a device and a state dtype here, in a sentence; None: it can.
    """

    convolve: Callable[[ConvInputs], Tensor]
    find_obstacle: Callable[[torch.device, torch.dtype], str | None]


def _load_when_used(module: str) -> Implementation:
    """An implementation in a module of its own."""
    name = f"neuroray.kernels.causal_conv.{module}"
    return Implementation(call_when_used(name, "convolve"), find_obstacle_when_used(name))


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(convolve_by_tokens, runs_anywhere),
    "torch": Implementation(torch_impl.convolve, runs_anywhere),
    "cpp": _load_when_used("cpp_impl"),
    "triton": _load_when_used("triton_impl"),
}
# `auto` takes the first that can run; Triton's interpreter on a CPU is for tests, so only its name gets it.
_PREFERRED = {"cuda": ("triton", "torch"), "cpu": ("cpp", "torch")}


def causal_conv(
    x: Float[Tensor, "batch token channel"],
    weight: Float[Tensor, "channel tap"],
    bias: Float[Tensor, " channel"] | None = None,
    *,
    silu: bool = True,
    reverse: bool = False,
    impl: str = "auto",
) -> Float[Tensor, "batch token channel"]:
    """Convolves every channel with its own taps over the present token and those before it, then applies SiLU.

    It is torch's conv1d with one group per channel, padded with taps - 1 zeros before the first token, on channels that
    lie last; `reference.py` has the formula.

    Args:
        x: Input, with any strides.
        weight: 2 to 8 taps per channel: `conv1d.weight[:, 0]`; the last one multiplies the present token.
        bias: Added to the sum; None: nothing.
        silu: Whether SiLU follows.
        reverse: Each token sees itself and those after it: flip, convolution, flip, without the copies.
        impl: `"auto"`, or a name of `IMPLEMENTATIONS`, which then runs or raises. `choose_implementation` says which.

    Returns:
        Output in x's dtype; sums and SiLU run in float32 (float64 where x is).

    Raises:
        KernelError: inputs that do not fit together, or an implementation that is not here.
    """
    inputs = ConvInputs(x, weight, bias, silu, reverse)
    check_inputs(inputs)
    name = choose_implementation(impl, x.device, inputs.state_dtype)
    return IMPLEMENTATIONS[name].convolve(inputs)


def choose_implementation(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of what would run: `"auto"` takes the first of `_PREFERRED` that can, any other name is itself.

    Args:
        impl: `"auto"` or a name of `IMPLEMENTATIONS`.
        device: Of the inputs.
        dtype: Of the arithmetic, see `ConvInputs.state_dtype`.

    Raises:
        KernelError: no such implementation, or one that cannot run here.
    """
    preferred = _PREFERRED.get(device.type, ("torch",))
    obstacles = {name: one.find_obstacle for name, one in IMPLEMENTATIONS.items()}
    return choose("causal_conv", impl, obstacles, preferred, device, dtype)

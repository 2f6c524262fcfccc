"""Inputs of the causal convolution, for the suites of every implementation, and how to run them by name."""

from __future__ import annotations

import torch
from contracts.kernel_contract import Inputs
from torch import Tensor

from neuroray.kernels.causal_conv import causal_conv


def make_inputs(
    generator: torch.Generator,
    tokens: int,
    *,
    batch: int = 2,
    channels: int = 3,
    taps: int = 4,
    bias: bool = True,
    silu: bool = True,
    reverse: bool = False,
) -> Inputs:
    """Arguments of `causal_conv` in float64."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs: Inputs = {"x": draw(batch, tokens, channels), "weight": draw(channels, taps) / 2}
    if bias:
        inputs["bias"] = draw(channels)
    return inputs | {"silu": silu, "reverse": reverse}


# Lengths below, at and above the number of taps.
SHORT_CASES = {
    "one token": lambda g: make_inputs(g, 1),
    "one token reverse": lambda g: make_inputs(g, 1, reverse=True),
    "one of everything": lambda g: make_inputs(g, 1, batch=1, channels=1, taps=2, bias=False),
    "fewer tokens than taps": lambda g: make_inputs(g, 3, taps=8),
    "fewer tokens than taps reverse": lambda g: make_inputs(g, 3, taps=8, reverse=True),
    "as many tokens as taps": lambda g: make_inputs(g, 4),
    "plain": lambda g: make_inputs(g, 7),
    "reverse": lambda g: make_inputs(g, 7, reverse=True),
    "without bias": lambda g: make_inputs(g, 7, bias=False),
    "without SiLU": lambda g: make_inputs(g, 7, silu=False),
    "sum alone, reverse": lambda g: make_inputs(g, 7, bias=False, silu=False, reverse=True),
    "two taps": lambda g: make_inputs(g, 7, taps=2),
    "three taps": lambda g: make_inputs(g, 7, taps=3, reverse=True),
    "five taps": lambda g: make_inputs(g, 9, taps=5),
    "six taps": lambda g: make_inputs(g, 9, taps=6, reverse=True),
    "seven taps": lambda g: make_inputs(g, 9, taps=7),
    "eight taps": lambda g: make_inputs(g, 9, taps=8, reverse=True),
}
# Too long for finite differences of the reference; odd, so that no tile, strip or chunk divides them.
LONG_CASES = {
    "31 tokens": lambda g: make_inputs(g, 31, channels=17),
    "31 tokens reverse": lambda g: make_inputs(g, 31, channels=31, reverse=True),
    "65 tokens": lambda g: make_inputs(g, 65, batch=1, channels=7),
    "130 tokens": lambda g: make_inputs(g, 130, batch=3, channels=5),
    "130 tokens reverse": lambda g: make_inputs(g, 130, batch=1, channels=5, taps=8, reverse=True),
    "130 channels": lambda g: make_inputs(g, 7, channels=130),
}
CASES = SHORT_CASES | LONG_CASES


def run_conv(inputs: Inputs, impl: str) -> tuple[Tensor]:
    """The output of a case, in a tuple as the kernel contract takes it."""
    return (causal_conv(**inputs, impl=impl),)

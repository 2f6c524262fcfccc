"""Inputs of attention pooling, for the suites of every implementation."""

from __future__ import annotations

import math
from typing import Any

import torch
from contracts.kernel_contract import Inputs
from torch import Tensor


def make_inputs(generator: torch.Generator, lengths: list[int], **options: Any) -> Inputs:
    """Rows, offsets and weights; `head`, `channel`, `hidden`, `gated`, `biases`, `masked` (a fraction)."""
    channel, hidden, head = options.get("channel", 5), options.get("hidden", 3), options.get("head", 1)
    rows = sum(lengths)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs: Inputs = {
        "h": draw(rows, channel),
        "offsets": torch.tensor([0, *lengths]).cumsum(0),
        "V": draw(hidden, channel) / math.sqrt(channel),
        "w": draw(head, hidden),
    }
    if options.get("gated"):
        inputs["U"] = draw(hidden, channel) / math.sqrt(channel)
    if options.get("biases"):
        inputs |= {"bias_v": draw(hidden), "bias_w": draw(head)}
        if options.get("gated"):
            inputs["bias_u"] = draw(hidden)
    if options.get("masked"):
        inputs["mask"] = torch.rand(rows, generator=generator) >= options["masked"]
    return inputs


CASES = {
    "one slice": lambda g: make_inputs(g, [1]),
    "plain": lambda g: make_inputs(g, [7, 3], biases=True),
    "gated": lambda g: make_inputs(g, [4, 5], gated=True, biases=True),
    "gated without biases": lambda g: make_inputs(g, [6], gated=True),
    "several heads": lambda g: make_inputs(g, [3, 8], head=3, gated=True, biases=True),
    "empty volumes": lambda g: make_inputs(g, [0, 4, 0, 0, 2, 0], biases=True),
    "nothing but empty volumes": lambda g: make_inputs(g, [0, 0]),
    "masked": lambda g: make_inputs(g, [9, 6], masked=0.4, biases=True),
    "wholly masked": lambda g: make_inputs(g, [3, 2], masked=1.1),
    "odd and wide": lambda g: make_inputs(g, [63, 1, 65], channel=33, hidden=17, head=2, gated=True, biases=True),
}

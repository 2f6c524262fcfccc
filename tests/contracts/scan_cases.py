"""Inputs for the selective scan's tests, the same for every implementation, and how to run them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuroray.kernels.selective_scan import ReverseDirection, bidirectional_selective_scan, selective_scan

Inputs = dict[str, Any]
Case = Callable[[torch.Generator], Inputs]
BACK = "back_"


def make_scan(
    generator: torch.Generator, tokens: int, *, batch: int = 2, channels: int = 4, states: int = 3, **options: Any
) -> Inputs:
    """Arguments of `selective_scan` in float64.

    Options: `D`, `z`, `delta_bias`, `softplus`, `initial_state`, `reverse` (truth values); `groups_b` and `groups_c`
    (0: constant over tokens; None, the default: three axes, without one for groups).
    """

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def draw_by_token(groups: int | None) -> Tensor:
        if groups == 0:
            return draw(channels, states)
        return draw(batch, tokens, states) if groups is None else draw(batch, tokens, groups, states)

    # Decays from about 0.3 to 0.99 a token: the state neither stands still nor forgets at once.
    inputs: Inputs = {
        "u": draw(batch, tokens, channels),
        "delta": 0.05 + 0.5 * torch.rand(batch, tokens, channels, generator=generator, dtype=torch.float64),
        "A": -0.1 - 2 * torch.rand(channels, states, generator=generator, dtype=torch.float64),
        "B": draw_by_token(options.get("groups_b")),
        "C": draw_by_token(options.get("groups_c")),
    }
    if options.get("softplus"):
        inputs |= {"delta": draw(batch, tokens, channels) - 1, "delta_softplus": True}
    if options.get("D"):
        inputs["D"] = draw(channels)
    if options.get("z"):
        inputs["z"] = draw(batch, tokens, channels)
    if options.get("delta_bias"):
        inputs["delta_bias"] = 0.3 * draw(channels).abs()
    if options.get("initial_state"):
        inputs["initial_state"] = draw(batch, channels, states)
    if options.get("reverse"):
        inputs["reverse"] = True
    return inputs


EVERYTHING = {"D": True, "z": True, "delta_bias": True, "softplus": True, "initial_state": True}


def _make_large_steps(generator: torch.Generator) -> Inputs:
    """Steps below and far above 20, where softplus is the identity in float32 and exp alone would overflow."""
    inputs = make_scan(generator, 7, **EVERYTHING)
    inputs["delta"] = inputs["delta"] * 40
    inputs["A"] = inputs["A"] / 40
    return inputs


def _make_growing(generator: torch.Generator) -> Inputs:
    inputs = make_scan(generator, 7, D=True)
    inputs["A"] = 0.1 * inputs["A"].abs()
    return inputs


# Each is `case(generator)`, its arguments float64. Lengths are odd on purpose: no tile or chunk divides them.
SHORT_CASES: dict[str, Case] = {
    "one token": lambda g: make_scan(g, 1, **EVERYTHING),
    "one of everything": lambda g: make_scan(g, 7, batch=1, channels=1, states=1, D=True),
    "plain": lambda g: make_scan(g, 7),
    "skip D": lambda g: make_scan(g, 7, D=True),
    "gate z": lambda g: make_scan(g, 7, z=True),
    "bias without softplus": lambda g: make_scan(g, 7, delta_bias=True),
    "softplus without bias": lambda g: make_scan(g, 7, softplus=True),
    "softplus of large steps": _make_large_steps,
    "initial state": lambda g: make_scan(g, 7, initial_state=True),
    "everything": lambda g: make_scan(g, 7, **EVERYTHING),
    "reverse": lambda g: make_scan(g, 7, reverse=True),
    "reverse one token": lambda g: make_scan(g, 1, reverse=True, **EVERYTHING),
    "reverse everything": lambda g: make_scan(g, 7, reverse=True, **EVERYTHING),
    "constant B": lambda g: make_scan(g, 7, groups_b=0),
    "constant C": lambda g: make_scan(g, 7, groups_c=0, D=True),
    "constant B and C": lambda g: make_scan(g, 7, groups_b=0, groups_c=0, z=True),
    "one group": lambda g: make_scan(g, 7, groups_b=1, groups_c=1),
    "two groups": lambda g: make_scan(g, 7, groups_b=2, groups_c=2, softplus=True),
    "a group for each channel": lambda g: make_scan(g, 7, groups_b=4, groups_c=4),
    "groups of B and C differ": lambda g: make_scan(g, 7, channels=6, groups_b=3, groups_c=2, reverse=True),
    "constant B, grouped C": lambda g: make_scan(g, 7, groups_b=0, groups_c=2, initial_state=True),
    "a state that grows": _make_growing,
    "seventeen states": lambda g: make_scan(g, 7, channels=3, states=17, D=True, z=True),
}
# Too long for finite differences, which take a run for every number.
LONG_CASES: dict[str, Case] = {
    "31 tokens": lambda g: make_scan(g, 31, **EVERYTHING),
    "31 tokens reverse": lambda g: make_scan(g, 31, reverse=True, **EVERYTHING),
    "31 tokens in groups": lambda g: make_scan(g, 31, channels=12, groups_b=3, groups_c=2, reverse=True, z=True),
    "sixteen states": lambda g: make_scan(g, 31, batch=1, channels=5, states=16, **EVERYTHING),
    "many channels": lambda g: make_scan(g, 7, channels=66, groups_b=2, groups_c=1, states=2, z=True),
    "65 tokens": lambda g: make_scan(g, 65, channels=3, **EVERYTHING),
    "65 tokens reverse": lambda g: make_scan(g, 65, channels=3, reverse=True, **EVERYTHING),
    "130 tokens": lambda g: make_scan(g, 130, groups_b=2, groups_c=1, **EVERYTHING),
    "130 tokens reverse": lambda g: make_scan(g, 130, groups_b=0, groups_c=1, reverse=True, **EVERYTHING),
}
CASES: dict[str, Case] = SHORT_CASES | LONG_CASES


def make_both(generator: torch.Generator, tokens: int, own: tuple[str, ...] = (), **options: Any) -> Inputs:
    """Arguments of `bidirectional_selective_scan` in float64; the other direction's own ones are `back_*`."""
    inputs = make_scan(generator, tokens, **options)
    other = make_scan(generator, tokens, **{**options, **dict.fromkeys(own, True)})
    return inputs | {BACK + name: other[name] for name in own}


_GATED = {"D": True, "z": True, "delta_bias": True, "softplus": True}
_VIM = ("u", "delta", "A", "B", "C", "D", "delta_bias")

SHORT_BOTH_CASES: dict[str, Case] = {
    "all shared": lambda g: make_both(g, 7),
    "all shared, one token": lambda g: make_both(g, 1, **_GATED),
    "all shared, gated": lambda g: make_both(g, 7, **_GATED),
    "all shared, in groups": lambda g: make_both(g, 7, groups_b=2, groups_c=2, **_GATED),
    "A of its own": lambda g: make_both(g, 7, ("A",), **_GATED),
    "all but u of its own": lambda g: make_both(g, 7, _VIM[1:], **_GATED),
    "all of its own": lambda g: make_both(g, 7, _VIM, **_GATED),
    "D and bias in the other direction only": lambda g: make_both(g, 7, ("D", "delta_bias"), z=True),
    "constant B and C of their own": lambda g: make_both(g, 7, ("B", "C"), groups_b=0, groups_c=0),
}
LONG_BOTH_CASES: dict[str, Case] = {
    "31 tokens": lambda g: make_both(g, 31, ("A",), **_GATED),
    "65 tokens": lambda g: make_both(g, 65, ("A", "B", "C", "delta"), **_GATED),
    "130 tokens, sixteen states": lambda g: make_both(g, 130, _VIM, batch=1, states=16, **_GATED),
}
BOTH_CASES: dict[str, Case] = SHORT_BOTH_CASES | LONG_BOTH_CASES


def run_scan(inputs: Inputs, impl: str) -> tuple[Tensor, Tensor]:
    """Output and last state of a case of `CASES`."""
    output, last_state = selective_scan(**inputs, return_last_state=True, impl=impl)
    return output, last_state


def run_both(inputs: Inputs, impl: str) -> tuple[Tensor]:
    """Output of a case of `BOTH_CASES`, in a tuple as the kernel contract takes it."""
    shared = {name: value for name, value in inputs.items() if not name.startswith(BACK)}
    own = {name.removeprefix(BACK): value for name, value in inputs.items() if name.startswith(BACK)}
    return (bidirectional_selective_scan(**shared, reverse=ReverseDirection(**own), impl=impl),)

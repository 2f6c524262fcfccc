"""Where the time of one Mamba layer goes: each part by itself, and its share, which says what a kernel of it is worth.

The parts run on tensors of their own, so their sum lacks what joins them: views, and what a cache still holds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.kernels.benchmark.cases import STATES, Inputs, LayerCase
from neuroray.kernels.benchmark.contestants import Contestant, list_ours
from neuroray.kernels.benchmark.conv_peers import run_conv1d_on_views
from neuroray.kernels.benchmark.judge import draw_factors, make_leaves
from neuroray.kernels.benchmark.machine import wait
from neuroray.kernels.benchmark.measure import SLOW_ROUNDS, SLOW_S, Entry, take_quantile, take_turns

TIMED = ("forward", "forward and backward")
Draw = Callable[[torch.Generator], Inputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of a layer in one pass; None: not measured, and `remark` says why.

    Attributes:
        name: What it does.
        who: What does it.
        share: Of the sum over all parts; a peer's, of the sum with it in place of ours.
        failed: Whether it raised.
    """

    case: str
    dtype: str
    step: str
    name: str
    who: str
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    rounds: int = 0
    share: float | None = None
    failed: bool = False
    remark: str = ""


@dataclass(slots=True)
class _Measured:
    """A part while its layer is run."""

    name: str
    who: str
    draw: Draw
    entry: Entry
    is_peer: bool = False


def measure_layer(case: LayerCase, device: torch.device, repeats: int, refused: set[str]) -> list[Part]:
    """Every part in both passes; `refused` names those of ours, such as `"scan ours: cpp"`, that answered wrongly."""
    parts = _list_parts(case, device)
    for part in parts:
        kernel = f"{part.name.split()[0]} {part.who}"
        part.entry.failure = "wrong answers: refused" if kernel in refused else None
        if part.entry.failure is None:
            _warm_up(part, device, repeats)
    take_turns([part.entry for part in parts if part.entry.failure is None], device)
    return [_make_part(case, step, part, parts) for step in TIMED for part in parts]


def _list_parts(case: LayerCase, device: torch.device) -> list[_Measured]:
    """In the order in which numbers pass through them."""
    outer, inner = (case.batch, case.tokens, case.width), (case.batch, case.tokens, case.channels)
    scan, conv = case.kernels

    def ask(name: str, run: Callable[[Inputs], Tensor], **shapes: tuple[int, ...]) -> _Measured:
        return _Measured(name, "torch", _fill(case, shapes), Entry(Contestant(name=name, run=run)))

    our_scan, our_conv = list_ours(scan, device)[0], list_ours(conv, device)[0]
    peer = Contestant(name="conv1d", run=run_conv1d_on_views)
    by_token = case.rank + 2 * STATES
    return [
        ask("in_proj", _project, x=outer, W=(2 * case.channels, case.width)),
        _Measured("conv + SiLU", our_conv.name, conv.draw, Entry(our_conv)),
        _Measured("conv + SiLU", "torch's conv1d", conv.draw, Entry(peer), is_peer=True),
        ask("x_proj + dt_proj", _project_twice, x=inner, W=(by_token, case.channels), V=(case.channels, case.rank)),
        _Measured("scan", our_scan.name, scan.draw, Entry(our_scan)),
        ask("out_proj", _project, x=inner, W=(case.width, case.channels)),
        ask("add + RMSNorm", _add_and_norm, x=outer, residual=outer, scale=(case.width,)),
    ]


def _fill(case: LayerCase, shapes: dict[str, tuple[int, ...]]) -> Draw:
    def draw(generator: torch.Generator) -> Inputs:
        # Products of about unit size, whatever the width.
        found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return {
            name: (value / math.sqrt(value.shape[1]) if value.ndim == 2 else value).to(case.dtype)
            for name, value in found.items()
        }

    return draw


def _project(inputs: Inputs) -> Tensor:
    return functional.linear(inputs["x"], inputs["W"])


def _project_twice(inputs: Inputs) -> Tensor:
    """Time steps; B and C come out of the first product with them and need no other."""
    return functional.linear(_project(inputs)[..., : inputs["V"].shape[1]], inputs["V"])


def _add_and_norm(inputs: Inputs) -> Tensor:
    total = inputs["x"] + inputs["residual"]
    return functional.rms_norm(total, (total.shape[-1],), inputs["scale"])


def _warm_up(part: _Measured, device: torch.device, repeats: int) -> None:
    entry = part.entry
    inputs = {name: value.to(device) for name, value in part.draw(torch.Generator().manual_seed(0)).items()}
    try:
        entry.leaves = make_leaves(entry.contestant, inputs)
        entry.factors = draw_factors(entry.contestant.run(entry.leaves).detach())
        start = time.perf_counter()
        torch.autograd.grad(entry.contestant.run(entry.leaves), list(entry.leaves.values()), entry.factors)
        wait(device)
        entry.rounds = repeats if time.perf_counter() - start < SLOW_S else min(repeats, SLOW_ROUNDS)
    except Exception as error:
        # A row that says so; the command fails at its end besides.
        entry.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        entry.raised = True


def _make_part(case: LayerCase, step: str, part: _Measured, parts: list[_Measured]) -> Part:
    base: dict[str, Any] = {
        "case": case.label,
        "dtype": str(case.dtype).removeprefix("torch."),
        "step": step,
        "name": part.name,
        "who": part.who,
    }
    times = part.entry.times_ms[step]
    if not times:
        return Part(**base, failed=part.entry.raised, remark=f"left out: {part.entry.failure}")
    # The layer that this part is in: with itself in place of ours if it is a peer's.
    layer = [one for one in parts if not one.is_peer and one.name != part.name] + [part]
    others = [one.entry.times_ms[step] for one in layer]
    median = statistics.median(times)
    total = sum(statistics.median(one) for one in others) if all(others) else None
    return Part(
        **base,
        median_ms=median,
        p20_ms=take_quantile(times, 0.2),
        p80_ms=take_quantile(times, 0.8),
        rounds=len(times),
        share=None if total is None else median / total,
    )

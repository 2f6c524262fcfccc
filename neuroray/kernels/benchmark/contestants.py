"""Who takes part: every implementation of ours that runs here, and the peers; each in the layout that it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuroray.kernels.attention_pool import api as pool_api
from neuroray.kernels.benchmark.cases import Case, ConvCase, Inputs, PoolCase, ScanCase
from neuroray.kernels.causal_conv import api as conv_api
from neuroray.kernels.selective_scan import api as scan_api

NOT_TIMED = ("reference",)
"""It defines what is right, in loops over tokens or rows, and was never meant to be quick."""

THEIRS = ("mamba_ssm",)
"""Registered so that it can be asked for by name; it is timed as the peer that it is."""


def keep_inputs(inputs: Inputs) -> Inputs:
    """For a contestant that takes our layout."""
    return inputs


def keep_tensor(name: str, tensor: Tensor) -> Tensor:
    """As `keep_inputs`, on the way back."""
    del name
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One row of the table.

    Attributes:
        name: As the table shows it.
        run: What is timed, from prepared inputs to the output.
        is_ours: Whether a wrong answer stops the benchmark.
        prepare: Our inputs in its layout; not timed.
        restore: The output (`"output"`) or an input's gradient, by name, back in our layout; not timed.
        obstacle: Why it is left out; None: it runs.
        backward_obstacle: The same, of the backward alone.
        remark: For the last column.
    """

    name: str
    run: Callable[[Inputs], Tensor]
    is_ours: bool = False
    prepare: Callable[[Inputs], Inputs] = keep_inputs
    restore: Callable[[str, Tensor], Tensor] = keep_tensor
    obstacle: str | None = None
    backward_obstacle: str | None = None
    remark: str = ""


def list_ours(case: Case, device: torch.device) -> list[Contestant]:
    """The implementations that run for this dtype on this device, the one that `auto` takes first."""
    apis: dict[type, Any] = {ScanCase: scan_api, PoolCase: pool_api, ConvCase: conv_api}
    api = apis[type(case)]
    state = torch.promote_types(case.dtype, torch.float32)
    chosen = api.choose_implementation("auto", device, state)
    names = [
        name
        for name, one in api.IMPLEMENTATIONS.items()
        if name not in (*NOT_TIMED, *THEIRS) and one.find_obstacle(device, state) is None
    ]
    names.sort(key=lambda name: name != chosen)
    return [
        Contestant(
            name=f"ours: {name}", run=name_run(case, name), is_ours=True, remark="auto" if name == chosen else ""
        )
        for name in names
    ]


def name_run(case: Case, impl: str) -> Callable[[Inputs], Tensor]:
    """One of our implementations as a contestant runs it: without looking at values, which no peer does."""

    def pool(inputs: Inputs) -> Tensor:
        return pool_api.attention_pool(**inputs, impl=impl, check_values=False).pooled

    if isinstance(case, PoolCase):
        return pool
    if isinstance(case, ConvCase):
        return lambda inputs: conv_api.causal_conv(inputs["x"], inputs["weight"], inputs["bias"], impl=impl)
    scan: Any = scan_api.bidirectional_selective_scan if case.both else scan_api.selective_scan
    return lambda inputs: scan(**inputs, delta_softplus=True, impl=impl, check_values=False)

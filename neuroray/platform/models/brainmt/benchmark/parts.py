"""Where the time of a step goes: seconds by part from torch's profiler, against the least that each part could take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from neuroray.kernels.benchmark.machine import measure_copy_rate, measure_seconds, wait
from neuroray.platform.models.brainmt.benchmark.steps import StepCase
from neuroray.platform.models.brainmt.cost import PARTS, count_step_flops

REST = "rest"
"""Norms, activations, additions, casts, copies: traffic of memory, no products."""

_BELONGS = {
    "conv stage": ("convolution", "slow_conv", "conv3d"),
    "scan": ("_Scan", "_Convolution"),
    "attention": ("scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention"),
    "linear maps": ("mm", "addmm", "bmm", "linear"),
}
_MATRIX = 2048
_SCAN_TENSORS = {"forward": (10, 5), "backward": (27, 14)}
"""Of (token, inner channel) that scans and their convolutions must read or write, both ways and one way.

Forward: x and u of each convolution, u and delta of each scan, gate and output; backward: the same again, then with
their gradients.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRow:
    """One part in one pass.

    Attributes:
        seconds: Median over the rounds.
        share: Of the pass.
        floor_s: The least: operations over the measured rate of matrix products, or bytes over that of copies.
        floor: Which of the two; empty where none is given.
    """

    case: str
    step: str
    name: str
    seconds: float
    share: float
    floor_s: float | None
    floor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What the device can do at best, measured here."""

    flops_per_s: float
    copy_bytes_per_s: float


def measure_rates(device: torch.device, *, bf16: bool) -> Rates:
    """A product of two square matrices, and a copy."""
    size, dtype = (_MATRIX if device.type == "cpu" else 4 * _MATRIX), torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = measure_seconds(lambda: left @ right, device)
    return Rates(flops_per_s=2 * size**3 / seconds, copy_bytes_per_s=measure_copy_rate(device))


def measure_parts(case: StepCase, device: torch.device, rates: Rates, rounds: int) -> list[PartRow]:
    """Rows of forward and of backward, which computes again what checkpoints left out."""
    torch.manual_seed(0)
    model = case.config.build().to(device).train()
    voxels = torch.randn(1, case.num_frames, *case.config.grid_shape, device=device)
    found: dict[str, list[dict[str, float]]] = {"forward": [], "backward": []}
    for turn in range(rounds + 1):
        seconds = _profile_step(model, voxels, bf16=case.bf16)
        for step, by_part in seconds.items():
            if turn:  # the first warms up
                found[step].append(by_part)
    rows: list[PartRow] = []
    for step, taken in found.items():
        medians = {name: float(torch.tensor([one.get(name, 0.0) for one in taken]).median()) for name in (*PARTS, REST)}
        total = sum(medians.values())
        floors = _find_floors(case, step, rates)
        for name, seconds in medians.items():
            floor_s, floor = floors.get(name, (None, ""))
            share = seconds / total
            row = {"case": case.label, "step": step, "name": name, "seconds": seconds, "share": share}
            rows.append(PartRow(**row, floor_s=floor_s, floor=floor))  # pyright: ignore[reportArgumentType] - by name
    return rows


def _profile_step(model: torch.nn.Module, voxels: Tensor, *, bf16: bool) -> dict[str, dict[str, float]]:
    outputs: list[Tensor] = []

    def forward() -> None:
        with torch.autocast(voxels.device.type, torch.bfloat16, enabled=bf16):
            outputs.append(model(voxels).outputs.float().square().sum())

    def backward() -> None:
        outputs[0].backward()

    seconds = {"forward": _profile(forward, voxels.device), "backward": _profile(backward, voxels.device)}
    model.zero_grad(set_to_none=True)
    return seconds


def _profile(run: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Seconds of an operation itself, without those that it calls, summed by part."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
        wait(device)
    by_part: dict[str, float] = {}
    for event in profiler.key_averages():
        taken = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        part = find_part(event.key)
        by_part[part] = by_part.get(part, 0.0) + taken / 1e6
    return by_part


def find_part(operation: str) -> str:
    """The part that an operation's name belongs to."""
    name = operation.removeprefix("aten::")
    for part, words in _BELONGS.items():
        if part == "linear maps":
            if name in words:
                return part
        elif any(word in name for word in words):
            return part
    return REST


def _find_floors(case: StepCase, step: str, rates: Rates) -> dict[str, tuple[float, str]]:
    counted = count_step_flops(case.config, case.num_frames)
    passes = (counted.forward,) if step == "forward" else (counted.again, counted.backward)
    floors = {
        part: (sum(one[part] for one in passes) / rates.flops_per_s, "matrix products")
        for part in ("conv stage", "attention", "linear maps")
    }
    tensors = _SCAN_TENSORS[step][0 if case.config.bidirectional else 1]
    places = case.config.mamba_depth * case.config.num_tokens(case.num_frames) * case.config.inner_channels
    size_bytes = tensors * places * (2 if case.bf16 else 4)
    return floors | {"scan": (size_bytes / rates.copy_bytes_per_s, "copies")}

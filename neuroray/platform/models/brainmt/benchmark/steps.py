"""Training steps timed in turns: each contestant once a round, ratios round by round."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from neuroray.kernels.benchmark.machine import wait
from neuroray.platform.models.brainmt.benchmark.peers import Contestant, list_contestants
from neuroray.platform.models.brainmt.config import BrainMTConfig
from neuroray.platform.models.brainmt.model import BrainMT

LONGEST_QUADRATIC = 600
"""Tokens; at 505 and full width a step of transformers' loop takes some two minutes on two cores."""

_ERROR, _BF16_ERROR = 1e-3, 5e-2
"""Largest relative difference from our tokens: 20 layers deep, float32 and bfloat16 round to about these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCase:
    """A model and the windows of a step; `name` is how the report calls it."""

    name: str
    config: BrainMTConfig
    num_frames: int
    bf16: bool = False

    @property
    def label(self) -> str:
        """With its sizes."""
        grid = "x".join(map(str, self.config.grid_shape))
        tokens, dtype = self.config.num_tokens(self.num_frames), "bfloat16" if self.bf16 else "float32"
        return f"{self.name}: grid {grid}, T={self.num_frames}, L={tokens}, width {self.config.width}, {dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One contestant; None: not measured, and `remark` says why.

    Attributes:
        ratio: Its time over ours, median over the rounds that both took part in.
        output_error: Of all its tokens after the last layer against ours, in evaluation, relative.
    """

    case: str
    name: str
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    rounds: int = 0
    ratio: float | None = None
    output_error: float | None = None
    remark: str = ""


@dataclass(slots=True)
class _Entry:
    contestant: Contestant
    model: nn.Module | None = None
    failure: str | None = None
    output_error: float | None = None
    seconds: list[float] = field(default_factory=list)


def run_step(model: nn.Module, voxels: Tensor, *, bf16: bool) -> None:
    """Forward and backward, as training does them; the optimiser is not among it."""
    with torch.autocast(voxels.device.type, torch.bfloat16, enabled=bf16):
        outputs = model(voxels).outputs
    outputs.float().square().sum().backward()
    model.zero_grad(set_to_none=True)


def compare_steps(case: StepCase, device: torch.device, rounds: int) -> list[StepRow]:
    """All contestants' rows, ours first; one that answers wrongly is not timed."""
    torch.manual_seed(0)
    ours = _spread_out(case.config.build()).to(device)
    voxels = torch.randn(1, case.num_frames, *case.config.grid_shape, device=device)
    exact = _answer(ours, voxels, bf16=case.bf16)
    tokens = case.config.num_tokens(case.num_frames)
    listed = list_contestants(device, num_tokens=tokens, longest_quadratic=LONGEST_QUADRATIC)
    entries = [_Entry(one, failure=one.obstacle) for one in listed]
    for entry in entries:
        if entry.failure is None:
            _prepare(entry, case, ours.state_dict(), voxels, exact)
    ready = [entry for entry in entries if entry.failure is None]
    for turn in range(rounds):
        for entry in ready[turn % len(ready) :] + ready[: turn % len(ready)]:
            if turn < (entry.contestant.most_rounds or rounds):
                entry.seconds.append(_time(entry, voxels, bf16=case.bf16))
    return [_make_row(case, entry, entries[0]) for entry in entries]


def _spread_out(model: BrainMT) -> BrainMT:
    """Weights that pass numbers on at about their size: of fresh ones, a scan that is wrong would hardly be seen."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def _prepare(entry: _Entry, case: StepCase, weights: dict[str, Tensor], voxels: Tensor, exact: Tensor) -> None:
    """Builds it with our weights, holds its answer against ours, and warms up where more than one step is timed."""
    try:
        model = case.config.build().to(voxels.device)
        model.load_state_dict(weights)
        entry.model = entry.contestant.change(model)
        is_released = entry.contestant.name.startswith("released")
        with entry.contestant.context():
            found = _answer(entry.model, voxels, bf16=case.bf16)
        entry.output_error = float((found - exact).norm() / exact.norm())
        if (
            entry.output_error > (_BF16_ERROR if case.bf16 else _ERROR) and not is_released
        ):  # the release scans one way: it answers otherwise
            entry.failure = f"wrong answers: {entry.output_error:.1e}"
            return
        if entry.contestant.most_rounds != 1:
            _time(entry, voxels, bf16=case.bf16)
    except Exception as error:
        # A row that says so.
        entry.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]


@torch.no_grad()
def _answer(model: Any, voxels: Tensor, *, bf16: bool) -> Tensor:
    """All tokens after the last layer: the answer alone is one number, and may agree by chance."""
    with torch.autocast(voxels.device.type, torch.bfloat16, enabled=bf16):
        found = model.eval().encode(voxels)
    model.train()
    return found


def _time(entry: _Entry, voxels: Tensor, *, bf16: bool) -> float:
    assert entry.model is not None
    wait(voxels.device)
    start = time.perf_counter()
    with entry.contestant.context():
        run_step(entry.model, voxels, bf16=bf16)
    wait(voxels.device)
    return time.perf_counter() - start


def _make_row(case: StepCase, entry: _Entry, ours: _Entry) -> StepRow:
    row = StepRow(case=case.label, name=entry.contestant.name, output_error=entry.output_error)
    if entry.failure is not None or not entry.seconds:
        return dataclasses.replace(row, remark=f"left out: {entry.failure}")
    times = torch.tensor(entry.seconds, dtype=torch.float64)
    return dataclasses.replace(
        row,
        median_s=statistics.median(entry.seconds),
        p20_s=float(times.quantile(0.2)),
        p80_s=float(times.quantile(0.8)),
        rounds=len(entry.seconds),
        ratio=statistics.median(a / b for a, b in zip(entry.seconds, ours.seconds, strict=False)),
        remark=entry.contestant.remark,
    )

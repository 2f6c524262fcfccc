"""Times that can be compared: warmed up, taken in turns, with the memory and the errors of the same runs."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuroray.kernels.benchmark.bounds import Limits
from neuroray.kernels.benchmark.cases import Case, ConvCase, Inputs, ScanCase
from neuroray.kernels.benchmark.contestants import Contestant, list_ours
from neuroray.kernels.benchmark.conv_peers import list_conv_peers
from neuroray.kernels.benchmark.judge import (
    draw_factors,
    find_worst,
    make_leaves,
    measure_error,
    run_exactly,
    take_factors,
)
from neuroray.kernels.benchmark.machine import wait
from neuroray.kernels.benchmark.pool_peers import list_pool_peers
from neuroray.kernels.benchmark.scan_peers import list_scan_peers

FLUSHED_BYTES = 256 * 2**20
"""Written on a GPU before each call, so that nobody finds its inputs in the second-level cache."""

SLOW_S = 5.0
SLOW_ROUNDS = 3
"""A contestant that takes longer than `SLOW_S` takes part in so many rounds only."""

PASSES = ("forward", "backward", "forward and backward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contestant in one pass; None: not measured, and `remark` says why.

    Attributes:
        ratio: Its time over that of the implementation that `auto` takes, median over the rounds of both.
        peak_bytes: Above what was in use before.
        failed: Whether it is one of ours and raised.
        bound_share: The bound's time over its time.
    """

    case: str
    dtype: str
    step: str
    name: str
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    rounds: int = 0
    ratio: float | None = None
    peak_bytes: int | None = None
    output_error: float | None = None
    gradient_error: float | None = None
    worst_gradient: str | None = None
    bound: str | None = None
    bound_share: float | None = None
    deterministic: bool | None = None
    failed: bool = False
    remark: str = ""


@dataclass(slots=True)
class Entry:
    """What is known of a contestant while its case is run; times in milliseconds, by pass."""

    contestant: Contestant
    leaves: Inputs = field(default_factory=dict)
    factors: Tensor | None = None
    failure: str | None = None
    raised: bool = False
    rounds: int = 0
    times_ms: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in PASSES})
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def list_peers(case: Case, device: torch.device) -> list[Contestant]:
    """Other people's ways to do the same."""
    if isinstance(case, ScanCase):
        return list_scan_peers(case, device)
    return list_conv_peers(case, device) if isinstance(case, ConvCase) else list_pool_peers(case, device)


def measure_case(case: Case, device: torch.device, repeats: int, limits: Limits, refused: set[str]) -> list[Row]:
    """Every contestant's rows; those in `refused`, by name, are left out for their wrong answers."""
    inputs = {name: value.to(device) for name, value in case.draw(torch.Generator().manual_seed(0)).items()}
    entries = [Entry(one) for one in (*list_ours(case, device), *list_peers(case, device))]
    exact: tuple[Tensor, Tensor, Inputs] | None = None
    for entry in entries:
        entry.failure = "wrong answers: refused" if entry.contestant.name in refused else entry.contestant.obstacle
        if entry.failure is None:
            exact = exact or _find_exact(case, inputs, entry.contestant)
            _warm_up(entry, inputs, exact, device, repeats)
    take_turns([entry for entry in entries if entry.failure is None], device)
    bounds = limits.find(case)
    return [_make_row(case, step, entry, entries, bounds[step]) for step in PASSES for entry in entries]


def _find_exact(case: Case, inputs: Inputs, first: Contestant) -> tuple[Tensor, Tensor, Inputs]:
    """Factors, output and gradients in float64, by the implementation in torch: the reference would take hours."""
    with torch.no_grad():
        factors = draw_factors(first.restore("output", first.run(first.prepare(inputs))))
    return factors, *run_exactly(case, inputs, factors, "torch")


def _warm_up(
    entry: Entry, inputs: Inputs, exact: tuple[Tensor, Tensor, Inputs], device: torch.device, repeats: int
) -> None:
    """Two runs: the first gives the errors, the second the memory, and both together whether they agree."""
    one = entry.contestant
    factors, exact_output, exact_gradients = exact
    try:
        entry.leaves = make_leaves(one, inputs)
        with torch.no_grad():
            output = one.run(entry.leaves)
        entry.factors = take_factors(one, output, factors)
        entry.facts["output_error"] = measure_error(one.restore("output", output), exact_output)
        start = time.perf_counter()
        again, entry.peak_bytes["forward"] = _watch_memory(lambda: _run_forward(entry), device)
        deterministic = torch.equal(output, again)
        if one.backward_obstacle is None:
            first = _run_both(entry)
            gradients = {name: one.restore(name, value) for name, value in first[1].items()}
            worst, error = find_worst(gradients, exact_gradients)
            entry.facts |= {"worst_gradient": worst, "gradient_error": error}
            second, entry.peak_bytes["forward and backward"] = _watch_memory(lambda: _run_both(entry), device)
            deterministic &= all(torch.equal(first[1][name], second[1][name]) for name in first[1])
        entry.facts["deterministic"] = deterministic
        wait(device)
        entry.rounds = repeats if time.perf_counter() - start < SLOW_S else min(repeats, SLOW_ROUNDS)
    except Exception as error:
        # A row that says so; if it is one of ours, the command fails at its end besides.
        entry.failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        entry.raised = True


def _run_forward(entry: Entry) -> Tensor:
    with torch.no_grad():
        return entry.contestant.run(entry.leaves)


def _run_both(entry: Entry) -> tuple[Tensor, Inputs]:
    names = [name for name, value in entry.leaves.items() if value.requires_grad]
    output = entry.contestant.run(entry.leaves)
    found = torch.autograd.grad(output, [entry.leaves[name] for name in names], entry.factors)
    return output.detach(), dict(zip(names, found, strict=True))


def take_turns(entries: list[Entry], device: torch.device) -> None:
    """Round by round, each contestant once, another one first every time: what slows the machine slows all of them."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None
    for turn in range(max((entry.rounds for entry in entries), default=0)):
        for entry in entries[turn % len(entries) :] + entries[: turn % len(entries)]:
            if turn >= entry.rounds:
                continue
            for step, milliseconds in _time_once(entry, device, flushed).items():
                entry.times_ms[step].append(milliseconds)


def _time_once(entry: Entry, device: torch.device, flushed: Tensor | None) -> dict[str, float]:
    def run_passes() -> list[Any]:
        clock = [_read_clock(device)]
        output = entry.contestant.run(entry.leaves)
        clock.append(_read_clock(device))
        torch.autograd.grad(output, [value for value in entry.leaves.values() if value.requires_grad], entry.factors)
        return [*clock, _read_clock(device)]

    def run_forward() -> list[Any]:
        start = _read_clock(device)
        _run_forward(entry)
        return [start, _read_clock(device)]

    def run_clean(run: Callable[[], list[Any]]) -> list[Any]:
        if flushed is not None:
            flushed.zero_()
        marks = run()
        wait(device)
        return marks

    marks = run_clean(run_forward)
    found = {"forward": _subtract(marks[0], marks[1])}
    if entry.contestant.backward_obstacle is None:
        marks = run_clean(run_passes)
        found |= {"backward": _subtract(marks[1], marks[2]), "forward and backward": _subtract(marks[0], marks[2])}
    return found


def _read_clock(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _subtract(start: Any, stop: Any) -> float:
    """Milliseconds between two readings; events of a GPU are asked once it has reached them."""
    return (stop - start) * 1e3 if isinstance(start, float) else start.elapsed_time(stop)


def _watch_memory[Result](run: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """The result, and the most memory above what was in use: on a GPU of tensors, on Linux of the whole process.

    On a CPU this is the growth of the resident set, whose highest mark the kernel forgets on request; it counts what
    C++ allocates too, and is left out where the system cannot tell.
    """
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return run(), torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed memory that the process has kept would hide what is taken out of it again.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _read_status_bytes("VmRSS")
    except (OSError, AttributeError):
        return run(), None
    result = run()
    return result, max(0, _read_status_bytes("VmHWM") - before)


def _read_status_bytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux writes it for every process"
    return int(found[1]) * 1024


def _make_row(case: Case, step: str, entry: Entry, entries: list[Entry], bound: Any) -> Row:
    one, times = entry.contestant, entry.times_ms[step]
    base: dict[str, Any] = {
        "case": case.label,
        "dtype": str(case.dtype).removeprefix("torch."),
        "step": step,
        "name": one.name,
    }
    failure = entry.failure or (one.backward_obstacle if step != "forward" else None)
    if failure is not None or not times:
        return Row(**base, failed=entry.raised and one.is_ours, remark=f"left out: {failure}")
    rivals = entries[0].times_ms[step]
    ratios = [mine / theirs for mine, theirs in zip(times, rivals, strict=False)]
    median = statistics.median(times)
    facts = {name: value for name, value in entry.facts.items() if step != "forward" or "gradient" not in name}
    return Row(
        **base,
        median_ms=median,
        p20_ms=take_quantile(times, 0.2),
        p80_ms=take_quantile(times, 0.8),
        rounds=len(times),
        ratio=statistics.median(ratios) if ratios else None,
        peak_bytes=entry.peak_bytes.get(step),
        bound=bound.name,
        bound_share=bound.milliseconds / median,
        remark=one.remark,
        **facts,
    )


def take_quantile(values: list[float], share: float) -> float:
    """The value below which a share of them lie."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))

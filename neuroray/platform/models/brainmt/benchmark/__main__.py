"""`python -m neuroray.platform.models.brainmt.benchmark`: BrainMT's steps on this machine, as a report."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from neuroray.errors import NeurorayError
from neuroray.kernels.benchmark.machine import describe_versions, name_file, name_machine
from neuroray.platform.models.brainmt.benchmark.parts import measure_parts, measure_rates
from neuroray.platform.models.brainmt.benchmark.report import FRAMES_TO_PREDICT, Findings, write_report
from neuroray.platform.models.brainmt.benchmark.scaling import measure_point
from neuroray.platform.models.brainmt.benchmark.steps import StepCase, compare_steps
from neuroray.platform.models.brainmt.config import BrainMTConfig
from neuroray.platform.models.brainmt.cost import count_parameters
from neuroray.platform.models.brainmt.memory import StepSize, input_bytes, list_moments

PARTS = ("scaling", "steps", "parts")
_SMALL_GRID = (24, 28, 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is measured on one kind of machine.

    Attributes:
        scaling: The model whose steps are measured against `frames`.
        steps: Cases of the comparison.
        profiled: Cases whose parts are told apart.
    """

    scaling: StepCase
    frames: tuple[int, ...]
    repeats: int
    steps: tuple[StepCase, ...]
    profiled: tuple[StepCase, ...]
    rounds: int


def main(arguments: list[str] | None = None) -> int:
    """Writes the report; 2 where something could not be measured."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    device = device if options.device == "auto" else torch.device(options.device)
    sizes = _choose_sizes(device.type, quick=options.quick)
    findings = Findings(header=_describe(device, given), predicted=_predict_full_size())
    name = name_file(device).replace("kernels-", "brainmt_scaling-", 1)
    try:
        _measure(options, device, sizes, findings, name)
    except NeurorayError as fault:
        print(f"neuroray: {fault}", file=sys.stderr)
        return 2
    return 0


def _measure(options: argparse.Namespace, device: torch.device, sizes: Sizes, findings: Findings, name: str) -> None:
    """The report is written anew after each case, so that a run cut short leaves what it measured."""
    if "scaling" in options.parts:
        case = sizes.scaling
        findings.scaling_case = case.label.split(", T=")[0] + f", width {case.config.width}"
        for frames in sizes.frames:
            _say(f"{frames} frames")
            point = measure_point(
                case.config, frames, device=device.type, bf16=case.bf16, repeats=options.repeats or sizes.repeats
            )
            findings.points.append(point)
        print(write_report(options.out, name, findings), flush=True)
    if "steps" in options.parts:
        for case in sizes.steps:
            _say(case.label)
            findings.steps += compare_steps(case, device, options.repeats or sizes.rounds)
            print(write_report(options.out, name, findings), flush=True)
    if "parts" in options.parts:
        findings.rates = measure_rates(device, bf16=sizes.profiled[0].bf16)
        for case in sizes.profiled:
            _say(f"parts of {case.label}")
            findings.parts += measure_parts(case, device, findings.rates, options.repeats or sizes.rounds)
            print(write_report(options.out, name, findings), flush=True)


def _choose_sizes(device: str, *, quick: bool) -> Sizes:
    """Full size on a GPU; on a CPU the paper's model on few frames, and smaller ones on more."""
    if quick:
        tiny = BrainMTConfig(grid_shape=(24, 17, 20), num_frames=8, width=8, mamba_depth=1, attention_depth=1)
        case = StepCase(name="tiny", config=tiny, num_frames=8)
        return Sizes(scaling=case, frames=(4, 8, 12, 16), repeats=1, steps=(case,), profiled=(case,), rounds=1)
    paper = BrainMTConfig()
    if device == "cuda":
        cases = tuple(StepCase(name="the paper's model", config=paper, num_frames=t, bf16=True) for t in (50, 200))
        scaling = StepCase(name="the paper's model", config=paper, num_frames=200, bf16=True)
        frames = (25, 50, 100, 200, 400, 800)
        return Sizes(scaling=scaling, frames=frames, repeats=5, steps=cases, profiled=cases, rounds=11)
    narrow = BrainMTConfig(grid_shape=(48, 56, 48), width=32)
    small = BrainMTConfig(grid_shape=_SMALL_GRID, num_frames=64, width=16, mamba_depth=2, attention_depth=1)
    deep = BrainMTConfig(grid_shape=_SMALL_GRID, num_frames=16)
    whole = StepCase(name="the paper's model", config=paper, num_frames=2)
    coarse = StepCase(name="the paper's model, small frames", config=deep, num_frames=16)
    smoke = StepCase(name="the smoke recipe's model", config=small, num_frames=64)
    return Sizes(
        scaling=StepCase(name="full depth, a quarter of the width", config=narrow, num_frames=200),
        frames=(25, 50, 75, 100, 150, 200),
        repeats=2,
        steps=(whole, coarse, smoke),
        profiled=(whole, coarse),
        rounds=3,
    )


def _predict_full_size() -> dict[int, int]:
    """State of AdamW, input as stored and standardised, activations: `train --dry-run` of one window."""
    config = BrainMTConfig()
    state = 3 * 4 * sum(count_parameters(config).values()) + 600_000_000
    found: dict[int, int] = {}
    for frames in FRAMES_TO_PREDICT:
        size = StepSize(num_frames=frames, grid_shape=config.grid_shape, bf16=True, on_gpu=True)
        peak = max(moment.total + 4 * moment.num_gradients for moment in list_moments(config, size))
        found[frames] = state + input_bytes(size) * 3 // 2 + peak
    return found


def _describe(device: torch.device, given: list[str]) -> dict[str, str]:
    return {
        "machine": name_machine(device),
        "command": shlex.join(["python", "-m", "neuroray.platform.models.brainmt.benchmark", *given]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "threads": str(torch.get_num_threads()),
        **describe_versions(device),
    }


def _parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m neuroray.platform.models.brainmt.benchmark", description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is measured; all")
    parser.add_argument("--repeats", type=int, default=None, metavar="N", help="rounds, in place of the usual number")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), metavar="DIR")
    return parser.parse_args(given)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

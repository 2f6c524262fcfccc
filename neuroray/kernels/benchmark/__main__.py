"""`python -m neuroray.kernels.benchmark`: holds the kernels against float64, then against their peers."""

from __future__ import annotations

import argparse
import shlex
import sys
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import torch

from neuroray.kernels.benchmark.bounds import Limits, measure_limits
from neuroray.kernels.benchmark.cases import Case, LayerCase, list_cases, list_layers
from neuroray.kernels.benchmark.judge import judge
from neuroray.kernels.benchmark.layer import Part, measure_layer
from neuroray.kernels.benchmark.machine import describe_versions, name_file, name_machine
from neuroray.kernels.benchmark.measure import Row, measure_case
from neuroray.kernels.benchmark.table import write_report


def main(arguments: list[str] | None = None) -> int:
    """Writes the report; 1 where an implementation of ours was wrong or raised, 2 where there is nothing to time."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    device = torch.device(_choose_device(options.device))
    cases = list_cases(options.op, device.type, quick=options.quick)
    layers = list_layers(options.op, device.type, quick=options.quick)
    cases = [case for case in cases if options.only in _name(case)]
    layers = [layer for layer in layers if options.only in _name(layer)]
    if not cases and not layers:
        print(f"no shape's name contains {options.only!r}", file=sys.stderr)
        return 2
    judged = judge([*cases, *chain.from_iterable(layer.kernels for layer in layers)], device)
    for one in judged:
        if not one.passed:
            print(f"WRONG: {one.name} at {one.case} in {one.dtype}: {one.error:.1e} ({one.worst})", file=sys.stderr)
    limits = measure_limits(device)
    wrong = {f"{one.case.split()[0]} {one.name}" for one in judged if not one.passed}
    rows: list[Row] = []
    parts: list[Part] = []
    report = options.out
    for case in cases:
        print(f"{case.label}, {case.dtype}", file=sys.stderr, flush=True)
        operation = case.label.split()[0]
        refused = {one.removeprefix(f"{operation} ") for one in wrong if one.startswith(f"{operation} ")}
        rows += measure_case(case, device, options.repeats, limits, refused)
        # After each case, so that a run cut short still leaves what it measured.
        report = write_report(options.out, name_file(device), _describe(device, given, limits), judged, rows, parts)
    for layer in layers:
        print(f"{layer.label}, {layer.dtype}", file=sys.stderr, flush=True)
        parts += measure_layer(layer, device, options.repeats, wrong)
        report = write_report(options.out, name_file(device), _describe(device, given, limits), judged, rows, parts)
    print(report)
    return int(any(not one.passed for one in judged) or any(one.failed for one in (*rows, *parts)))


def _parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m neuroray.kernels.benchmark", description=__doc__)
    parser.add_argument("--op", choices=("scan", "pool", "conv", "layer", "all"), default="all")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--quick", action="store_true", help="small shapes: whether it runs, not how fast")
    parser.add_argument("--only", default="", metavar="TEXT", help="shapes whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), metavar="DIR")
    parser.add_argument("--repeats", type=_count, default=11, metavar="N", help="rounds in which each is run once")
    return parser.parse_args(given)


def _name(case: Case | LayerCase) -> str:
    return f"{case.label} {str(case.dtype).removeprefix('torch.')}"


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _choose_device(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _describe(device: torch.device, given: list[str], limits: Limits) -> dict[str, str]:
    return {
        "machine": name_machine(device),
        "command": shlex.join(["python", "-m", "neuroray.kernels.benchmark", *given]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "threads": str(torch.get_num_threads()),
        "copy": f"{limits.copy_bytes_per_s / 1e9:.0f} GB/s read and written, measured",
        **describe_versions(device),
    }


if __name__ == "__main__":
    sys.exit(main())

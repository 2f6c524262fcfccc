"""`python -m neuroray.platform.data.benchmark`: the data path against its peers on this machine, as a report."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from neuroray.errors import NeurorayError
from neuroray.platform.data.benchmark.made_run import QUICK_SHAPE, WHOLE_SHAPE, make_run
from neuroray.platform.data.benchmark.memory import measure_reader, watch_stream
from neuroray.platform.data.benchmark.report import Findings, describe, judge, write_report
from neuroray.platform.data.benchmark.rounds import compete
from neuroray.platform.data.benchmark.sizes import QUICK, WHOLE, Sizes
from neuroray.platform.data.benchmark.streams import StreamTask, compare_streams, local_ray
from neuroray.platform.data.benchmark.workplace import (
    Workplace,
    check_windows,
    list_full_readers,
    list_window_readers,
    prepare,
)


def main(arguments: list[str] | None = None) -> int:
    """Writes the report; 1 where a target was missed, 2 where nothing could be measured."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    command = shlex.join(["python", "-m", "neuroray.platform.data.benchmark", *given])
    findings = Findings(header=describe(command, f"{datetime.now(UTC):%Y-%m-%d}"))
    try:
        with tempfile.TemporaryDirectory(prefix="neuroray-bench-", dir=options.work) as folder:
            measure(Path(folder), options, findings)
    except NeurorayError as fault:
        print(f"neuroray: {fault}", file=sys.stderr)
        return 2
    return int(any(one.passed is False for one in findings.targets))


def measure(folder: Path, options: argparse.Namespace, findings: Findings) -> None:
    """All parts, the report written anew after each, so that a run cut short leaves what it measured."""
    sizes = QUICK if options.quick else WHOLE
    _say("making the run")
    scan = make_run(options.source, QUICK_SHAPE if options.quick else WHOLE_SHAPE)
    place = prepare(folder, scan, sizes.short_frames)
    del scan
    check_windows(place, sizes.window_frames)

    def report() -> None:
        findings.targets = judge(findings, _window_case(sizes), _full_case(sizes))
        print(write_report(options.out, findings), flush=True)

    if "windows" in options.parts:
        _measure_windows(place, sizes, findings)
        report()
    if "memory" in options.parts:
        _say("memory of a reader")
        findings.reader_peak = measure_reader(place, sizes.window_frames)
        report()
    if "stream" in options.parts:
        _measure_streams(place, sizes, findings)
        report()


def _measure_windows(place: Workplace, sizes: Sizes, findings: Findings) -> None:
    for num_frames, case in ((sizes.window_frames, _window_case(sizes)), (sizes.clip_frames, _clip_case(sizes))):
        starts = np.random.default_rng(0).integers(
            0, place.shape[0] - num_frames, max(sizes.warm_rounds, sizes.cold_rounds)
        )
        for cold, rounds in ((False, sizes.warm_rounds), (True, sizes.cold_rounds)):
            _say(f"{case}, {'cold' if cold else 'warm'}")
            tasks = [int(start) for start in starts[:rounds]]
            size_bytes = num_frames * place.frame_bytes
            readers = list_window_readers(place, num_frames)
            findings.rows += compete(case, readers, tasks, size_bytes=size_bytes, cold=cold)
    for cold, rounds in ((False, sizes.warm_rounds), (True, sizes.cold_rounds)):
        _say(f"{_full_case(sizes)}, {'cold' if cold else 'warm'}")
        size_bytes = place.short_frames * place.frame_bytes
        readers = list_full_readers(place)
        findings.rows += compete(_full_case(sizes), readers, range(rounds), size_bytes=size_bytes, cold=cold)


def _measure_streams(place: Workplace, sizes: Sizes, findings: Findings) -> None:
    with local_ray(sizes.object_store_bytes, num_cpus=4):
        for num_processes in sizes.num_processes:
            _say(f"stream, {num_processes} reading processes")
            task = StreamTask(
                num_frames=sizes.window_frames,
                num_windows=sizes.stream_windows,
                num_processes=num_processes,
                buffer_bytes=sizes.buffer_bytes,
            )
            findings.rows += compare_streams(place, task, sizes.stream_rounds)
        _say("memory of the stream")
        long = StreamTask(
            num_frames=sizes.window_frames,
            num_windows=sizes.long_windows,
            num_processes=2,
            buffer_bytes=sizes.buffer_bytes,
        )
        findings.stream_memory = watch_stream(place, long)


def _window_case(sizes: Sizes) -> str:
    return f"{sizes.window_frames}-frame windows"


def _clip_case(sizes: Sizes) -> str:
    return f"{sizes.clip_frames}-frame windows"


def _full_case(sizes: Sizes) -> str:
    return f"full read of {sizes.short_frames} frames"


def _parse(given: list[str]) -> argparse.Namespace:
    parts = ("windows", "memory", "stream")
    parser = argparse.ArgumentParser(prog="python -m neuroray.platform.data.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether it runs, not how fast")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what is measured; all")
    parser.add_argument(
        "--work", type=Path, default=None, metavar="DIR", help="where 8 GB of files are made, and removed"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), metavar="DIR")
    parser.add_argument("--source", type=Path, default=Path("tests/data/pumi"), metavar="DIR", help="a small real run")
    return parser.parse_args(given)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

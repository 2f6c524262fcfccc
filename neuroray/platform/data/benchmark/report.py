"""The report: Markdown to read, and the same rows as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from itertools import groupby
from pathlib import Path

import torch

from neuroray.kernels.benchmark.machine import describe_versions, name_machine
from neuroray.platform.data.benchmark.memory import ReaderPeak, StreamMemory
from neuroray.platform.data.benchmark.rounds import Row

METHOD = """\
All contestants read the same run: int16 where ours and nibabel keep it, z-scored float16 where the peers keep that.
Their windows are first compared, number by number. Each round is one window at another random start: every contestant
once, another one first each time; the ratio is that of a round's two times, its median over the rounds, above 1 where
ours is quicker. Warm: the files were read before. Cold: they are dropped from the page cache before each turn (the
disk's and the host's own caches are not). MB/s are of int16 voxels. Rows that lose stay in."""

COLUMNS = ("who", "median s", "p20-p80 s", "rounds", "MB/s", "time / ours", "remark")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What was to be reached, and what was."""

    name: str
    needed: str
    reached: float | None
    passed: bool | None


@dataclass(slots=True)
class Findings:
    """All that a run of the benchmark has measured so far."""

    header: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    reader_peak: ReaderPeak | None = None
    stream_memory: StreamMemory | None = None
    targets: list[Target] = field(default_factory=list)


def judge(findings: Findings, window_case: str, full_case: str) -> list[Target]:
    """The targets of the data path, against the rows."""

    def find(case: str, cache: str, start: str) -> float | None:
        found = [r.ratio for r in findings.rows if (r.case, r.cache) == (case, cache) and r.name.startswith(start)]
        return found[0] if found else None

    wanted = [
        ("window, warm: against BrainMT's way", 6.0, find(window_case, "warm", "BrainMT")),
        ("window, cold: against BrainMT's way", 10.0, find(window_case, "cold", "BrainMT")),
        ("window, warm: against SwiFT's way", 1.5, find(window_case, "warm", "SwiFT")),
        ("window, cold: against SwiFT's way", 3.0, find(window_case, "cold", "SwiFT")),
        ("full read, warm: against nibabel on .nii.gz", 8.0, find(full_case, "warm", "nibabel, .nii.gz")),
    ]
    targets = [_judge(name, value, needed) for name, needed, value in wanted]
    targets += [
        _judge(f"Ray Data: rate over that of the same reader alone; {row.case}", row.ratio, 0.7)
        for row in findings.rows
        if "no Ray" in row.name
    ]
    if findings.reader_peak is not None:
        targets.append(_judge("a reader's peak memory over its window", findings.reader_peak.ratio, 3.0, at_most=True))
    memory = findings.stream_memory
    if memory is not None:
        targets += [
            _judge(
                "object store while streaming, over the setting",
                memory.store_peak_bytes / memory.buffer_bytes,
                1.0,
                at_most=True,
            ),
            _judge(
                "memory beside it: growth from the first half to the second, in windows",
                (memory.second_half_bytes - memory.first_half_bytes) * memory.num_windows / memory.passed_bytes,
                0.25,
                at_most=True,
            ),
        ]
    return targets


def describe(command: str, date: str) -> dict[str, str]:
    """Machine, command and versions."""
    known = describe_versions(torch.device("cpu"))
    found = {
        "machine": name_machine(torch.device("cpu")),
        "command": command,
        "date": date,
        "threads": str(torch.get_num_threads()),
        "python": known["python"],
        "torch": known["torch"],
    }
    for package in ("ray", "zarr", "numcodecs", "obstore", "nibabel", "zarrs", "tensorstore"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"commit": known["commit"]}


def name_file(kind: str) -> str:
    """`<kind>-<machine>`, in lower case, for a file."""
    named = f"{name_machine(torch.device('cpu'))} {torch.get_num_threads()} threads"
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", named.lower()).strip("-")


def write_report(folder: Path, findings: Findings) -> Path:
    """Writes `data-<machine>.md` and `.json`; gives the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    name = name_file("data")
    content = {
        "header": findings.header,
        "targets": [asdict(one) for one in findings.targets],
        "rows": [asdict(row) for row in findings.rows],
        "reader_peak": None if findings.reader_peak is None else asdict(findings.reader_peak),
        "stream_memory": None if findings.stream_memory is None else asdict(findings.stream_memory),
    }
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    path = folder / f"{name}.md"
    path.write_text("\n".join(_format(findings)) + "\n")
    return path


def format_rows(rows: Sequence[Row]) -> list[str]:
    """A table of contestants."""
    lines = [_join(COLUMNS), "|" + "---|" * len(COLUMNS)]
    for row in rows:
        own = row.name == "ours" or row.name.startswith("ours,")
        spread = "-" if row.p20_s is None or row.p80_s is None else f"{row.p20_s:.3g}-{row.p80_s:.3g}"
        numbers = [_write(row.median_s, "{:.3g}"), spread, str(row.rounds or "-")]
        numbers += [_write(row.rate_mb_per_s, "{:.0f}"), _write(row.ratio, "{:.2f}")]
        lines.append(_join([f"**{row.name}**" if own else row.name, *numbers, row.remark]))
    return lines


def _format(findings: Findings) -> list[str]:
    header = findings.header
    lines = [f"# The data path on {header['machine']}", "", *(f"- {key}: {value}" for key, value in header.items())]
    lines += ["", METHOD, "", "## Targets", "", "| what | needed | reached | |", "|---|---|---|---|"]
    for one in findings.targets:
        verdict = "-" if one.passed is None else ("yes" if one.passed else "**no**")
        lines.append(_join([one.name, one.needed, _write(one.reached, "{:.2f}"), verdict]))
    for (case, cache), group in groupby(findings.rows, key=lambda row: (row.case, row.cache)):
        lines += ["", f"## {case}, {cache}", "", *format_rows(list(group))]
    if findings.reader_peak is not None:
        peak = findings.reader_peak
        lines += ["", "## Memory of a reader", ""]
        lines += [
            f"{peak.num_windows} windows of {peak.window_bytes / 2**20:.0f} MiB one after the other, in a process of "
            f"their own: its resident set rose by at most {peak.peak_bytes / 2**20:.0f} MiB, {peak.ratio:.2f} windows."
        ]
    if findings.stream_memory is not None:
        lines += ["", "## Memory of the stream", "", *_format_memory(findings.stream_memory)]
    return lines


def _format_memory(memory: StreamMemory) -> list[str]:
    mib = 2**20
    return [
        f"{memory.num_windows} windows, {memory.passed_bytes / 1e9:.0f} GB of int16, through Ray Data with "
        f"`buffer_bytes` {memory.buffer_bytes / mib:.0f} MiB, sampled five times a second.",
        "",
        f"- object store, most in use: {memory.store_peak_bytes / mib:.0f} MiB",
        f"- private memory of this process, Ray and its readers above the start: at most "
        f"{memory.process_peak_bytes / mib:.0f} MiB; median of the first half of the samples "
        f"{memory.first_half_bytes / mib:.0f} MiB, of the second {memory.second_half_bytes / mib:.0f} MiB",
    ]


def _judge(name: str, reached: float | None, needed: float, *, at_most: bool = False) -> Target:
    passed = None if reached is None else (reached <= needed if at_most else reached >= needed)
    words = f"{'at most' if at_most else 'at least'} {needed:g}"
    return Target(name=name, needed=words, reached=reached, passed=passed)


def _write(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _join(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

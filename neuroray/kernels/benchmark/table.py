"""The tables: Markdown to read, and the same rows as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import groupby
from math import isfinite
from pathlib import Path
from typing import Any

from neuroray.kernels.benchmark.judge import Judgement
from neuroray.kernels.benchmark.layer import Part
from neuroray.kernels.benchmark.measure import Row

METHOD = """\
Every implementation of ours is first held against the reference in float64, at a small and a middle shape; one that is
wrong is not timed. Each round runs every contestant once, another one first each time; the ratio is that of a round's
two times, its median over the rounds, above 1 where ours (the one that `auto` takes) is quicker. A dash is explained in
the last column. Errors are ||given - exact|| / ||exact|| against float64 on the same rounded inputs, of the output and
of the worst gradient. Inputs are in each contestant's own layout beforehand. `forward` is without a graph. Peak memory
is what a pass adds to what was there: on a GPU the allocator's, on a CPU the growth of the resident set. The bound is
the least time that the named resource needs, over the measured time; an estimate is not a measurement. Deterministic:
two runs gave the same bits, in output and gradients."""

COLUMNS: dict[str, Callable[[Row], str]] = {
    "pass": lambda row: row.step,
    "who": lambda row: f"**{row.name}**" if row.name.startswith("ours") else row.name,
    "median ms": lambda row: _write(row.median_ms, "{:.3g}"),
    "p20-p80 ms": lambda row: "-" if row.p20_ms is None else f"{row.p20_ms:.3g}-{row.p80_ms:.3g}",
    "time / ours": lambda row: _write(row.ratio, "{:.2f}"),
    "peak MiB": lambda row: "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
    "output error": lambda row: _write(row.output_error, "{:.1e}"),
    "worst gradient": lambda row: (
        "-" if row.gradient_error is None else f"{row.gradient_error:.1e} ({row.worst_gradient})"
    ),
    "bound reached": lambda row: "-" if row.bound_share is None else f"{row.bound_share:.0%} of {row.bound}",
    "deterministic": lambda row: "-" if row.deterministic is None else ("yes" if row.deterministic else "no"),
    "remark": lambda row: row.remark,
}


LAYER_METHOD = """\
The parts of one layer, each on tensors of its own, taken in turns like the contestants above. The share is that of the
sum over all parts with our convolution; the peer's, of the sum with it in its place. What a part's share is bounds what
a kernel of it could gain."""

PART_COLUMNS: dict[str, Callable[[Part], str]] = {
    "pass": lambda part: part.step,
    "part": lambda part: part.name,
    "who": lambda part: f"**{part.who}**" if part.who.startswith("ours") else part.who,
    "median ms": lambda part: _write(part.median_ms, "{:.3g}"),
    "p20-p80 ms": lambda part: "-" if part.p20_ms is None else f"{part.p20_ms:.3g}-{part.p80_ms:.3g}",
    "share": lambda part: _write(part.share, "{:.1%}"),
    "remark": lambda part: part.remark,
}


def _write(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def write_report(
    folder: Path, name: str, header: dict[str, str], judged: list[Judgement], rows: list[Row], parts: list[Part]
) -> Path:
    """Writes `<name>.md` and `<name>.json`; gives the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    lists = {"gate": judged, "rows": rows, "parts": parts}
    content = {"header": header} | {what: [_list(one) for one in some] for what, some in lists.items()}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    path = folder / f"{name}.md"
    path.write_text(format_report(header, judged, rows, parts))
    return path


def _list(one: Judgement | Row | Part) -> dict[str, Any]:
    """Its fields; JSON has no NaN and no infinity, so they are written as words."""
    odd = {name: str(value) for name, value in asdict(one).items() if isinstance(value, float) and not isfinite(value)}
    return asdict(one) | odd


def format_report(header: dict[str, str], judged: list[Judgement], rows: list[Row], parts: list[Part]) -> str:
    """The whole page."""
    lines = [f"# Kernels on {header['machine']}", "", *(f"- {key}: {value}" for key, value in header.items())]
    lines += ["", METHOD, "", "## Held against float64", "", *_format_gate(judged)]
    for (case, dtype), group in groupby(rows, key=lambda row: (row.case, row.dtype)):
        lines += ["", f"## {case}, {dtype}", "", *_format_rows(COLUMNS, list(group))]
    for (case, dtype), group in groupby(parts, key=lambda part: (part.case, part.dtype)):
        lines += ["", f"## {case}, {dtype}", "", LAYER_METHOD, "", *_format_rows(PART_COLUMNS, list(group))]
    return "\n".join(lines) + "\n"


def _format_gate(judged: list[Judgement]) -> list[str]:
    lines = ["| who | shape | dtype | largest error | of | passed |", "|---|---|---|---|---|---|"]
    for one in judged:
        cells = (one.name, one.case, one.dtype, f"{one.error:.1e}", one.worst, "yes" if one.passed else "**no**")
        lines.append(_join(cells))
    return lines


def _format_rows[One](columns: dict[str, Callable[[One], str]], rows: list[One]) -> list[str]:
    return [
        _join(columns),
        "|" + "---|" * len(columns),
        *(_join(write(row) for write in columns.values()) for row in rows),
    ]


def _join(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

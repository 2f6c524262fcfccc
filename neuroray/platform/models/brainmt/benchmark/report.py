"""The report: tables in Markdown, the same rows as JSON, and the figure of memory and time against frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from neuroray.platform.models.brainmt.benchmark.parts import PartRow, Rates
from neuroray.platform.models.brainmt.benchmark.scaling import Fit, Point, fit_polynomial
from neuroray.platform.models.brainmt.benchmark.steps import StepRow

PUBLISHED_GB = {
    "BrainMT": {10: 3.2, 20: 5.7, 30: 7.6, 100: 20.6, 200: 40.0, 300: 63.2, 400: 76.0},
    "SwiFT": {10: 7.6, 20: 12.4, 30: 19.4, 100: 57.6},
}
"""Peak training memory by frames, read off the paper's figure (arXiv 2506.22591) to about 0.3 GB; batch and GPU are not
told there. SwiFT did not fit 80 GB at 200 frames."""

FRAMES_TO_PREDICT = (10, 20, 30, 100, 200, 300, 400, 800)


@dataclass(slots=True)
class Findings:
    """What has been measured so far.

    Attributes:
        predicted: Peak bytes of a whole step of the paper's model on its own grid, batch 1, bf16, on a GPU, by frames.
    """

    header: dict[str, str]
    scaling_case: str = ""
    points: list[Point] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    parts: list[PartRow] = field(default_factory=list)
    rates: Rates | None = None
    predicted: dict[int, int] = field(default_factory=dict)


def write_report(folder: Path, name: str, findings: Findings) -> Path:
    """Writes `<name>.md`, `<name>.json` and, once there are points, `<name>.png`; gives the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(asdict(findings), indent=1) + "\n")
    if findings.points:
        draw(folder / f"{name}.png", findings)
    path = folder / f"{name}.md"
    path.write_text("\n".join(_format(name, findings)) + "\n")
    return path


def _format(name: str, findings: Findings) -> list[str]:
    lines = [f"# BrainMT's steps on {findings.header['machine']}", ""]
    lines += [f"- {key}: {value}" for key, value in findings.header.items()]
    if findings.points:
        lines += ["", *_format_scaling(name, findings)]
    if findings.predicted:
        lines += ["", *_format_published(findings)]
    if findings.steps:
        lines += ["", "## A step against other ways to compute it", "", _STEP_METHOD]
        for case, rows in groupby(findings.steps, key=lambda row: row.case):
            lines += ["", f"### {case}", "", *_format_steps(list(rows))]
    if findings.parts:
        lines += ["", "## Where the time goes", "", *_tell_parts(findings)]
        for case, rows in groupby(findings.parts, key=lambda row: row.case):
            lines += ["", f"### {case}", "", *_format_parts(list(rows))]
    return lines


_STEP_METHOD = """\
A step is forward and backward of one window, without the optimiser. Each contestant has our weights; its tokens after
the last layer are held against ours first (error, relative), then it is warmed up by one step. Every round runs each
once, another one first each time; the ratio is that of a round's two times, its median over the rounds, above 1 where
ours is quicker."""

_SCALING_METHOD = """\
Each number of frames in a fresh process. Peak memory is what the first step of that size adds to model and input: on a
CPU the growth of the resident set (with `MALLOC_MMAP_THRESHOLD_=65536`, so that freed memory is given back), on a GPU
the allocator's. Predicted: the memory model of `neuroray train --dry-run`."""

_PUBLISHED_METHOD = """\
Peak of a training step by the memory model: 91 x 109 x 91, batch 1, bfloat16, AdamW, on one GPU, everything counted
(state, input, 0.6 GB for the process). Beside it what the paper's figure shows for the authors' code and for SwiFT:
read off the figure to about 0.3 GB, batch size and GPU not told there; a published reference, not a measurement of
ours."""

_PARTS_METHOD = """\
Self time of torch's operations by part, from its profiler; backward computes again what checkpoints left out. The floor
of a part is its operations over the rate of a large matrix product, of scans (with their convolutions) the bytes that
they must read and write over the rate of a copy; exponentials, 16 per place and direction, are not in it. Convolutions
may reach more than all of their floor: it counts the zeros around a frame, which a library need not multiply."""


def fit_memory(points: Sequence[Point]) -> Fit:
    """A line through peak bytes by frames."""
    return fit_polynomial([p.num_frames for p in points], [p.peak_bytes for p in points], 1)


def fit_time(points: Sequence[Point]) -> Fit:
    """A parabola through seconds by frames: attention looks at all pairs of tokens."""
    return fit_polynomial([p.num_frames for p in points], [p.median_s for p in points], 2)


def _format_scaling(name: str, findings: Findings) -> list[str]:
    points = findings.points
    memory = fit_memory(points)
    lines = [
        f"## Memory and time against frames: {findings.scaling_case}",
        "",
        _SCALING_METHOD,
        "",
        "| frames | tokens | peak MB | predicted MB | at | measured / predicted | s per step | min-max | TFLOP |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        _join(
            (
                str(p.num_frames),
                str(p.num_tokens),
                f"{p.peak_bytes / 1e6:.1f}",
                f"{p.predicted_bytes / 1e6:.1f}",
                p.largest,
                f"{p.peak_bytes / p.predicted_bytes:.2f}",
                f"{p.median_s:.3g}",
                f"{min(p.seconds):.3g}-{max(p.seconds):.3g}",
                f"{p.flops / 1e12:.3g}",
            )
        )
        for p in points
    ]
    lines += ["", f"Memory over all of them: {_tell_line(memory)}."]
    long = [point for point in points if point.largest != "convolutions"]
    if 2 < len(long) < len(points):
        told = _tell_line(fit_memory(long))
        lines.append(
            f"Where a layer of the sequence holds most, and not a chunk of frames in the convolutions: {told}."
        )
    if len(points) > 3:
        time = fit_time(points)
        at_most = points[-1]
        square = time.coefficients[2] * at_most.num_frames**2
        lines.append(
            f"Time is a line and a square: {time.coefficients[0]:.3g} s + {time.coefficients[1]:.3g} s per frame + "
            f"{time.coefficients[2]:.3g} s per frame squared, R2 {time.r2:.5f}, largest residual {time.worst:.1%}; at "
            f"{at_most.num_frames} frames the square is {square / at_most.median_s:.0%} of a step."
        )
    return [*lines, "", f"![memory and time against frames]({name}.png)"]


def _tell_line(fit: Fit) -> str:
    base, slope = (one / 1e6 for one in fit.coefficients)
    residual = f"largest residual {fit.worst:.1%} of what was measured there"
    return f"{base:.1f} MB + {slope:.3f} MB per frame, R2 {fit.r2:.5f}, {residual}"


def _format_published(findings: Findings) -> list[str]:
    lines = [
        "## The paper's model at full size: predicted, not measured here",
        "",
        _PUBLISHED_METHOD,
        "",
        "| frames | ours, predicted GB | BrainMT, published GB | SwiFT, published GB |",
        "|---|---|---|---|",
    ]
    for frames, size in findings.predicted.items():
        theirs = PUBLISHED_GB["BrainMT"].get(frames)
        swift = PUBLISHED_GB["SwiFT"].get(frames)
        told = "-" if swift is None else f"{swift:.1f}"
        told = "does not fit 80" if frames == 200 else told
        lines.append(_join((str(frames), f"{size / 1e9:.1f}", "-" if theirs is None else f"{theirs:.1f}", told)))
    return lines


def _format_steps(rows: Sequence[StepRow]) -> list[str]:
    lines = ["| who | median s | p20-p80 s | rounds | time / ours | error | remark |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        who = f"**{row.name}**" if row.name == "ours" else row.name
        error = "-" if row.output_error is None else f"{row.output_error:.0e}"
        if row.median_s is None or row.ratio is None:
            lines.append(_join((who, "-", "-", "-", "-", error, row.remark)))
            continue
        spread = f"{row.p20_s:.3g}-{row.p80_s:.3g}"
        lines.append(
            _join((who, f"{row.median_s:.3g}", spread, str(row.rounds), f"{row.ratio:.2f}", error, row.remark))
        )
    return lines


def _tell_parts(findings: Findings) -> list[str]:
    rates = findings.rates
    lines = [_PARTS_METHOD, ""]
    if rates is not None:
        gflops, copied = rates.flops_per_s / 1e9, rates.copy_bytes_per_s / 1e9
        lines.append(
            f"Measured here: {gflops:.0f} GFLOP/s in matrix products, {copied:.0f} GB/s read and written by a copy."
        )
    return lines


def _format_parts(rows: Sequence[PartRow]) -> list[str]:
    lines = ["| pass | part | s | share | floor s | floor / time | floor of |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        floor = ("-", "-", "-")
        if row.floor_s is not None and row.seconds > 0:
            floor = (f"{row.floor_s:.3g}", f"{row.floor_s / row.seconds:.0%}", row.floor)
        lines.append(_join((row.step, row.name, f"{row.seconds:.3g}", f"{row.share:.0%}", *floor)))
    return lines


def draw(path: Path, findings: Findings) -> None:
    """Memory on the left, time on the right; measured points, the fitted lines, the memory model's curve."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = findings.points
    frames = [p.num_frames for p in points]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(frames, [p.peak_bytes / 1e6 for p in points], "o", color="#1f4e79", label="measured")
    left.plot(frames, [p.predicted_bytes / 1e6 for p in points], "--", color="#c55a11", label="memory model")
    long = [p for p in points if p.largest != "convolutions"]
    base, slope = fit_memory(long if len(long) > 2 else points).coefficients
    left.plot(frames, [(base + slope * t) / 1e6 for t in frames], "-", color="#1f4e79", lw=1, label="linear fit")
    left.set(xlabel="frames", ylabel="peak memory of a step, MB", ylim=(0, None))
    right.plot(frames, [p.median_s for p in points], "o", color="#1f4e79", label="measured")
    if len(points) > 3:
        a, b, c = fit_time(points).coefficients
        right.plot(frames, [a + b * t + c * t * t for t in frames], "-", color="#1f4e79", lw=1, label="line and square")
    right.set(xlabel="frames", ylabel="seconds per step", ylim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(findings.scaling_case, fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _join(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

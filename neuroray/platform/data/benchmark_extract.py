"""Slice features of a volume against the loop that one would write with timm, scipy and PIL: speed and difference."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from neuroray.platform.models.brainrotvit import BrainRotViTConfig
from neuroray.platform.models.brainrotvit.config import BACKBONE
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig

Volume = np.ndarray
Contestant = Callable[[Volume], torch.Tensor]

_HEAD_SHAPE = (181, 217, 181)
_FASTEST_WANTED = 1.5


def main() -> None:
    """Measures and writes the table; exit code 1 where ours is not 1.5 times the plain loop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--slices", type=int, default=32, help="of a volume; the paper's 160 take half a minute each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/extract.md"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options)
    options.out.write_text(render(found))
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    print(render(found))
    raise SystemExit(0 if found["rows"][-1]["processor_speedup"] >= _FASTEST_WANTED else 1)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times of every contestant, taken in turns, so that each round is one comparison on the same machine."""
    contestants = build_contestants(options)
    head = make_head()
    maps = {name: run(head) for name, run in contestants.items()}  # warms up, too
    reference = maps["timm, one slice at a time"]
    times: dict[str, list[float]] = {name: [] for name in contestants}
    work: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, run in contestants.items():
            began, began_work = time.perf_counter(), time.process_time()
            run(head)
            times[name].append(time.perf_counter() - began)
            work[name].append(time.process_time() - began_work)
    rows = []
    for name, taken in times.items():
        ratios = _compare(times, name)
        error = (maps[name] - reference).norm() / reference.norm()
        rows.append(
            {
                "name": name,
                "seconds": statistics.median(taken),
                "slices_per_s": options.slices / statistics.median(taken),
                "speedup": statistics.median(ratios),
                "speedups": [round(ratio, 3) for ratio in ratios],
                "processor_seconds": statistics.median(work[name]),
                "processor_speedup": statistics.median(_compare(work, name)),
                "relative_difference": float(error),
            }
        )
    machine = {"machine": name_cpu(), "threads": options.threads, "torch": torch.__version__}
    chosen = {name: getattr(options, name) for name in ("backbone", "image_size", "slices", "rounds")}
    return {**machine, **chosen, "rows": rows}


def _compare(times: dict[str, list[float]], name: str) -> list[float]:
    """How many times as long the plain loop took, round by round."""
    return [slow / fast for slow, fast in zip(times["timm, one slice at a time"], times[name], strict=True)]


def build_contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    """All of the same random weights; the last is the one that the recipes use."""
    encoder = SliceEncoderConfig(backbone=options.backbone, readout="mean", batch_size=16)
    slices = ResampledStackConfig(num_slices=options.slices, image_size=options.image_size)
    head = {"kernels": ((1, 1),), "widths": (1,), "hidden": (1,)}  # not run here
    full = BrainRotViTConfig(slices=slices, encoder=encoder, **head).build().eval()
    halved = dataclasses.replace(encoder, precision="bfloat16")
    half = BrainRotViTConfig(slices=slices, encoder=halved, **head).build().eval()
    backbone = full.encoder.backbone

    def ours(model: Any) -> Contestant:
        return lambda volume: model.encode(torch.from_numpy(volume)).features

    return {
        "timm, one slice at a time": lambda volume: _loop(backbone, volume, options, batch_size=1),
        "timm, 16 slices at a time": lambda volume: _loop(backbone, volume, options, batch_size=16),
        "neuroray, float32": ours(full),
        "neuroray, bfloat16": ours(half),
    }


def make_head() -> Volume:
    """A smooth bright ellipsoid in the dark, of the size of a head at 1 mm."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, length) for length in _HEAD_SHAPE), indexing="ij"))
    inside = ((grid / 0.85) ** 2).sum(0) < 1
    texture = np.sin(9 * grid).sum(0)
    return (inside * (100 + 20 * texture)).astype(np.float32)


@torch.inference_mode()
def _loop(backbone: Any, volume: Volume, options: argparse.Namespace, *, batch_size: int) -> torch.Tensor:
    """As scripts have it: crop, zoom, PIL, torchvision's steps written out, the mean over tokens."""
    from PIL import Image
    from scipy import ndimage

    scaled = (volume - volume.min()) / (volume.max() - volume.min())
    labels: Any = cast(Any, ndimage.label(scaled > 0.1))[0]
    largest = int(np.argmax(np.bincount(labels.ravel())[1:])) + 1
    box = ndimage.find_objects(labels)[largest - 1]
    cut = volume[box].astype(np.float64)
    stack: Any = ndimage.zoom(cut, (options.slices / cut.shape[0], 1, 1), order=3)
    pictures = []
    for one in stack:
        grey = ((one - one.min()) / max(one.max() - one.min(), 1e-12) * 255).astype(np.uint8)
        size = (options.image_size, options.image_size)
        picture = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR).convert("RGB"))
        pictures.append((torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255 - 0.5) / 0.5)
    batches = torch.stack(pictures).split(batch_size)
    return torch.cat([backbone.forward_features(batch).mean(1) for batch in batches])


def render(found: dict[str, Any]) -> str:
    """The table as Markdown; a row that loses stays."""
    shape, pixels, rounds = " x ".join(map(str, _HEAD_SHAPE)), found["image_size"], found["rounds"]
    lines = [
        "# Slice features against a plain loop",
        "",
        f"One volume of {shape} voxels to {found['slices']} vectors by `{found['backbone']}`",
        f"with random weights at {pixels} pixels, {found['threads']} threads of {found['machine']}, torch",
        f"{found['torch']}. All in turns, {rounds} rounds; the speed-up is the median of the rounds' own ratios",
        "(all in brackets), of the time on the clock and of processor time, which other work on the machine disturbs",
        "less. The difference is that of all vectors from the first row's, relative to their norm.",
        "",
        "| | s | slices/s | speed-up | processor s | speed-up | difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["speedups"])
        lines.append(
            f"| {row['name']} | {row['seconds']:.2f} | {row['slices_per_s']:.1f} | {row['speedup']:.2f} ({ratios}) "
            f"| {row['processor_seconds']:.2f} | {row['processor_speedup']:.2f} | {row['relative_difference']:.1e} |"
        )
    command = (
        f"python -m neuroray.platform.data.benchmark_extract --backbone {found['backbone']} "
        f"--image-size {pixels} --slices {found['slices']} --rounds {rounds} --threads {found['threads']}"
    )
    return "\n".join([*lines, "", f"`{command}` (`make bench-extract`).", ""])


def name_cpu() -> str:
    """What the processor calls itself."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


if __name__ == "__main__":
    main()

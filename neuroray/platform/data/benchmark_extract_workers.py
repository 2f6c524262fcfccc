"""Extraction of slice features by one actor of Ray and by several: scans a second while all of them work."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroray.platform.data.benchmark.streams import local_ray
from neuroray.platform.data.benchmark_extract import make_head, name_cpu
from neuroray.platform.data.extract import extract_features
from neuroray.platform.models.brainrotvit import BrainRotViTConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

_OBJECT_STORE_BYTES = 2 * 2**30


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="the first is what the others are held to"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/extract_workers.md"))
    options = parser.parse_args()
    found = measure(options)
    options.out.write_text(render(found))
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    print(render(found))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rates of each number of actors, in turns, so that each round is one comparison on the same machine."""
    rates: dict[int, list[float]] = {number: [] for number in options.workers}
    with tempfile.TemporaryDirectory() as folder:
        store = _make_store(Path(folder) / "store", options.scans)
        with local_ray(_OBJECT_STORE_BYTES, max(options.workers) + 2):
            for round_number in range(options.rounds):
                for number in options.workers:
                    # Of another seed, so that nothing is there already.
                    config = _choose_encoder(options, seed=round_number * (max(options.workers) + 1) + number)
                    rates[number].append(_time_actors(store, config, number))
    first = rates[options.workers[0]]
    rows = [
        {
            "workers": number,
            "scans_per_s": statistics.median(found),
            "ratio": statistics.median(mine / base for mine, base in zip(found, first, strict=True)),
            "ratios": [round(mine / base, 3) for mine, base in zip(found, first, strict=True)],
        }
        for number, found in rates.items()
    ]
    chosen = {name: getattr(options, name) for name in ("backbone", "image_size", "scans", "rounds", "workers")}
    return {"machine": name_cpu(), "torch": torch.__version__, **chosen, "rows": rows}


def _time_actors(store: ScanStore, config: BrainRotViTConfig, num_workers: int) -> float:
    """Scans a second from the first one that every actor can have made to the last: starting them is left out."""
    times: list[float] = []

    def watch(made: Iterable[Any], total: int) -> Iterator[Any]:
        del total
        for record in made:
            times.append(time.perf_counter())
            yield record

    names = [record.scan_id for record in store.records()]
    extract_features(store, config, names, num_workers=num_workers, num_cpus=1, track=watch)
    begun = num_workers  # each has made one
    return (len(times) - begun) / (times[-1] - times[begun - 1])


def _make_store(folder: Path, num_scans: int) -> ScanStore:
    store, head = ScanStore.create(str(folder)), make_head()
    records = []
    for number in range(num_scans):
        scan = Scan(voxels=np.roll(head, number, axis=1), affine=np.diag([1.0, 1.0, 1.0, 1.0]))
        name = f"sub-{number:03d}"
        records.append(store.write(scan, scan_id=f"{name}_T1w", subject=name, modality="T1w"))
    store.commit(records)
    return store


def _choose_encoder(options: argparse.Namespace, *, seed: int) -> BrainRotViTConfig:
    encoder = SliceEncoderConfig(
        backbone=options.backbone, readout="mean", batch_size=16, precision="bfloat16", seed=seed
    )
    slices = ResampledStackConfig(image_size=options.image_size)
    return BrainRotViTConfig(slices=slices, encoder=encoder, kernels=((1, 1),), widths=(1,), hidden=(1,))


def render(found: dict[str, Any]) -> str:
    """The table as Markdown; a row that loses stays."""
    lines = [
        "# Slice features by several workers",
        "",
        f"{found['scans']} volumes of 181 x 217 x 181 voxels in a store, 160 slices each by `{found['backbone']}`",
        f"with random weights at {found['image_size']} pixels in bfloat16; each worker an actor of Ray with one thread",
        f"of {found['machine']}, torch {found['torch']}. Scans a second while all actors work (their start left out),",
        f"in turns, {found['rounds']} rounds: the median, and the median of the rounds' own ratios (all in brackets).",
        "",
        "| workers | scans/s | times the first row |",
        "|---:|---:|---:|",
    ]
    for row in found["rows"]:
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        lines.append(f"| {row['workers']} | {row['scans_per_s']:.3f} | {row['ratio']:.2f} ({ratios}) |")
    workers = " ".join(map(str, found["workers"]))
    command = (
        f"python -m neuroray.platform.data.benchmark_extract_workers --backbone {found['backbone']} "
        f"--image-size {found['image_size']} --scans {found['scans']} --workers {workers} --rounds {found['rounds']}"
    )
    return "\n".join([*lines, "", f"`{command}` (`make bench-extract-workers`).", ""])


if __name__ == "__main__":
    main()

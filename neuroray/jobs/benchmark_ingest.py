"""Ingest against nibabel on the same files: rate on one core, memory, and how two Ray workers compare with one.

`python -m neuroray.jobs.benchmark_ingest --out docs/benchmarks/ingest.md` writes the table.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import tyro
from scipy import ndimage

from neuroray.jobs.ingest_graph import ScanGraph, build_graph, run_here, run_on_ray
from neuroray.jobs.ingest_steps import Order
from neuroray.jobs.ray_session import ensure_ray
from neuroray.platform.data.benchmark.process_memory import forget_peak, read_status
from neuroray.platform.data.benchmark.rounds import take_quantile, time_call
from neuroray.storage.profiles import find_profile
from neuroray.storage.sources import list_source
from neuroray.storage.store import ScanStore

_REAL: Final = Path(__file__).resolve().parents[2] / "tests/data/pumi/sub-001"
_MAX_BYTES: Final = 2**31
_T1_SHAPE: Final = (192, 256, 192)
_BOLD_SHAPE: Final = (64, 64, 36, 240)
_COMMAND: Final = "python -m neuroray.jobs.benchmark_ingest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Times ingest against nibabel, and two workers against one."""

    out: str | None = None
    """A Markdown file for the table; only printed when not given."""

    rounds: int = 9
    """Each contestant runs once in every round."""

    copies: int = 20
    """T1 and BOLD files for the comparison of one worker with two: so many of each."""

    without_workers: bool = False
    """Leave out the comparison of workers, which needs two cores for itself."""

    quick: bool = False
    """Tiny files: whether it runs, not how fast."""

    memory_of: str | None = None
    """Only ingest this file, and print the peak of memory over the size of its decoded voxels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison: rates in MB/s of stored voxels, and their ratio round by round; 20th and 80th percentile."""

    what: str
    ours: float
    peer: float
    ratio: float
    ratio_p20: float
    ratio_p80: float
    aim: float
    rounds: int


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints, or writes, the table."""
    args = tyro.cli(Args, args=arguments, description=__doc__)
    if args.memory_of is not None:
        print(_peak_over_decoded(Path(args.memory_of)))
        return
    with tempfile.TemporaryDirectory(prefix="neuroray-bench-") as name:
        folder = Path(name)
        files = make_files(folder / "files", quick=args.quick)
        rows = measure_ingest(files, folder, rounds=args.rounds)
        if not args.without_workers:
            rows.append(measure_workers(files, folder, rounds=max(3, args.rounds // 3), copies=args.copies))
        memory = {path.name: _measure_memory(path) for path in files}
    text = _write_table(rows, memory)
    if args.out is None:
        print(text)
    else:
        Path(args.out).write_text(text)


def make_files(folder: Path, *, quick: bool = False) -> list[Path]:
    """A T1 and a BOLD run as scanners give them: real ones upsampled, with noise in the background too; .nii.gz."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    t1_shape, bold_shape = ((24, 32, 24), (16, 16, 9, 6)) if quick else (_T1_SHAPE, _BOLD_SHAPE)
    t1 = _upsample(_REAL / "anat/sub-001_T1w.nii.gz", t1_shape)
    frame = _upsample(next((_REAL / "func").glob("*_bold.nii.gz")), bold_shape[:3])
    runs = [np.hypot(frame + generator.normal(0, 12, frame.shape), 8) for _ in range(bold_shape[3])]
    images = {
        "sub-1_T1w.nii.gz": np.hypot(t1 + generator.normal(0, 9, t1.shape), generator.normal(0, 9, t1.shape)),
        "sub-1_task-rest_bold.nii.gz": np.stack(runs, axis=-1),
    }
    paths = []
    for name, values in images.items():
        image = nib.Nifti1Image(values.astype(np.int16), np.diag([-1.0, 1.0, 1.0, 1.0]))
        (folder / name).write_bytes(gzip.compress(image.to_bytes(), 6))
        paths.append(folder / name)
    return paths


def measure_ingest(files: list[Path], folder: Path, *, rounds: int) -> list[Row]:
    """One core: whole ingest of a file (digest, checks, statistics, Zarr, commit) against nibabel and a raw write."""
    rows = []
    peers: dict[str, tuple[Callable[[Path], np.ndarray], float]] = {
        "get_fdata() + np.save": (lambda path: nib.load(path).get_fdata(), 0.85),  # type: ignore[attr-defined]
        "np.asanyarray(dataobj) + np.save": (lambda path: np.asanyarray(nib.load(path).dataobj), 0.85),  # type: ignore[attr-defined]
    }
    with _one_core():
        for path in files:
            size_bytes = nib.load(path).dataobj.shape  # type: ignore[attr-defined]
            stored_mb = 2 * float(np.prod(size_bytes)) / 1e6
            for name, (load, aim) in peers.items():
                pairs = [_time_pair(path, load, folder) for _ in range(rounds + 1)][1:]
                rows.append(_compare(f"{path.name}: {name}", pairs, stored_mb, aim))
    return rows


def measure_workers(files: list[Path], folder: Path, *, rounds: int, copies: int) -> Row:
    """The same cohort with one Ray worker and with two, in turns; Ray is started and warm before."""
    source = folder / "cohort"
    source.mkdir()
    for path in files:
        for number in range(copies):
            shutil.copy(path, source / path.name.replace("sub-1", f"sub-{number + 1}"))
    stored_mb = sum(2 * float(np.prod(nib.load(path).shape)) for path in source.iterdir()) / 1e6  # type: ignore[attr-defined]
    pairs = []
    with ensure_ray(num_cpus=2):
        for number in range(rounds + 1):
            times_s = [_time_on_ray(source, folder / f"store-{number}-{workers}", workers) for workers in (2, 1)]
            pairs.append((times_s[0], times_s[1]))
    return _compare(f"{2 * copies} files: 2 Ray workers against 1", pairs[1:], stored_mb, 1.8)


def _upsample(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asanyarray(nib.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    values = values[..., 0] if values.ndim == 4 else values
    factors = [new / old for new, old in zip(shape, values.shape, strict=True)]
    grown = np.asarray(ndimage.zoom(values, factors, order=1), dtype=np.float64)
    return grown * (900 / float(np.percentile(grown, 99)))


def _time_pair(path: Path, load: Callable[[Path], np.ndarray], folder: Path) -> tuple[float, float]:
    """Seconds of our ingest, and of the peer."""
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    opened = ScanStore.create(store)
    [graph] = _graphs(path, opened)
    ours_s = time_call(lambda: opened.commit([_record(graph)]))
    peer_s = time_call(lambda: np.save(folder / "raw.npy", load(path)))
    return ours_s, peer_s


def _graphs(source: Path, store: ScanStore) -> list[ScanGraph]:
    profile = find_profile("native")
    options: dict[str, Any] = {"modality": None, "participant": None, "known": None, "store": store}
    options |= {"profile": profile, "profile_sha256": profile.fingerprint(), "max_bytes": _MAX_BYTES}
    return [build_graph(Order(file=scan.file, **options)) for scan in list_source(str(source)).scans]


def _record(graph: ScanGraph) -> Any:
    [outcome] = run_here([graph])
    return outcome.record


def _time_on_ray(source: Path, store_path: Path, num_workers: int) -> float:
    store = ScanStore.create(store_path)
    graphs = _graphs(source, store)

    def ingest() -> None:
        outcomes = list(run_on_ray(graphs, num_workers=num_workers))
        store.commit([outcome.record for outcome in outcomes if outcome.record])

    seconds = time_call(ingest)
    shutil.rmtree(store_path)
    return seconds


def _compare(what: str, pairs: list[tuple[float, float]], stored_mb: float, aim: float) -> Row:
    ratios = [peer_s / ours_s for ours_s, peer_s in pairs]
    return Row(
        what=what,
        ours=stored_mb / statistics.median(ours_s for ours_s, _ in pairs),
        peer=stored_mb / statistics.median(peer_s for _, peer_s in pairs),
        ratio=statistics.median(ratios),
        ratio_p20=take_quantile(ratios, 0.2),
        ratio_p80=take_quantile(ratios, 0.8),
        aim=aim,
        rounds=len(pairs),
    )


@contextmanager
def _one_core() -> Iterator[None]:
    """This process and its threads on one core, and Zarr with one thread: what one core can do."""
    import zarr

    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        with zarr.config.set({"threading.max_workers": 1}):
            yield
    finally:
        os.sched_setaffinity(0, allowed)


def _measure_memory(path: Path) -> float:
    command = [sys.executable, "-m", "neuroray.jobs.benchmark_ingest", "--memory-of", str(path)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak_over_decoded(path: Path) -> float:
    """The most memory that an ingest takes on top of what was there before, over the size of the decoded voxels."""
    with tempfile.TemporaryDirectory(prefix="neuroray-bench-") as folder:
        store = ScanStore.create(Path(folder) / "store")
        small = Path(folder) / "warm_T1w.nii"
        nib.save(nib.Nifti1Image(np.arange(8 * 9 * 7, dtype=np.int16).reshape(8, 9, 7), np.eye(4)), small)  # type: ignore[attr-defined]
        _record(_graphs(small, store)[0])  # everything is imported and every pool is there
        [graph] = _graphs(path, store)
        forget_peak()
        before_bytes = read_status("VmHWM")
        record = _record(graph)
        taken_bytes = read_status("VmHWM") - before_bytes
    return taken_bytes / (float(np.prod(record.shape)) * np.dtype(record.dtype).itemsize)


def _write_table(rows: list[Row], memory: dict[str, float]) -> str:
    lines = [
        "# Ingest, measured",
        "",
        f"`{_COMMAND}`, {os.cpu_count()} cores. Rates in MB/s of stored voxels (int16). A round runs each contestant",
        "once; the ratio is that of the two times of one round, median with 20th to 80th percentile.",
        "",
        "| | neuroray MB/s | peer MB/s | ratio | p20 to p80 | to reach | rounds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        facts = dataclasses.asdict(row)
        lines.append(
            "| {what} | {ours:.0f} | {peer:.0f} | {ratio:.2f} | {ratio_p20:.2f} to {ratio_p80:.2f} | {aim:.2f} "
            "| {rounds} |".format(**facts)
        )
    lines += ["", "Peak memory of one ingest over the size of its decoded voxels:", "", "| file | times |", "|---|---|"]
    lines += [f"| {name} | {times:.2f} |" for name, times in memory.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Write a simulated cohort with known ground truth as a BIDS folder, grown from the MNI152 template."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.storage.simulate import CohortConfig, SimulationError, simulate_cohort


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """The command line of `neuroray simulate`."""

    out: Positional[str]
    """Folder to write: new, empty, or holding this cohort (what is there is kept) or a smaller one."""
    num_subjects: Annotated[int, arg(aliases=["-n"])] = 40
    """People; half of them with the disease."""
    seed: int = 0
    """Same seed and settings, same bytes."""
    modalities: tuple[Literal["T1w", "bold"], ...] = ("T1w",)
    """Which scans everybody has."""
    spacing_mm: float = 2.0
    """Voxel size of T1w scans."""
    bold_spacing_mm: float = 4.0
    """Voxel size of BOLD scans."""
    num_frames: int = 64
    """Frames of a BOLD run."""
    longitudinal_fraction: float = 0.25
    """Part of the people who come a second time, 2 to 8 years later."""
    min_age_years: float = 20.0
    """Youngest age at the first visit."""
    max_age_years: float = 85.0
    """Oldest age at the first visit."""
    disease_effect: float = 1.0
    """Scales the disease's atrophy; 0 plants none."""
    coupling_effect: float = 1.0
    """Scales what sex and cognition do to the coupling of networks; 0 plants none."""
    skull_stripped: bool = False
    """Leave skull and scalp out."""
    registered: bool = False
    """T1w scans as preprocessing leaves them: straight, of the template's size, on its grid, without shading."""
    workers: int | None = None
    """Processes; by default one per core."""
    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Simulates the cohort that the arguments describe."""
    if "://" in args.out:
        raise SimulationError("a cohort is simulated into a local folder", given=args.out, fix="ingest it from there")
    config, started = _make_config(args), time.monotonic()
    num_workers = _count_cores() if args.workers is None else args.workers
    if num_workers < 1:
        raise SimulationError("at least one worker is needed", given=num_workers)
    with record_run(args.out, job="simulate", args=args, seed=args.seed) as record:
        summary = simulate_cohort(
            config,
            args.out,
            num_workers=num_workers,
            watch=lambda people: progress(people, total=config.num_subjects, label="simulate", unit="person"),
        )
        answer = {"out": str(Path(args.out)), **dataclasses.asdict(summary)}
        record.add(cohort=answer, config=config.to_json())
    seconds = time.monotonic() - started
    answer["text"] = (
        f"{summary.num_scans} scans of {summary.num_subjects} simulated people ({summary.num_visits} visits, "
        f"{summary.size_bytes / 1e6:.0f} MB) in {args.out}; {summary.num_simulated} made now, in {seconds:.1f} s"
    )
    return answer


def _count_cores() -> int:
    # A container may lend fewer cores than the machine has; not every system can say so.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_config(args: Args) -> CohortConfig:
    wanted = [field.name for field in dataclasses.fields(CohortConfig) if field.name != "head"]
    return CohortConfig(**{name: getattr(args, name) for name in wanted}, head=not args.skull_stripped)

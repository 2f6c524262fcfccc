"""`neuroray qc`: a page on how good a store's scans are: who stands apart, pictures without faces, motion, measures."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
import shlex
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

import neuroray
from neuroray.jobs.logs import progress
from neuroray.jobs.ray_session import ensure_ray
from neuroray.jobs.run_record import record_run
from neuroray.jobs.spread import is_on_cluster, spread_over_ray
from neuroray.platform.quality.cohort import Cohort, Examined, compare_scans, field_of_view_mm
from neuroray.platform.quality.examine import VERSION, ScanQuality, examine_scan
from neuroray.platform.quality.measures import MEASURES
from neuroray.platform.quality.page import PageFacts, render_page, tell_headline
from neuroray.platform.quality.saved import file_name, load_quality, save_quality
from neuroray.storage.faults import StoreError
from neuroray.storage.store import ScanRecord, ScanStore
from neuroray.storage.whole_file import replace_file

_CACHE = "scans"
_FORMAT = 1
_Found = tuple[ScanRecord, ScanQuality | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Measures every scan of a store and shows those that stand apart from their like. Run again, only new ones."""

    store: Annotated[str, tyro.conf.Positional]
    """A store: a folder or s3://bucket/prefix."""

    out: str = "qc"
    """The folder for qc.html, qc.csv, qc.json and what the next run goes on from. It holds slices of heads."""

    scans: tuple[str, ...] = ()
    """Only these scans, by id; all when not given."""

    version: int | None = None
    """The catalogue version to look at; the newest when not given."""

    workers: int = 0
    """Scans at once, as tasks of Ray (the cluster that RAY_ADDRESS names, else one of this machine's own); 0: one after
    the other in this process."""

    skip_motion: bool = False
    """Do not estimate the motion of runs, which takes most of their time."""

    pictures: int = 200
    """Scans with a picture on the page, those to look at first before the others: 1,000 make it 40 MB."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found.

    Attributes:
        num_examined: Scans that this run read; the others' examinations were there already.
        apart: By scan: what to look at, those to look at first before the others.
        failed: Scans that could not be read, and why.
    """

    store: str
    catalogue_version: int
    num_scans: int
    num_examined: int
    headline: str
    apart: dict[str, tuple[str, ...]]
    failed: tuple[dict[str, str], ...]
    page: str

    @property
    def exit_code(self) -> int:
        """1 when a scan could not be read. To stand apart is no failure."""
        return int(bool(self.failed))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.store}: {self.headline} ({self.num_examined} examined now)"]
        lines += [f"  {scan_id}: {'; '.join(texts)}" for scan_id, texts in self.apart.items()]
        lines += [f"  {one['scan_id']} could not be examined: {one['reason']}" for one in self.failed]
        return "\n".join([*lines, f"page: {self.page}"])


def run(args: Args) -> Answer:
    """Examines what is new, holds all against each other, writes the page and its tables."""
    store = ScanStore(args.store, version=args.version)
    out = Path(args.out)
    records = _choose(args, store)
    with record_run(out, job="qc", args=args, catalogue_version=store.version) as run_record:
        answer = _run(args, store, records, out)
        run_record.add(num_scans=answer.num_scans, num_examined=answer.num_examined)
    return answer


def _run(args: Args, store: ScanStore, records: list[ScanRecord], out: Path) -> Answer:
    cache = out / _CACHE
    if not args.scans:
        _forget_others(cache, records, args)
    waiting = [record for record in records if load_quality(cache / _file_of(record, args)) is None]
    failed = []
    with closing(_examine_all(args, store, waiting, cache)) as results:
        for scan_id, reason in progress(results, total=len(waiting), label="qc"):
            failed += [{"scan_id": scan_id, "reason": reason}] if reason else []
    found = [(record, load_quality(cache / _file_of(record, args))) for record in records]
    # Two scans with the same content share a file.
    pairs = [(record, dataclasses.replace(one, scan_id=record.scan_id)) for record, one in found if one is not None]
    cohort = compare_scans(pairs)
    facts = _facts(args, store, sorted(failed, key=lambda one: one["scan_id"]))
    replace_file(out / "qc.html", render_page(cohort, facts).encode())
    described = json.dumps(_describe(cohort, facts), indent=2, allow_nan=False) + "\n"
    replace_file(out / "qc.json", described.encode())
    replace_file(out / "qc.csv", _format_table(cohort).encode())
    return Answer(
        store=store.uri,
        catalogue_version=store.version,
        num_scans=len(records),
        num_examined=len(waiting) - len(failed),
        headline=tell_headline(cohort, facts),
        apart={scan.record.scan_id: _list_findings(scan) for scan in cohort.scans if scan.stands_apart},
        failed=tuple(dict(one) for one in facts.failed),
        page=str(out / "qc.html"),
    )


def _choose(args: Args, store: ScanStore) -> list[ScanRecord]:
    records = store.records()
    unknown = set(args.scans) - {record.scan_id for record in records}
    if unknown:
        raise StoreError("the store has no such scans", given=", ".join(sorted(unknown)), fix="neuroray inspect")
    return [record for record in records if not args.scans or record.scan_id in args.scans]


def _file_of(record: ScanRecord, args: Args) -> str:
    return file_name(record.manifest_sha256, with_motion=len(record.shape) == 4 and not args.skip_motion)


def _forget_others(cache: Path, records: Sequence[ScanRecord], args: Args) -> None:
    """Pictures of people who left the store do not stay behind."""
    wanted = {_file_of(record, args) for record in records}
    for path in cache.glob("*.npz"):
        if path.name not in wanted:
            path.unlink()


def _examine_all(args: Args, store: ScanStore, records: list[ScanRecord], cache: Path) -> Generator[tuple[str, str]]:
    """Ids of scans as they are done, each with what went wrong. What is examined is saved at once."""
    pinned = ScanStore(store.location, version=store.version)
    work = functools.partial(_examine, pinned, with_motion=not args.skip_motion)
    if args.workers == 0 and not is_on_cluster():
        results = map(work, records)
    else:
        results = _examine_by_ray(work, records, max(1, args.workers))
    for record, found in results:
        if isinstance(found, ScanQuality):
            save_quality(found, cache / _file_of(record, args))
        yield record.scan_id, "" if isinstance(found, ScanQuality) else found


def _examine_by_ray(work: Any, records: list[ScanRecord], num_tasks: int) -> Generator[_Found]:
    with ensure_ray(num_cpus=num_tasks):
        yield from spread_over_ray(work, records, num_tasks=num_tasks)


def _examine(store: ScanStore, record: ScanRecord, *, with_motion: bool) -> _Found:
    """The examination, or why there is none: a scan that cannot be read stops no other."""
    try:
        return record, examine_scan(store, record, with_motion=with_motion)
    except StoreError as error:
        return record, str(error)


def _facts(args: Args, store: ScanStore, failed: Sequence[dict[str, str]]) -> PageFacts:
    options = [f"--out {shlex.quote(args.out)}"]
    options += [f"--scans {' '.join(args.scans)}"] if args.scans else []
    options += [f"--version {args.version}"] if args.version is not None else []
    options += ["--skip-motion"] if args.skip_motion else []
    return PageFacts(
        store=store.uri,
        catalogue_version=store.version,
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        neuroray=neuroray.__version__,
        command=" ".join(["neuroray qc", shlex.quote(store.uri), *options]),
        failed=failed,
        max_pictures=args.pictures,
    )


def _list_findings(scan: Examined) -> tuple[str, ...]:
    return tuple(finding.text for finding in scan.findings if finding.kind != "flag")


def _format_table(cohort: Cohort) -> str:
    """One row a scan, all measures, sorted by scan."""
    grid = ("spacing_x", "spacing_y", "spacing_z", "spacing_tr", "size_x", "size_y", "size_z", "size_t")
    fields = ("fov_x_mm", "fov_y_mm", "fov_z_mm")
    names = [*MEASURES, *sorted({name for scan in cohort.scans for name in scan.quality.measures} - set(MEASURES))]
    stream = io.StringIO(newline="")
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["scan_id", "modality", "region", "orientation", *grid, *fields, *names, "findings"])
    for scan in sorted(cohort.scans, key=lambda scan: scan.record.scan_id):
        record, quality = scan.record, scan.quality
        is_run = len(record.shape) == 4
        numbers = [*record.zooms_mm[-3:], record.repetition_time_s, *record.shape[-3:]]
        numbers += [record.shape[0] if is_run else 1, *field_of_view_mm(record)]
        numbers += [quality.measures.get(name) for name in names]
        told = ["" if number is None else f"{number:.9g}" for number in numbers]
        findings = "; ".join(finding.text for finding in scan.findings)
        table.writerow([record.scan_id, record.modality, quality.region, quality.orientation, *told, findings])
    return stream.getvalue()


def _describe(cohort: Cohort, facts: PageFacts) -> dict[str, Any]:
    """What qc.json holds: every number of the page, the course of runs included."""
    return {
        "format": _FORMAT,
        "qc_version": VERSION,
        "store": facts.store,
        "catalogue_version": facts.catalogue_version,
        "made_at": facts.made_at,
        "neuroray": facts.neuroray,
        "command": facts.command,
        "headline": tell_headline(cohort, facts),
        "failed": [dict(one) for one in facts.failed],
        "definitions": {name: measure.definition for name, measure in MEASURES.items()},
        "scans": [_describe_scan(scan) for scan in sorted(cohort.scans, key=lambda scan: scan.record.scan_id)],
    }


def _describe_scan(scan: Examined) -> dict[str, Any]:
    record, quality, course = scan.record, scan.quality, scan.quality.course
    series: dict[str, Any] = {}
    if course is not None:
        displacement = course.displacement_mm
        series = {
            "global_signal_percent": _round(course.global_signal),
            "dvars": _round(course.dvars),
            "framewise_displacement_mm": None if displacement is None else _round(displacement),
            "frozen_frames": list(quality.frozen_frames),
        }
    return {
        "scan_id": record.scan_id,
        "modality": record.modality,
        "group": scan.group,
        "shape": list(record.shape),
        "spacing_mm": list(record.zooms_mm),
        "field_of_view_mm": list(field_of_view_mm(record)),
        "repetition_time_s": record.repetition_time_s,
        "orientation": quality.orientation,
        "measures": quality.measures,
        "robust_z": dict(scan.z),
        "findings": [dataclasses.asdict(finding) for finding in scan.findings],
        "notices": list(quality.notices),
        **series,
    }


def _round(values: Any) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in values]

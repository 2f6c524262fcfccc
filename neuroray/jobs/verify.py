"""`neuroray verify`: read every byte of a store and check it against what was written."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.logs import progress
from neuroray.jobs.ray_session import ensure_ray
from neuroray.jobs.run_record import record_answer
from neuroray.jobs.spread import is_on_cluster, spread_over_ray, spread_over_threads
from neuroray.storage.faults import Fault, StoreError
from neuroray.storage.features import read_feature_catalogues
from neuroray.storage.locations import Location
from neuroray.storage.orphans import Orphan, find_orphans
from neuroray.storage.store import ScanStore
from neuroray.storage.verify import verify_group

_JOURNAL = "verify_progress.jsonl"
_REPORT = "verify_report"
# Each takes a minute of retries to find out: who cannot reach the store five times in a row will not the sixth time.
_MOST_UNREACHED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Reads every object of all scans and features: sizes, checksums, decoded numbers. Exit code 1 if any is wrong."""

    store: Annotated[str, tyro.conf.Positional]
    """A store: a folder or s3://bucket/prefix."""

    version: int | None = None
    """The catalogue version to check; the newest when not given."""

    workers: int | None = None
    """Scans at once: threads here, or tasks of the Ray cluster that RAY_ADDRESS names; by default one per CPU."""

    orphans: bool = False
    """List besides what belongs to no version of the catalogue, with its size. Nothing is deleted."""

    again: bool = False
    """Check also what an earlier run with the same --out found whole."""

    out: str | None = None
    """A folder for verify_report.json, verify_report.md and the progress by which the next run goes on."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was checked and what is wrong.

    Attributes:
        num_scans: Scans of this catalogue version.
        num_feature_sets: Of all encoders, for these scans and for older versions of them.
        num_known: Scans and feature sets that an earlier run found whole, and that were not read again.
        oldest_check: When the first of these was read; None where none is.
        size_bytes: Of all of them.
        faults: What is not as it was written.
        unreached: Scans that could not be read through, and why: nothing can be said of them.
        orphans: What no catalogue version refers to; None where it was not asked for.
    """

    store: str
    catalogue_version: int
    num_scans: int
    size_bytes: int
    faults: tuple[dict[str, str], ...]
    num_feature_sets: int = 0
    num_known: int = 0
    oldest_check: str | None = None
    unreached: tuple[dict[str, str], ...] = ()
    orphans: tuple[dict[str, Any], ...] | None = None

    @property
    def exit_code(self) -> int:
        """1 when anything is wrong, or could not be checked. What nobody refers to is not wrong."""
        return int(bool(self.faults or self.unreached))

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the report."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"  {fault['scan_id']}  {fault['object']}: {fault['problem']}" for fault in self.faults]
        lines += [f"  {one['scan_id']}  could not be checked: {one['reason']}" for one in self.unreached]
        for orphan in self.orphans or ():
            about = f"{orphan['num_objects']} objects, {orphan['size_bytes'] / 1e6:.1f} MB"
            lines.append(f"  notice   {orphan['path']} belongs to no catalogue version ({about})")
        return "\n".join([f"{self.store}: {self.headline}", *lines])

    @property
    def headline(self) -> str:
        """In one line."""
        size = f"{self.size_bytes / 1e6:.1f} MB"
        features = f", {self.num_feature_sets} feature sets" if self.num_feature_sets else ""
        checked = f"{self.num_scans} scans{features}, {size}, catalogue version {self.catalogue_version}"
        known = (
            f" ({self.num_known} of them read by an earlier run, since {self.oldest_check})" if self.num_known else ""
        )
        if not self.exit_code:
            return f"{checked}: every byte is as it was written{known}"
        unreached = f", {len(self.unreached)} scans could not be checked" if self.unreached else ""
        return f"{checked}: {len(self.faults)} faults{unreached}{known}"


def run(args: Args) -> Answer:
    """Checks scan after scan, several at once; no fault of one hides another's."""
    answer = record_answer(args.out, job="verify", args=args, look=lambda: _verify(args))
    if args.out is not None:
        text = json.dumps(answer.to_json() | {"headline": answer.headline}, indent=2) + "\n"
        Path(args.out, f"{_REPORT}.json").write_text(text)
        Path(args.out, f"{_REPORT}.md").write_text(_write_page(answer))
    return answer


def _verify(args: Args) -> Answer:
    store = ScanStore(args.store, version=args.version)
    records, version = store.records(), store.version
    groups = [
        _Group(scan_id=one.scan_id, folder="", path=one.path, manifest_sha256=one.manifest_sha256) for one in records
    ]
    features, faults, unreached = _list_features(store.location)
    groups += [group for group, _ in features]
    journal = _Journal(None if args.out is None else Path(args.out, _JOURNAL), store.uri)
    known = {} if args.again else journal.read()
    waiting = [group for group in groups if group.manifest_sha256 not in known]
    faults += [*store.verify_log(), *store.verify_rows([record.scan_id for record in records])]
    num_in_a_row = 0
    with closing(_spread(args, store.location, waiting)) as results:
        for result in progress(results, total=len(waiting), label="verify"):
            faults += result.faults
            if result.error is not None:
                unreached.append({"scan_id": result.scan_id, "reason": str(result.error)})
            elif not result.faults:
                journal.add(result.manifest_sha256)
            num_in_a_row = 0 if result.error is None else num_in_a_row + 1
            if result.error is not None and num_in_a_row == _MOST_UNREACHED:
                raise result.error
    checks = [known[group.manifest_sha256] for group in groups if group.manifest_sha256 in known]
    return Answer(
        store=store.uri,
        catalogue_version=version,
        num_scans=len(records),
        num_feature_sets=len(features),
        size_bytes=sum(record.size_bytes for record in records) + sum(size for _, size in features),
        faults=tuple(dataclasses.asdict(fault) for fault in sorted(faults, key=lambda fault: fault.object)),
        num_known=len(checks),
        oldest_check=min(checks, default=None),
        unreached=tuple(sorted(unreached, key=lambda one: one["scan_id"])),
        orphans=_list_orphans(store.location) if args.orphans else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    scan_id: str
    manifest_sha256: str
    faults: tuple[Fault, ...] = ()
    error: StoreError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Only what a check needs travels: a record also carries labels."""

    scan_id: str
    folder: str
    path: str
    manifest_sha256: str


def _list_features(location: Location) -> tuple[list[tuple[_Group, int]], list[Fault], list[dict[str, str]]]:
    """Every feature set with its size in bytes, rows that have changed, and catalogues that cannot be read."""
    try:
        catalogues = read_feature_catalogues(location)
    except StoreError as error:
        return [], [], [{"scan_id": "features", "reason": str(error)}]
    found, faults = [], []
    for folder, snapshot in catalogues.items():
        for one in snapshot.records:
            group = _Group(scan_id=one.scan_id, folder=folder, path=one.path, manifest_sha256=one.manifest_sha256)
            found.append((group, one.size_bytes))
            if not snapshot.is_intact(one.key):
                problem = "the row of a feature set has changed (SHA-256)"
                faults.append(Fault(scan_id=one.scan_id, object=f"{folder}/catalogue", problem=problem))
    return found, faults, []


def _spread(args: Args, location: Location, groups: list[_Group]) -> Generator[_Result]:
    num_workers = args.workers or os.cpu_count() or 1
    work = functools.partial(_check, location)
    if not is_on_cluster():
        yield from spread_over_threads(work, groups, num_threads=num_workers)
        return
    with ensure_ray():
        yield from spread_over_ray(work, groups, num_tasks=num_workers)


def _check(location: Location, group: _Group) -> _Result:
    about: dict[str, Any] = {"scan_id": group.scan_id, "manifest_sha256": group.manifest_sha256}
    place = location.child(group.folder) if group.folder else location
    try:
        faults = verify_group(place, group.path, group.manifest_sha256, scan_id=group.scan_id)
    except StoreError as error:
        return _Result(**about, error=error)
    prefix = f"{group.folder}/" if group.folder else ""
    return _Result(**about, faults=tuple(dataclasses.replace(fault, object=prefix + fault.object) for fault in faults))


def _list_orphans(location: Location) -> tuple[dict[str, Any], ...]:
    found: list[Orphan] = find_orphans(location)
    return tuple(dataclasses.asdict(orphan) for orphan in found)


class _Journal:
    """Which groups were found whole, and when: a line each, so that a run that is killed keeps what it has done.

    A group never changes and its manifest's digest stands for all of it; the address belongs to it too, for a copy
    elsewhere may be damaged where this one is whole.
    """

    def __init__(self, path: Path | None, store_uri: str) -> None:
        self._path = path
        self._store = store_uri

    def read(self) -> dict[str, str]:
        """Digest of the manifest -> when it was last found whole. A line that a crash cut short says nothing."""
        known = {}
        if self._path is not None and self._path.exists():
            for line in self._path.read_text().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    known |= {entry["manifest_sha256"]: entry["at"]} if entry["store"] == self._store else {}
        return known

    def add(self, manifest_sha256: str) -> None:
        """Says that a group is whole."""
        if self._path is None:
            return
        at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._path.open("a") as journal:
            # In front: the line before may have been cut short.
            journal.write("\n" + json.dumps({"store": self._store, "manifest_sha256": manifest_sha256, "at": at}))


def _write_page(answer: Answer) -> str:
    """The report for a person, in Markdown."""
    lines = [f"# {answer.store}", "", answer.headline]
    lines += _table("Faults", ("scan_id", "object", "problem"), answer.faults)
    lines += _table("Could not be checked", ("scan_id", "reason"), answer.unreached)
    lines += _table("Belongs to no catalogue version", ("path", "num_objects", "size_bytes"), answer.orphans or ())
    if answer.orphans:
        lines += ["", "Left by a writer that was stopped, or by one that has not committed yet. Nothing was deleted."]
    elif answer.orphans is not None:
        lines += ["", "Every object belongs to a version of the catalogue."]
    return "\n".join(lines) + "\n"


def _table(title: str, columns: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> list[str]:
    cells = [" | ".join(str(row[name]).replace("|", "\\|") for name in columns) for row in rows]
    if not cells:
        return []
    rule = " | ".join("---" for _ in columns)
    return ["", f"## {title}", "", f"| {' | '.join(columns)} |", f"| {rule} |", *(f"| {line} |" for line in cells)]

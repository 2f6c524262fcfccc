"""`neuroray remove`: withdraw people from a store: their data really gone, their labels out of every version."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.ingest_report import REPORT, forget
from neuroray.jobs.run_record import record_run
from neuroray.storage.store import ScanStore
from neuroray.storage.withdrawal import Withdrawal, withdraw


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Delete all data of people from every version of a store. There is no way back; others' data stay as they are."""

    store: Annotated[str, tyro.conf.Positional]
    """The store: a folder or s3://bucket/prefix."""

    subject: tuple[str, ...]
    """The people, as the catalogue names them."""

    yes: bool = False
    """Do it; without this the job only says what it would delete."""

    out: str | None = None
    """A folder for run.json; it says how many were withdrawn, not who. None is written when not given."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was, or would be, deleted."""

    store: str
    is_done: bool
    num_people: int
    num_scans: int
    num_objects: int = 0
    size_bytes: int = 0
    num_rows: int = 0
    reports_changed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        whom = f"{self.num_scans} scans of {self.num_people} people"
        if not self.is_done:
            return f"{self.store}: {whom} would be deleted from all versions; say --yes to do it"
        told = f"{whom} are gone: {self.num_objects} objects, {self.size_bytes / 1e6:.1f} MB, {self.num_rows} rows"
        lines = [f"{self.store}: {told}", *(f"  their lines were taken out of {name}" for name in self.reports_changed)]
        return "\n".join([*lines, "  run folders, exported files and backups are not in the store: look there too"])


def run(args: Args) -> Answer:
    """Withdraws, and takes what names the people out of the reports that lie in the store's folder."""
    store = ScanStore(args.store)
    if not args.yes:
        scans = [record for record in store.records() if record.subject in args.subject]
        people = {record.subject for record in scans}
        return Answer(store=store.uri, is_done=False, num_people=len(people), num_scans=len(scans))
    if args.out is None:
        return _remove(args, store)
    # The arguments name people who asked to be forgotten: the record counts them.
    about = {"store": args.store, "num_people": len(args.subject)}
    with record_run(args.out, job="remove", args=about) as record:
        answer = _remove(args, store)
        record.add(**answer.to_json())
        return answer


def _remove(args: Args, store: ScanStore) -> Answer:
    names = {record.source_name for record in store.records() if record.subject in args.subject} - {""}
    scan_ids = {record.scan_id for record in store.records() if record.subject in args.subject}
    done: Withdrawal = withdraw(store, args.subject)
    changed = _clean_reports(store, scan_ids, names) if store.location.is_local else ()
    return Answer(
        store=store.uri,
        is_done=True,
        num_people=len(set(args.subject)),
        reports_changed=changed,
        **dataclasses.asdict(done),
    )


def _clean_reports(store: ScanStore, scan_ids: set[str], names: set[str]) -> tuple[str, ...]:
    folders = sorted(path.parent for path in Path(store.location.path, "reports").glob(f"*/{REPORT}"))
    changed = [f"{folder.name}/{REPORT}" for folder in folders if forget(folder, scan_ids, names)]
    return tuple(changed)

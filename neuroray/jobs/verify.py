"""`neuroray verify`: read every byte of a store and check it against what was written."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_answer
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Reads every object of every scan: sizes, checksums, decoded voxels. Exit code 1 when anything is wrong."""

    store: Annotated[str, tyro.conf.Positional]
    """A store: a folder or s3://bucket/prefix."""

    version: int | None = None
    """The catalogue version to check; the newest when not given."""

    out: str | None = None
    """A folder for run.json with all faults; none is written when not given."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was checked and what is wrong."""

    store: str
    catalogue_version: int
    num_scans: int
    size_bytes: int
    faults: tuple[dict[str, str], ...]

    @property
    def exit_code(self) -> int:
        """1 when anything is wrong."""
        return int(bool(self.faults))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        checked = f"{self.num_scans} scans, {self.size_bytes / 1e6:.1f} MB, catalogue version {self.catalogue_version}"
        if not self.faults:
            return f"{self.store}: {checked}: every byte is as it was written"
        lines = [f"  {fault['scan_id']}  {fault['object']}: {fault['problem']}" for fault in self.faults]
        return "\n".join([f"{self.store}: {checked}: {len(self.faults)} faults", *lines])


def run(args: Args) -> Answer:
    """Checks scan by scan, so that a progress bar moves and one broken scan hides no other."""
    return record_answer(args.out, job="verify", args=args, look=lambda: _verify(args))


def _verify(args: Args) -> Answer:
    store = ScanStore(args.store, version=args.version)
    records = store.records()
    faults = []
    for record in progress(records, total=len(records), label="verify"):
        faults += [dataclasses.asdict(fault) for fault in store.verify([record.scan_id])]
    return Answer(
        store=store.uri,
        catalogue_version=store.version,
        num_scans=len(records),
        size_bytes=sum(record.size_bytes for record in records),
        faults=tuple(faults),
    )

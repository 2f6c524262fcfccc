"""`neuroray export-nifti`: scans of a store as the files they came from: the same header bytes, the same voxels."""

from __future__ import annotations

import csv
import dataclasses
import filecmp
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.storage.faults import StoreError
from neuroray.storage.nifti import write_map, write_scan
from neuroray.storage.profiles import find_profile
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.store import ScanRecord, ScanStore
from neuroray.storage.volume_writing import layout_of_source

_TABLE = "scans.tsv"
_LABELS = ("age_years", "sex", "diagnosis", "cognition", "site")
_COLUMNS = ("scan_id", "file", "subject", "session", "modality", "profile", *_LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Write scans back as NIfTI (or MGH) files, on the grid, with the header and the stored numbers they came with.

    What a profile has changed comes out as float32: after n4 on the source's grid, after mni_affine on the template's.
    """

    store: Annotated[str, tyro.conf.Positional]
    """The store: a folder or s3://bucket/prefix."""

    out: Annotated[str, tyro.conf.Positional]
    """The folder to write to. Files that are there with the same content are left as they are."""

    subject: tuple[str, ...] = ()
    """Only these people."""

    scan: tuple[str, ...] = ()
    """Only these scans, by id."""

    version: int | None = None
    """The catalogue version to read; the newest when not given."""

    overwrite: bool = False
    """Replace files of the same name that hold something else."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was written."""

    out: str
    catalogue_version: int
    files: dict[str, str]
    num_written: int

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        unchanged = len(self.files) - self.num_written
        there = f", {unchanged} were there already" if unchanged else ""
        return f"{self.num_written} scans written to {self.out}{there}; the table is {_TABLE}"


def run(args: Args) -> Answer:
    """Writes scan by scan, each file whole or not at all, and a table of what they are."""
    store = ScanStore(args.store, version=args.version)
    records = _choose(args, store)
    out = Path(args.out)
    with record_run(out, job="export-nifti", args=args, catalogue_version=store.version) as record:
        files: dict[str, str] = {}
        num_written = 0
        for one in progress(records, total=len(records), label="export"):
            path, is_new = _write(store.read(one.scan_id), out / one.scan_id, one, overwrite=args.overwrite)
            files[one.scan_id] = path.name
            num_written += is_new
        _write_table(out / _TABLE, records, files)
        record.add(num_written=num_written)
    return Answer(out=str(out), catalogue_version=store.version, files=files, num_written=num_written)


def _choose(args: Args, store: ScanStore) -> list[ScanRecord]:
    records = store.records()
    for wanted, known, what in (
        (args.subject, {record.subject for record in records}, "people"),
        (args.scan, {record.scan_id for record in records}, "scans"),
    ):
        unknown = set(wanted) - known
        if unknown:
            raise StoreError(f"the store has no such {what}", given=", ".join(sorted(unknown)), fix="neuroray inspect")
    return [
        record
        for record in records
        if (not args.subject or record.subject in args.subject) and (not args.scan or record.scan_id in args.scan)
    ]


def _write(scan: Scan, stem: Path, record: ScanRecord, *, overwrite: bool) -> tuple[Path, bool]:
    """The file, and whether it is new; equal scans give equal bytes, so that what is there can be compared."""
    write = _write_values if find_profile(record.prepared_by[0]).changes_values else write_scan
    path = stem.with_name(stem.name + (".nii.gz" if write is _write_values else _choose_suffix(scan, stem.name)))
    if not path.exists() or overwrite:
        write(scan, path, overwrite=overwrite)
        return path, True
    with tempfile.TemporaryDirectory(dir=stem.parent, prefix=".export-") as scratch:
        copy = Path(scratch) / path.name
        write(scan, copy)
        if not filecmp.cmp(copy, path, shallow=False):
            raise ScanError(
                f"{path.name} is there and holds something else", fix="choose another folder, or --overwrite"
            )
    return path, False


def _write_values(scan: Scan, path: Path, *, overwrite: bool = False) -> None:
    """Values that the source's header no longer describes, as float32: on its grid, or on that of the template."""
    write_map(scan.voxels, scan, path, overwrite=overwrite)


def _choose_suffix(scan: Scan, name: str) -> str:
    """The ending of the container whose header the scan carries."""
    if scan.source is None:
        return ".nii.gz"
    if scan.source.format == "mgh":
        return ".mgz"
    return ".img.gz" if layout_of_source(scan.source, name).header.is_pair else ".nii.gz"


def _write_table(path: Path, records: list[ScanRecord], files: dict[str, str]) -> None:
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, delimiter="\t", lineterminator="\n")
        table.writerow(_COLUMNS)
        for record in records:
            row = {**{name: getattr(record, name, None) for name in _COLUMNS}, "file": files[record.scan_id]}
            table.writerow("n/a" if row[name] is None else row[name] for name in _COLUMNS)

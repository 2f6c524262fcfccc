"""`neuroray ingest`: bring scans into a store; what cannot be taken is listed with its reason, the rest goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.storage.bids import ScanFile, find_scans
from neuroray.storage.nifti import read_scan
from neuroray.storage.participants import Participant, ParticipantTable, read_participants
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.store import ScanRecord, ScanStore

_SCANS_PER_COMMIT = 64
_REPORT = "ingest_report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Brings a BIDS folder, a folder of scans, a glob or one file into a store; run twice, nothing is written twice."""

    source: Annotated[str, tyro.conf.Positional]
    """A BIDS folder, a folder of NIfTI or MGH files, a glob, or one file."""

    store: Annotated[str, tyro.conf.Positional]
    """The store: a folder or s3://bucket/prefix; made when it is not there."""

    participants: str | None = None
    """A table (.tsv or .csv) with one row per person; a BIDS folder's own when not given."""

    modality: str | None = None
    """Call every scan this ("T1w", "bold"), where file names do not say what they are."""

    max_gib: float = 2.0
    """Refuse scans that would take more memory than this once decoded."""

    out: str | None = None
    """Where the report goes; STORE/reports/ingest-TIME for a local store, ./ingest-TIME otherwise."""

    strict: bool = False
    """Leave with exit code 1 when any file was refused (otherwise only when none could be stored)."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One file that was not taken, and why."""

    file: str
    reason: dict[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is in the store now, what is not, and where the report lies."""

    store: str
    catalogue_version: int
    num_stored: int
    num_unchanged: int
    flagged: dict[str, tuple[str, ...]]
    refused: tuple[Refusal, ...]
    notices: tuple[str, ...]
    report: str
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the report."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        unchanged = f", {self.num_unchanged} were there already" if self.num_unchanged else ""
        version = f"catalogue version {self.catalogue_version}"
        lines = [f"{self.store}: {self.num_stored} scans stored{unchanged} ({version})"]
        lines += [f"  flagged  {name}: {'; '.join(flags)}" for name, flags in self.flagged.items()]
        lines += [f"  refused  {refusal.reason['fault']}" for refusal in self.refused]
        lines += [f"  notice   {notice}" for notice in self.notices]
        return "\n".join([*lines, f"report: {self.report}"])


def run(args: Args) -> Answer:
    """Reads, checks and stores scan after scan; commits in groups, so that a crash loses little and halves nothing."""
    table = _read_table(args)
    files = find_scans(args.source, modality=args.modality)
    store = ScanStore.create(args.store)
    out = Path(args.out) if args.out else _default_out(store.uri)
    with record_run(out, job="ingest", args=args) as record:
        answer = _ingest(args, store, files, table, out / _REPORT)
        (out / _REPORT).write_text(json.dumps(answer.to_json(), indent=2) + "\n")
        record.add(catalogue_version=answer.catalogue_version, num_stored=answer.num_stored)
    return answer


def _ingest(
    args: Args, store: ScanStore, files: list[ScanFile], table: ParticipantTable | None, report: Path
) -> Answer:
    before = {record.scan_id: record for record in store.records()}
    pending: list[ScanRecord] = []
    done: list[ScanRecord] = []
    refused: list[Refusal] = []
    for file in progress(files, total=len(files), label="ingest"):
        try:
            person = _find_person(file, table, before.get(file.scan_id))
            pending.append(_store_file(args, store, file, person))
        except ScanError as error:
            refused.append(Refusal(file=file.name, reason=error.to_json()))
        if len(pending) == _SCANS_PER_COMMIT:
            done += store.commit(pending)
            pending = []
    done += store.commit(pending) if pending else []
    num_unchanged = sum(record.scan_id in before and before[record.scan_id].path == record.path for record in done)
    return Answer(
        store=store.uri,
        catalogue_version=store.version,
        num_stored=len(done) - num_unchanged,
        num_unchanged=num_unchanged,
        flagged={record.scan_id: record.flags for record in done if record.flags},
        refused=tuple(refused),
        notices=tuple(_notices(table, done)),
        report=str(report),
        exit_code=int(bool(refused) and (args.strict or not done)),
    )


def _find_person(file: ScanFile, table: ParticipantTable | None, stored: ScanRecord | None) -> Participant | None:
    """What the table says; where it is silent, what the store knows: a second run never loses labels."""
    person = table.find(file.subject, file.session) if table else None
    if person is not None or stored is None:
        return person
    labels = {field.name: getattr(stored, field.name) for field in dataclasses.fields(Participant)}
    return Participant(**labels)


def _store_file(args: Args, store: ScanStore, file: ScanFile, person: Participant | None) -> ScanRecord:
    """Reads one file and writes its group; the record still has to be committed."""
    scan = _with_sidecar(read_scan(file.path, max_bytes=int(args.max_gib * 2**30)), file)
    return store.write(
        scan,
        scan_id=file.scan_id,
        subject=file.subject,
        session=file.session,
        modality=args.modality or file.suffix,
        participant=person,
        source_name=file.name,
        source_sha256=_digest(file.path),
        commit=False,
    )


def _with_sidecar(scan: Scan, file: ScanFile) -> Scan:
    """The scan with what its JSON says: in BIDS the sidecar's repetition time outranks the header's."""
    flags = scan.flags + file.notices
    repetition_time_s = file.sidecar.get("RepetitionTime")
    if not scan.is_timeseries or not isinstance(repetition_time_s, int | float) or repetition_time_s <= 0:
        return dataclasses.replace(scan, flags=flags)
    in_header = scan.repetition_time_s
    if in_header is not None and abs(in_header - repetition_time_s) > 1e-3:
        flags += (f"repetition time: header {in_header:g} s, sidecar {repetition_time_s:g} s; the sidecar's was taken",)
    return dataclasses.replace(scan, flags=flags, repetition_time_s=float(repetition_time_s))


def _read_table(args: Args) -> ParticipantTable | None:
    """The table that was named, or the BIDS folder's own; None where there is neither."""
    if args.participants is not None:
        return read_participants(args.participants)
    if (Path(args.source) / "participants.tsv").is_file():
        return read_participants(args.source)
    return None


def _notices(table: ParticipantTable | None, done: list[ScanRecord]) -> Iterator[str]:
    """What a person should know of the labels; people are counted, not named."""
    if table is None:
        num_unlabelled = sum(record.age_years is None and record.diagnosis is None for record in done)
        if num_unlabelled:
            yield f"no participants table: {num_unlabelled} scans are stored without labels"
        return
    yield from table.notices
    known = {participant.subject for participant in table}
    scanned = {record.subject for record in done}
    if scanned - known:
        yield f"{len(scanned - known)} of {len(scanned)} people with scans are not in the participants table"
    if known - scanned:
        yield f"{len(known - scanned)} of {len(known)} people in the participants table have no stored scan"


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _default_out(store_uri: str) -> Path:
    name = f"ingest-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    return Path(name) if "://" in store_uri else Path(store_uri) / "reports" / name

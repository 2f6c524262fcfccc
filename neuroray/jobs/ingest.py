"""`neuroray ingest`: bring scans into a store; what cannot be taken is listed with its reason, the rest goes on."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.ingest_graph import ScanGraph, Scheduler, build_graph, choose_scheduler, run_here, run_on_ray
from neuroray.jobs.ingest_report import REPORT, write_ingest_report
from neuroray.jobs.ingest_steps import Order, Outcome
from neuroray.jobs.logs import progress
from neuroray.jobs.ray_session import ensure_ray
from neuroray.jobs.run_record import record_run
from neuroray.storage.group import Packing
from neuroray.storage.label_matching import LabelledScan
from neuroray.storage.profiles import OnTemplateGrid, Profile, ProfileError, TemplateAligned, find_profile
from neuroray.storage.sources import SourceListing, list_source
from neuroray.storage.store import ScanRecord, ScanStore

# Whichever comes first: what a crash loses has to be made again.
_SCANS_PER_COMMIT = 64
_SECONDS_PER_COMMIT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Brings a BIDS folder, a folder of scans, a glob or one file into a store; run twice, nothing is written twice."""

    source: Annotated[str, tyro.conf.Positional]
    """A BIDS dataset (raw or derivatives), a folder of NIfTI, MGH or DICOM files, a glob, or one file; local, s3:// or
    gs://."""

    store: Annotated[str, tyro.conf.Positional]
    """The store: a folder or s3://bucket/prefix; made when it is not there."""

    participants: str | None = None
    """A table (.tsv or .csv) with one row per person, or per scan with the file's name; "none" for no labels. When not
    given: the dataset's participants.tsv, or the one table that lies beside the scans."""

    modality: str | None = None
    """Call every scan this ("T1w", "bold"), where file names do not say what they are."""

    profile: str = "native"
    """How scans are prepared: native (turned to RAS+, nothing else), n4, mni_affine (needs the extra "ants"),
    mni_grid (volumes that are registered to MNI152 already), or fmri_minimal (runs that are preprocessed already)."""

    profile_spacing_mm: float | None = None
    """Voxel size of the template's grid (mni_affine, mni_grid), 1 to 8; 1 when not given. Coarser volumes make
    smaller models."""

    only: str | None = None
    """Take only files with such a name, e.g. "*space-MNI152NLin2009cAsym*desc-preproc_bold*"."""

    max_gib: float = 2.0
    """Refuse scans that would take more memory than this once decoded; a worker's peak is up to 2.5 times as much."""

    packing: Packing = "fast"
    """How voxels are compressed: "fast" (LZ4) unpacks two to four times as quickly, "small" (Zstandard) takes about
    three quarters of the space, which can win behind a thin line. Scans that are there already stay as they are."""

    scheduler: Scheduler = "auto"
    """Where the work is done: "local" in this process, "ray" on a cluster. "auto" takes Ray where it is connected
    already, where RAY_ADDRESS names a cluster (as in a submitted job), or when several workers are asked for."""

    workers: int | None = None
    """The most scans at once; 1 in this process, all CPUs of the cluster on Ray when not given."""

    reserve_gib: float | None = None
    """Memory that Ray sets aside for each scan, so that a machine with many CPUs and little memory takes fewer."""

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
    num_relabelled: int
    flagged: dict[str, tuple[str, ...]]
    refused: tuple[Refusal, ...]
    notices: tuple[str, ...]
    report: str
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the report."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        relabelled = f" ({self.num_relabelled} with new labels)" if self.num_relabelled else ""
        unchanged = f", {self.num_unchanged} were there already{relabelled}" if self.num_unchanged else ""
        version = f"catalogue version {self.catalogue_version}"
        lines = [f"{self.store}: {self.num_stored} scans stored{unchanged} ({version})"]
        lines += [f"  flagged  {name}: {'; '.join(flags)}" for name, flags in self.flagged.items()]
        lines += [f"  refused  {refusal.reason['fault']}" for refusal in self.refused]
        lines += [f"  notice   {notice}" for notice in self.notices]
        return "\n".join([*lines, f"report: {self.report}"])


def run(args: Args) -> Answer:
    """Reads, checks and stores scan after scan; commits in groups, so that a crash loses little and halves nothing."""
    _find_profile(args).fingerprint()  # says at once where a package is missing
    source = list_source(args.source, participants=args.participants, modality=args.modality, only=args.only)
    store = ScanStore.create(args.store)
    out = Path(args.out) if args.out else _default_out(store.uri)
    with record_run(out, job="ingest", args=args) as record:
        answer, outcomes = _ingest(args, store, source, out / REPORT)
        write_ingest_report(answer.to_json(), outcomes, out)
        record.add(catalogue_version=answer.catalogue_version, num_stored=answer.num_stored)
    return answer


def _ingest(args: Args, store: ScanStore, source: SourceListing, report: Path) -> tuple[Answer, list[Outcome]]:
    before = store.intact_records()
    pending: list[ScanRecord] = []
    outcomes: list[Outcome] = []
    committed_at = time.monotonic()
    orders = _Orders(args, store, before)
    graphs = (build_graph(orders.make(scan)) for scan in source.scans)
    for outcome in progress(_work_off(args, graphs), total=len(source.scans), label="ingest"):
        outcomes.append(outcome)
        pending += [outcome.record] if outcome.record else []
        if len(pending) >= _SCANS_PER_COMMIT or (pending and time.monotonic() - committed_at > _SECONDS_PER_COMMIT):
            store.commit(pending)
            pending, committed_at = [], time.monotonic()
    if pending:
        store.commit(pending)
    outcomes.sort(key=lambda outcome: outcome.scan_id)
    return _answer(args, store, source, before, outcomes, report), outcomes


def _find_profile(args: Args) -> Profile:
    profile = find_profile(args.profile)
    if args.profile_spacing_mm is None:
        return profile
    if not isinstance(profile, TemplateAligned | OnTemplateGrid):
        raise ProfileError(
            f"the profile {profile.name} has no grid of its own",
            given=f"--profile-spacing-mm {args.profile_spacing_mm}",
            expected="mni_affine or mni_grid",
            fix="leave it out: scans keep their own voxels",
        )
    return dataclasses.replace(profile, spacing_mm=args.profile_spacing_mm)


def _work_off(args: Args, graphs: Iterable[ScanGraph]) -> Iterator[Outcome]:
    if choose_scheduler(args.scheduler, args.workers) == "local":
        yield from run_here(graphs, args.workers or 1)
        return
    reserve_bytes = None if args.reserve_gib is None else int(args.reserve_gib * 2**30)
    with ensure_ray(num_cpus=args.workers or 0):
        yield from run_on_ray(graphs, num_workers=args.workers, memory_bytes=reserve_bytes)


class _Orders:
    """Makes the orders of one run."""

    def __init__(self, args: Args, store: ScanStore, before: dict[str, ScanRecord]) -> None:
        self._before = before
        profile = _find_profile(args)
        self._same_for_all: dict[str, Any] = {
            "modality": args.modality,
            "profile": profile,
            "profile_sha256": profile.fingerprint(),
            "store": store,
            "max_bytes": int(args.max_gib * 2**30),
            "packing": args.packing,
        }

    def make(self, scan: LabelledScan) -> Order:
        """The order for a scan; where the table is silent, the labels are those that the store has: none is lost."""
        file, participant, known = scan.file, scan.participant, self._before.get(scan.file.scan_id)
        if participant is None and known is not None:
            file, participant = dataclasses.replace(file, subject=known.subject), known.participant
        return Order(file=file, participant=participant, known=known, **self._same_for_all)


def _answer(
    args: Args,
    store: ScanStore,
    source: SourceListing,
    before: dict[str, ScanRecord],
    outcomes: list[Outcome],
    report: Path,
) -> Answer:
    done = [outcome.record for outcome in outcomes if outcome.record]
    refused = tuple(Refusal(file=outcome.file, reason=outcome.refusal) for outcome in outcomes if outcome.refusal)
    known = [(record, before[record.scan_id]) for record in done if record.scan_id in before]
    same_group = [(record, old) for record, old in known if record.path == old.path]
    return Answer(
        store=store.uri,
        catalogue_version=store.version,
        num_stored=len(done) - len(same_group),
        num_unchanged=len(same_group),
        num_relabelled=_count_relabelled(outcomes, before),
        flagged={record.scan_id: record.flags for record in done if record.flags},
        refused=refused,
        notices=(*source.notices, *_notices(source, done)),
        report=str(report),
        exit_code=int(bool(refused) and (args.strict or not done)),
    )


def _count_relabelled(outcomes: list[Outcome], before: dict[str, ScanRecord]) -> int:
    kept = [outcome.record for outcome in outcomes if outcome.record and not outcome.was_decoded]
    return sum(record != before[record.scan_id] for record in kept)


def _notices(source: SourceListing, done: list[ScanRecord]) -> Iterator[str]:
    num_unlabelled = sum(record.age_years is None and record.diagnosis is None for record in done)
    if num_unlabelled and not source.has_table:
        yield f"no participants table: {num_unlabelled} scans are stored without labels"


def _default_out(store_uri: str) -> Path:
    name = f"ingest-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    return Path(name) if "://" in store_uri else Path(store_uri) / "reports" / name

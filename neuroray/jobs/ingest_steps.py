"""What is done with one scan file, step by step; a step hands on what it made, or the outcome where the way ends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

from neuroray.errors import NeurorayError
from neuroray.platform.quality.preview import draw_preview
from neuroray.storage.bids import ScanFile
from neuroray.storage.dicom import converter_version
from neuroray.storage.fetching import FetchedFile, fetch_file, unpack
from neuroray.storage.group import Packing
from neuroray.storage.nifti import read_scan
from neuroray.storage.participants import Participant
from neuroray.storage.profiles import Prepared, Profile
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.store import ScanRecord, ScanStore

# Raised when the same file comes to be read as other numbers than before: what is stored is then made again.
_READING: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One file to bring in.

    Attributes:
        file: The file, with what its name and sidecars say.
        modality: What kind of scan it is entered as; None to leave it to the file.
        participant: The person's labels.
        known: What the store holds under the file's scan id.
        profile: How it is prepared.
        profile_sha256: The profile's fingerprint, taken where the job was started.
        store: Where it goes.
        max_bytes: The most that it may take, decoded.
        packing: How its voxels are compressed.
    """

    file: ScanFile
    modality: str | None
    participant: Participant | None
    known: ScanRecord | None
    profile: Profile
    profile_sha256: str
    store: ScanStore
    max_bytes: int
    packing: Packing = "fast"

    @property
    def derivation_sha256(self) -> str:
        """Digest of what, besides the file's bytes and the profile, decides what is stored."""
        parts = {
            "reading": _READING,
            "repetition_time_s": self.file.sidecar.get("RepetitionTime"),
            "notices": self.file.notices,
            "converter": converter_version() if self.file.is_dicom else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended for one file; small, for it travels between machines.

    Attributes:
        file: The file's name.
        scan_id: What the scan is called in the store.
        record: The row to commit; None where the file was refused.
        was_decoded: False where the store held the same already, so that voxels were not looked at.
        refusal: Why it was refused, as `NeurorayError.to_json` tells it.
        thumbnail: PNG of an axial slice of a refused file, where one could be drawn.
    """

    file: str
    scan_id: str
    record: ScanRecord | None = None
    was_decoded: bool = True
    refusal: dict[str, str | None] | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A scan on its way: what is asked for, the file at hand, what is said of it, and what has been made of it."""

    order: Order
    fetched: FetchedFile
    sidecar: dict[str, Any]
    prepared: Prepared | None = None


def step(run: Callable[[Work], Work | Outcome]) -> Callable[[Work | Outcome], Work | Outcome]:
    """A step of the way: passed by where the way has ended; where the scan is at fault, it ends here.

    What is wrong with the store or the machine is not the scan's fault: it is raised, and stops the job.
    """

    @wraps(run)
    def run_unless_ended(work: Work | Outcome) -> Work | Outcome:
        if isinstance(work, Outcome):
            return work
        try:
            return run(work)
        except ScanError as error:
            return _refuse(work, error)

    return run_unless_ended


def fetch(order: Order) -> Work | Outcome:
    """Brings the file to this machine and takes its digest; the way ends here for what is stored already."""
    try:
        fetched = fetch_file(order.file, max_bytes=order.max_bytes)
    except ScanError as error:
        return Outcome(file=order.file.name, scan_id=order.file.scan_id, refusal=error.to_json())
    if not _is_stored(order, fetched.sha256):
        return Work(order=order, fetched=fetched, sidecar=order.file.sidecar)
    fetched.discard()
    return Outcome(file=order.file.name, scan_id=order.file.scan_id, record=_with_new_labels(order), was_decoded=False)


@step
def convert(work: Work) -> Work:
    """Turns a DICOM series into a volume.

    Raises:
        ScanError: it is refused.
    """
    order = work.order
    fetched = unpack(order.file, work.fetched, max_bytes=order.max_bytes)
    return dataclasses.replace(work, fetched=fetched, sidecar={**fetched.sidecar, **work.sidecar})


@step
def read(work: Work) -> Work:
    """Decodes the file, turns it to RAS+, and adds what its sidecar says.

    Raises:
        ScanError: the file is refused.
    """
    scan = _read_whatever_comes(work)
    work.fetched.check_unchanged()
    prepared = Prepared(scan=_with_sidecar(scan, work), profile=work.order.profile)
    return dataclasses.replace(work, prepared=prepared)


def profile_step(apply: Callable[[Prepared], Prepared]) -> Callable[[Work | Outcome], Work | Outcome]:
    """A step of a profile as a step of the way."""

    def run_profile_step(work: Work) -> Work:
        assert work.prepared is not None, "prepared before it was read"
        return dataclasses.replace(work, prepared=apply(work.prepared))

    return step(run_profile_step)


def write(work: Work | Outcome) -> Outcome:
    """Encodes and writes the scan; the row still has to be committed.

    Raises:
        StoreError: it cannot be written: nothing is wrong with the file.
    """
    if isinstance(work, Outcome):
        return work
    assert work.prepared is not None, "written before it was read"
    order, file = work.order, work.order.file
    record = order.store.write(
        work.prepared,
        scan_id=file.scan_id,
        subject=file.subject,
        session=file.session,
        modality=order.modality or _tell_modality(file, work.prepared.scan),
        participant=order.participant,
        source_name=file.name,
        source_sha256=work.fetched.sha256,
        commit=False,
        known={} if order.known is None else {file.scan_id: order.known},
        packing=order.packing,
    )
    work.fetched.discard()
    record = dataclasses.replace(record, derivation_sha256=order.derivation_sha256)
    return Outcome(file=file.name, scan_id=file.scan_id, record=record)


def _is_stored(order: Order, sha256: str) -> bool:
    known = order.known
    return (
        known is not None
        and (known.source_sha256, known.derivation_sha256) == (sha256, order.derivation_sha256)
        and known.prepared_by[1] == order.profile_sha256
        and order.store.is_whole(known)
    )


def _with_new_labels(order: Order) -> ScanRecord:
    """The stored row with what the tables say today; the same row where they say the same."""
    assert order.known is not None, "nothing is stored"
    file = order.file
    modality = order.modality or (file.suffix if file.is_suffix_known else order.known.modality)
    return order.known.relabelled(
        subject=file.subject, session=file.session, modality=modality, participant=order.participant
    )


def _tell_modality(file: ScanFile, scan: Scan) -> str:
    """What the file's name says; where it says nothing, what many frames or one suggest."""
    if file.is_suffix_known:
        return file.suffix
    return "bold" if scan.is_timeseries else "T1w"


def _read_whatever_comes(work: Work) -> Scan:
    """The scan; whatever a damaged file trips over is a refusal of that file, and no end of the job."""
    name = work.order.file.name
    try:
        return read_scan(work.fetched.path, max_bytes=work.order.max_bytes)
    except NeurorayError:
        raise
    except MemoryError as error:
        fix = "give the job more memory, or refuse large scans with --max-gib"
        raise ScanError(f"{name}: there is not enough memory to decode it", fix=fix) from error
    except Exception as error:
        fix = "please report it: this fault should have a message of its own"
        raise ScanError(f"{name}: it cannot be read", given=f"{type(error).__name__}: {error}", fix=fix) from error


def _refuse(work: Work, error: ScanError) -> Outcome:
    file = work.order.file
    thumbnail = None if work.fetched.path.is_dir() else draw_preview(work.fetched.path)
    work.fetched.discard()
    return Outcome(file=file.name, scan_id=file.scan_id, refusal=error.to_json(), thumbnail=thumbnail)


def _with_sidecar(scan: Scan, work: Work) -> Scan:
    """The scan with what its JSON says: in BIDS the sidecar's repetition time outranks the header's."""
    flags = scan.flags + work.order.file.notices
    repetition_time_s: Any = work.sidecar.get("RepetitionTime")
    if not scan.is_timeseries or not isinstance(repetition_time_s, int | float) or repetition_time_s <= 0:
        return dataclasses.replace(scan, flags=flags)
    in_header = scan.repetition_time_s
    if in_header is not None and abs(in_header - repetition_time_s) > 1e-3:
        flags += (f"repetition time: header {in_header:g} s, sidecar {repetition_time_s:g} s; the sidecar's was taken",)
    return dataclasses.replace(scan, flags=flags, repetition_time_s=float(repetition_time_s))

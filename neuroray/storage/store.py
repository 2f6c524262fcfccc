"""ScanStore: scans as immutable Zarr groups, and a catalogue of which there are. The format: `docs/format.md`."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from jaxtyping import Bool, Num

from neuroray.storage.catalogue import Catalogue, Snapshot, utc_now
from neuroray.storage.faults import Fault, MissingObjectError, ObjectExistsError, StoreError
from neuroray.storage.group import GroupContent, Packing, WrittenGroup
from neuroray.storage.group_reader import GroupReader
from neuroray.storage.locations import Location, check_id
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import NATIVE, find_profile
from neuroray.storage.profiles.statistics import Statistics
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.profiles.stored import StoredProfile
from neuroray.storage.profiles.transform import TemplateTransform
from neuroray.storage.records import SCAN_COLUMNS, ScanRecord, describe_person
from neuroray.storage.scan import Scan
from neuroray.storage.verify import verify_group
from neuroray.storage.volume_format import (
    VOXELS,
    StoredFrames,
    check_storable,
    decode_mask,
    decode_profile,
    decode_scan,
    decode_statistics,
    decode_to_template,
    decode_values,
    encode_scan,
)

if TYPE_CHECKING:
    from neuroray.storage.participants import Participant

__all__ = ["Fault", "ScanRecord", "ScanStore", "StoreError"]

_MARK: Final = "neuroray.json"
_FORMAT: Final = "neuroray-store"
_FORMAT_VERSION: Final = 1
_CATALOGUE: Final = "catalogue"
_AXES: Final = ("x", "y", "z")


class ScanStore:
    """Scans in a folder or a bucket.

    A scan is there once its row is in the catalogue. What it consists of was written before, whole, and never changes:
    a changed scan is a new group and a new row. Every version of the catalogue stays readable; a store opened at a
    version reads that one for ever and is not written to, one opened without follows the newest.

    It can be pickled (an address and a version), so that each worker opens its own.

    Args:
        uri: The folder or prefix: a path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix`.
        version: The version of the catalogue to read; the newest, at each call, when None.

    Raises:
        StoreError: there is no store, it is of a newer format, or it has no such version.
    """

    def __init__(self, uri: str | os.PathLike[str] | Location, *, version: int | None = None) -> None:
        self._connect(uri, version)
        self._check_mark()
        self._catalogue.read(version)

    @classmethod
    def create(cls, uri: str | os.PathLike[str] | Location) -> ScanStore:
        """Makes an empty store, or opens the one that is there.

        Raises:
            StoreError: the folder holds other things, or cannot be written to.
        """
        location = uri if isinstance(uri, Location) else Location(uri)
        if not location.exists(_MARK):
            foreign = sorted(set(location.names()) - {_CATALOGUE, _MARK})
            if foreign:
                fix = "give a new or empty folder"
                raise StoreError(f"{location.uri} is not empty and not a store", given=", ".join(foreign[:3]), fix=fix)
            # The mark comes last: until it is there, there is no store.
            Catalogue(location.child(_CATALOGUE), ScanRecord, SCAN_COLUMNS).create()
            mark = json.dumps({"format": _FORMAT, "version": _FORMAT_VERSION}, indent=2) + "\n"
            # It may be there already: another process was quicker, with the same bytes.
            with suppress(ObjectExistsError):
                location.write_bytes(_MARK, mark.encode(), create_only=True)
        return cls(location)

    @property
    def uri(self) -> str:
        """The address: an absolute path, or `s3://bucket/prefix`."""
        return self.location.uri

    @property
    def version(self) -> int:
        """The catalogue version that is read: the pinned one, else the newest."""
        return self._catalogue.version() if self._pinned is None else self._pinned

    def records(self) -> list[ScanRecord]:
        """One record per scan, the newest, sorted by scan id."""
        return list(self._snapshot().records)

    def intact_records(self) -> dict[str, ScanRecord]:
        """The newest record of each scan by id, without those whose row is not what was written."""
        snapshot = self._snapshot()
        return {record.scan_id: record for record in snapshot.records if snapshot.is_intact(record.scan_id)}

    def record(self, scan_id: str) -> ScanRecord:
        """The newest record of a scan.

        Raises:
            StoreError: no such scan, or its row is not what was written.
        """
        snapshot = self._snapshot()
        found = snapshot.find(scan_id)
        if found is None:
            raise MissingObjectError(
                f"there is no scan {scan_id!r} in {self.uri} at version {snapshot.version}",
                expected=f"one of {len(snapshot.records)} scans",
                fix="list them with `neuroray inspect`",
            )
        if not snapshot.is_intact(scan_id):
            raise StoreError(
                f"the catalogue's row of scan {scan_id} is damaged", fix="run `neuroray verify`, ingest the scan again"
            )
        return found

    def write(
        self,
        scan: Scan | Prepared,
        *,
        scan_id: str,
        subject: str,
        modality: str,
        session: str | None = None,
        participant: Participant | None = None,
        source_name: str = "",
        source_sha256: str = "",
        commit: bool = True,
        rewrite: bool = False,
        known: Mapping[str, ScanRecord] | None = None,
        packing: Packing = "fast",
    ) -> ScanRecord:
        """Stores a scan with what is known of the person; the same scan again changes nothing.

        Args:
            scan: What to store; one that went through no profile is taken as `native`.
            scan_id: Its name in the store; one that is there already gets a new version.
            subject: The person.
            modality: "T1w", "bold", ...
            session: The visit.
            participant: Labels at the time of the scan, of this subject.
            source_name: The file, in words that may be kept (no person's name).
            source_sha256: Digest of that file.
            commit: Enter it in the catalogue at once; else hand the record to `commit` later, together with others.
            rewrite: Write the objects even when they are there: mends a scan that `verify` found damaged.
            known: Records by scan id as the caller has just read them, so that each of many writers need not read the
                catalogue for each scan; the catalogue's when None.
            packing: How voxels are compressed; another than that of the version which is there makes a new one.

        Raises:
            StoreError: an id that cannot be part of a path, another person's labels, a scan that cannot be stored, a
                pinned store, or a failed write.
        """
        self._require_writable()
        for text, what in ((scan_id, "a scan id"), (subject, "a subject"), (modality, "a modality")):
            check_id(text, what=what)
        if session is not None:
            check_id(session, what="a session")
        _check_person(subject, participant)
        content = encode_scan(prepared := _prepare(scan), packing)
        group = self._write_group(scan_id, content, rewrite, known)
        record = ScanRecord(
            scan_id=scan_id,
            subject=subject,
            session=session,
            modality=modality,
            voxels_sha256=content.array_digest(VOXELS),
            source_name=source_name,
            source_sha256=source_sha256,
            written_at=utc_now(),
            profile=prepared.profile.name,
            profile_sha256=prepared.profile.fingerprint(),
            **_grid(prepared.scan),
            **describe_person(participant),
            **dataclasses.asdict(group),
        )
        return self.commit([record])[0] if commit else record

    def is_whole(self, record: ScanRecord) -> bool:
        """Whether all objects of a stored scan are there with the right size; does not read them."""
        return self._reader.is_whole(record)

    def commit(self, records: Sequence[ScanRecord]) -> list[ScanRecord]:
        """Enters written scans in the catalogue, all in one step, and gives them as they stand there.

        Raises:
            StoreError: a pinned store, or a commit that failed.
        """
        self._require_writable()
        self._catalogue.append(records)
        snapshot = self._snapshot()
        return [snapshot.find(record.scan_id) or record for record in records]

    def read(self, scan_id: str) -> Scan:
        """The scan as it was written, its source's header included.

        Raises:
            StoreError: no such scan, or an object of it is missing or damaged.
        """
        record = self.record(scan_id)
        with self._reader.open(record) as group:
            return decode_scan(group)

    def read_mask(self, scan_id: str) -> Bool[np.ndarray, "x y z"] | None:
        """The brain mask on the scan's grid; None where its profile makes none.

        Raises:
            StoreError: no such scan, or an object that is missing or damaged.
        """
        with self._reader.open(self.record(scan_id)) as group:
            return decode_mask(group)

    def read_statistics(self, scan_id: str) -> Statistics | None:
        """Mean, deviation and range of the values over the brain; reads no voxel.

        None where no voxel counted, and for scans that were written before statistics were kept.

        Raises:
            StoreError: no such scan, or its group cannot be opened.
        """
        with self._reader.open(self.record(scan_id)) as group:
            return decode_statistics(group)

    def read_profile(self, scan_id: str) -> StoredProfile:
        """The profile that the scan was prepared by, its options and hash.

        Raises:
            StoreError: no such scan, or its group cannot be opened.
        """
        with self._reader.open(self.record(scan_id)) as group:
            return decode_profile(group)

    def read_to_template(self, scan_id: str) -> TemplateTransform | None:
        """How the scan was brought to a template, for `carry_back`; None where it lies on its own grid.

        Raises:
            StoreError: no such scan, or an object that is missing or damaged.
        """
        with self._reader.open(self.record(scan_id)) as group:
            return decode_to_template(group)

    def read_window(self, scan_id: str, start: int, stop: int) -> Num[np.ndarray, "time x y z"]:
        """Values of the frames `start` to `stop - 1`; reads only the chunks they lie in. A 3D scan is one frame.

        Raises:
            StoreError: no such scan or frames, or an object that is missing or damaged.
        """
        record = self._record_with_frames(scan_id, start, stop)
        is_timeseries = len(record.shape) == 4
        rows = (start, stop) if is_timeseries else (0, record.shape[0])
        with self._reader.open(record) as group:
            values = decode_values(group.array(VOXELS), group.read_rows(VOXELS, *rows))
        return values if is_timeseries else values[np.newaxis]

    def read_stored(
        self, scan_id: str, start: int, stop: int, out: Num[np.ndarray, "time x y z"] | None = None
    ) -> StoredFrames:
        """Frames as they are stored, with what turns them into values; reads only the chunks they lie in.

        Args:
            scan_id: A time series.
            start: First frame.
            stop: The end (exclusive).
            out: Where to put them: C order, of the stored type (`stored_dtype`).

        Raises:
            StoreError: no such scan or frames, or an object that is missing or damaged.
        """
        record = self._record_with_frames(scan_id, start, stop)
        if len(record.shape) != 4:
            raise StoreError(f"scan {scan_id} is no time series", given=record.shape, expected="time x y z")
        with self._reader.open(record) as group:
            attributes = group.array_attributes(VOXELS)
            return StoredFrames(
                frames=group.read_rows(VOXELS, start, stop, out),
                slope=float(attributes["slope"]),
                intercept=float(attributes["intercept"]),
            )

    def stored_dtype(self, scan_id: str) -> np.dtype[Any]:
        """The type of the stored numbers, which `read_stored` gives.

        Raises:
            StoreError: no such scan, or its group cannot be opened.
        """
        with self._reader.open(self.record(scan_id)) as group:
            return group.array(VOXELS).dtype

    def read_block(self, scan_id: str, selection: tuple[slice, ...]) -> Num[np.ndarray, "*time x y z"]:
        """Values of a block: one slice per axis of the stored shape; reads only the chunks it lies in.

        Raises:
            StoreError: no such scan, or an object that is missing or damaged.
        """
        with self._reader.open(self.record(scan_id)) as group:
            voxels = group.array(VOXELS)
            return decode_values(voxels, np.asarray(voxels[selection]))

    def chunk_shape(self, scan_id: str) -> tuple[int, ...]:
        """The smallest block that is read at once, `*time x y z`.

        Raises:
            StoreError: no such scan, or its group cannot be opened.
        """
        with self._reader.open(self.record(scan_id)) as group:
            return tuple(group.array(VOXELS).chunks)

    def read_slices(
        self, scan_id: str, axis: Literal["x", "y", "z"], indices: Sequence[int]
    ) -> Num[np.ndarray, "*time x y z"]:
        """Values at some indices along a canonical axis, in the order asked for; that axis has their number as length.

        Raises:
            StoreError: no such scan or slices, or an object that is missing or damaged.
        """
        record = self.record(scan_id)
        if axis not in _AXES:
            raise StoreError("an axis has an unknown name", given=repr(axis), expected="x, y or z")
        dimension = len(record.shape) - 3 + _AXES.index(axis)
        if not all(0 <= index < record.shape[dimension] for index in indices):
            expected = f"0 to {record.shape[dimension] - 1} along {axis}"
            raise StoreError(f"scan {scan_id} has no such slices", given=list(indices), expected=expected)
        selection = [slice(None)] * len(record.shape)
        with self._reader.open(record) as group:
            voxels = group.array(VOXELS)
            stored = voxels.oindex[(*selection[:dimension], np.asarray(indices, np.int64), *selection[dimension + 1 :])]
            return decode_values(voxels, np.asarray(stored))

    def verify(self, scan_ids: Sequence[str] | None = None) -> list[Fault]:
        """Reads every byte of scans (of all, and the catalogue's log, when None); lists what is not as it was written.

        Raises:
            StoreError: no such scan, or the store cannot be reached.
        """
        snapshot = self._snapshot()
        records = snapshot.records if scan_ids is None else [snapshot.find(one) or self.record(one) for one in scan_ids]
        faults = self.verify_log() if scan_ids is None else []
        changed = self.verify_rows([record.scan_id for record in records])
        # What a changed row says of its group is not to be trusted either.
        distrusted = {fault.scan_id for fault in changed}
        for record in records:
            if record.scan_id not in distrusted:
                faults += verify_group(self.location, record.path, record.manifest_sha256, scan_id=record.scan_id)
        return [*changed, *faults]

    def verify_rows(self, scan_ids: Sequence[str]) -> list[Fault]:
        """Lists scans whose row in the catalogue is not what was written; reads no scan."""
        snapshot = self._snapshot()
        changed = [scan_id for scan_id in scan_ids if not snapshot.is_intact(scan_id)]
        problem = "the scan's row has changed (SHA-256)"
        return [Fault(scan_id=scan_id, object=_CATALOGUE, problem=problem) for scan_id in changed]

    def verify_log(self) -> list[Fault]:
        """What of the catalogue's log has changed so that a reader would pass over it; of no scan that could be named.

        Raises:
            StoreError: it cannot be read.
        """
        found = self._catalogue.find_log_damage()
        return [Fault(scan_id="", object=f"{_CATALOGUE}/{key}", problem=problem) for key, problem in found]

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "version": self._pinned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._connect(state["location"], state["version"])

    def __repr__(self) -> str:
        pinned = "" if self._pinned is None else f", version={self._pinned}"
        return f"ScanStore({self.uri!r}{pinned})"

    def _connect(self, uri: str | os.PathLike[str] | Location, version: int | None) -> None:
        self.location = uri if isinstance(uri, Location) else Location(uri)
        self._pinned = version
        self._catalogue = Catalogue(self.location.child(_CATALOGUE), ScanRecord, SCAN_COLUMNS)
        self._reader = GroupReader(self.location)

    def _check_mark(self) -> None:
        try:
            mark = json.loads(self.location.read_bytes(_MARK))
            is_ours, version = mark["format"] == _FORMAT, int(mark["version"])
        except MissingObjectError as error:
            fix = "check the address, or make a store with `neuroray ingest`"
            raise MissingObjectError(f"there is no store in {self.uri}", expected=f"{_MARK} in it", fix=fix) from error
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{_MARK} in {self.uri} cannot be understood", fix="restore it") from error
        if not is_ours or version > _FORMAT_VERSION:
            given = f"{mark['format']} version {version}"
            fix = "use a newer neuroray"
            raise StoreError(
                f"{self.uri} has another format", given=given, expected=f"up to {_FORMAT_VERSION}", fix=fix
            )

    def _record_with_frames(self, scan_id: str, start: int, stop: int) -> ScanRecord:
        record = self.record(scan_id)
        num_frames = record.shape[0] if len(record.shape) == 4 else 1
        if not 0 <= start < stop <= num_frames:
            expected = f"0 <= start < stop <= {num_frames}"
            raise StoreError(f"scan {scan_id} has no such frames", given=f"{start} to {stop}", expected=expected)
        return record

    def _snapshot(self) -> Snapshot[ScanRecord]:
        return self._catalogue.read(self._pinned)

    def _require_writable(self) -> None:
        if self._pinned is not None:
            fix = "open it without a version to write"
            raise StoreError(f"{self.uri} was opened at version {self._pinned}, which never changes", fix=fix)

    def _write_group(
        self, scan_id: str, content: GroupContent, rewrite: bool, known: Mapping[str, ScanRecord] | None
    ) -> WrittenGroup:
        path = f"scans/{scan_id}/{content.digest[:16]}"
        current = self._snapshot().find(scan_id) if known is None else known.get(scan_id)
        if not rewrite and current is not None and current.path == path and self._reader.is_whole(current):
            size_bytes, manifest_sha256 = current.size_bytes, current.manifest_sha256
            return WrittenGroup(path=path, manifest_sha256=manifest_sha256, size_bytes=size_bytes)
        return content.write(self.location, path)


def _check_person(subject: str, participant: Participant | None) -> None:
    """Nobody gets the labels of another; BIDS's `sub-` may be there or not."""
    if participant is not None and participant.subject.removeprefix("sub-") != subject.removeprefix("sub-"):
        raise StoreError("a scan is given another person's labels", given=participant.subject, expected=subject)


def _prepare(scan: Scan | Prepared) -> Prepared:
    """What is stored; of a scan that went through no profile, the native one."""
    if isinstance(scan, Prepared):
        return scan
    check_storable(scan)
    return prepare(scan, find_profile(NATIVE))


def _grid(scan: Scan) -> dict[str, Any]:
    return {
        "shape": tuple(scan.voxels.shape),
        "dtype": scan.voxels.dtype.newbyteorder("=").name,
        "zooms_mm": scan.zooms_mm,
        "affine": tuple(map(float, scan.affine.ravel())),
        "repetition_time_s": scan.repetition_time_s,
        "flags": scan.flags,
    }

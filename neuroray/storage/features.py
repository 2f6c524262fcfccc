"""FeatureStore: what a frozen encoder made of each slice of a scan, kept beside the scans and in the same format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32, Int

from neuroray.storage.catalogue import Catalogue, Snapshot, utc_now
from neuroray.storage.faults import MissingObjectError, ObjectExistsError, StoreError
from neuroray.storage.group import ArrayContent, GroupContent
from neuroray.storage.group_reader import GroupReader
from neuroray.storage.locations import Location
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

_FOLDER: Final = "features"
_MARK: Final = "features.json"
_CATALOGUE: Final = "catalogue"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSet:
    """Features of the slices of one scan.

    Attributes:
        features: One row per slice.
        mask: False for padding, of a scan with fewer slices than the encoder was asked for.
        position_mm: Where along the slicing axis each slice lies.
        slice_index: Its index along that axis of the canonical grid; -1 for padding.
    """

    features: Float32[np.ndarray, "slice channel"]
    mask: Bool[np.ndarray, " slice"]
    position_mm: Float32[np.ndarray, " slice"]
    slice_index: Int[np.ndarray, " slice"]

    def __post_init__(self) -> None:
        shapes = [values.shape for values in (self.mask, self.position_mm, self.slice_index)]
        if self.features.ndim != 2 or not self.features.size or set(shapes) != {self.features.shape[:1]}:
            raise StoreError(
                "a set of features has shapes that do not fit",
                given=f"features {self.features.shape}, mask, position and index {shapes}",
                expected="(slice, channel) and three times (slice,)",
            )
        kinds = (self.features.dtype, self.mask.dtype.kind, self.position_mm.dtype, self.slice_index.dtype.kind)
        if kinds != (np.float32, "b", np.float32, "i"):
            raise StoreError("a set of features has wrong types", given=kinds, expected="float32, bool, float32, int")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRecord:
    """The row of one feature set.

    Attributes:
        scan_id: The scan.
        voxels_sha256: The voxels that the features were made of.
        path: Its Zarr group, relative to the folder of these features.
        manifest_sha256: Digest of the group's manifest.
        written_at: UTC, ISO 8601.
    """

    scan_id: str
    voxels_sha256: str
    path: str
    manifest_sha256: str
    num_slices: int
    num_channels: int
    size_bytes: int
    written_at: str

    @property
    def key(self) -> str:
        """Scan and voxels: features of an older version of a scan stand beside those of a newer."""
        return _key(self.scan_id, self.voxels_sha256)


_COLUMNS: Final = pa.schema(
    [
        pa.field("scan_id", pa.string(), nullable=False),
        pa.field("voxels_sha256", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("manifest_sha256", pa.string(), nullable=False),
        pa.field("num_slices", pa.int64(), nullable=False),
        pa.field("num_channels", pa.int64(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("written_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


class FeatureStore:
    """Features of one encoder for the scans of a store. Nothing is made on disk before the first write.

    Args:
        store: The scans. At a pinned version only features of the voxels of that version are seen.
        fingerprint: Hex digest of all that the features depend on besides the voxels: slicing, encoder, its weights.
        description: What the fingerprint stands for, for people; kept beside the features.

    Raises:
        StoreError: a fingerprint that is no digest, or one that shares its first 16 digits with another's features.
    """

    def __init__(self, store: ScanStore, fingerprint: str, *, description: dict[str, Any] | None = None) -> None:
        if not re.fullmatch("[0-9a-f]{16,}", fingerprint):
            raise StoreError("a fingerprint is no digest", given=repr(fingerprint), expected="16 or more hex digits")
        self.store = store
        self.fingerprint = fingerprint
        self._description = description or {}
        self._location = store.location.child(_FOLDER, fingerprint[:16])
        self._catalogue = _open_catalogue(self._location)
        again = f"delete {self._location.uri} and make them again: neuroray extract, as before"
        self._reader = GroupReader(self._location, fix=again)
        self._begun = self._check_mark()

    def write(self, record: ScanRecord, features: FeatureSet, *, commit: bool = True) -> FeatureRecord:
        """Stores the features of a scan; the same again changes nothing.

        Args:
            record: The scan, as it was when its voxels were read.
            features: What the encoder made of it.
            commit: Enter it in the catalogue at once; else hand the record to `commit` later, together with others.

        Raises:
            StoreError: a failed write.
        """
        self._make()
        content = _encode(record, features)
        group = content.write(self._location, f"sets/{record.scan_id}/{content.digest[:16]}")
        num_slices, num_channels = features.features.shape
        written = FeatureRecord(
            scan_id=record.scan_id,
            voxels_sha256=record.voxels_sha256,
            path=group.path,
            manifest_sha256=group.manifest_sha256,
            num_slices=num_slices,
            num_channels=num_channels,
            size_bytes=group.size_bytes,
            written_at=utc_now(),
        )
        if commit:
            self.commit([written])
        return written

    def commit(self, records: Sequence[FeatureRecord]) -> None:
        """Enters written feature sets in the catalogue, all in one step.

        Raises:
            StoreError: the commit failed.
        """
        self._make()
        self._catalogue.append(records)

    def records(self) -> dict[str, FeatureRecord]:
        """By scan id, for every scan of the store whose present voxels have features."""
        if not self._is_begun():
            return {}
        snapshot = self._catalogue.read()
        found = {scan.scan_id: snapshot.find(_key(scan.scan_id, scan.voxels_sha256)) for scan in self.store.records()}
        return {scan_id: record for scan_id, record in found.items() if record is not None}

    def missing(self, scan_ids: Iterable[str]) -> list[str]:
        """Those of the scans that have no features yet, in the order given."""
        present = self.records()
        return [scan_id for scan_id in scan_ids if scan_id not in present]

    def read(self, scan_id: str) -> FeatureSet:
        """The features of a scan's present voxels.

        Raises:
            StoreError: there are none, or an object of them is missing or damaged.
        """
        scan = self.store.record(scan_id)
        record = self._catalogue.find(_key(scan_id, scan.voxels_sha256)) if self._is_begun() else None
        if record is None:
            raise MissingObjectError(
                f"scan {scan_id!r} has no features of encoder {self.fingerprint[:16]} in {self.store.uri}",
                fix="run `neuroray extract`",
            )
        with self._reader.open(record) as group:
            arrays = {name: np.asarray(group.array(name)[...]) for name in group.array_names}
        return FeatureSet(**arrays)

    def _make(self) -> None:
        if self._is_begun():
            return
        self._catalogue.create()
        mark = {"version": _VERSION, "fingerprint": self.fingerprint, "description": self._description}
        with suppress(ObjectExistsError):
            self._location.write_bytes(_MARK, json.dumps(mark, indent=2).encode(), create_only=True)
        self._check_mark()

    def _is_begun(self) -> bool:
        """Whether there are features of this encoder; asked until there are."""
        if not self._begun:
            self._begun = self._check_mark()
        return self._begun

    def _check_mark(self) -> bool:
        try:
            mark = json.loads(self._location.read_bytes(_MARK))
        except MissingObjectError:
            return False
        except ValueError as error:
            raise StoreError(f"{_MARK} in {self._location.uri} cannot be understood", fix="restore it") from error
        if mark.get("fingerprint") != self.fingerprint or mark.get("version", 0) > _VERSION:
            raise StoreError(
                f"{self._location.uri} holds features of another encoder or format",
                given=f"{mark.get('fingerprint')}, version {mark.get('version')}",
                expected=f"{self.fingerprint}, up to version {_VERSION}",
            )
        return True


def read_feature_catalogues(location: Location) -> dict[str, Snapshot[FeatureRecord]]:
    """What is known of the features of every encoder in a store, by the folder that they lie in.

    Args:
        location: The store.

    Raises:
        StoreError: a catalogue cannot be read.
    """
    found = {}
    for name in sorted(location.child(_FOLDER).names()):
        inside = location.child(_FOLDER, name)
        # Without its mark, which is written after the catalogue, nothing was ever written there.
        if "." not in name and _MARK in inside.names():
            found[f"{_FOLDER}/{name}"] = _open_catalogue(inside).read()
    return found


def _open_catalogue(location: Location) -> Catalogue[FeatureRecord]:
    return Catalogue(location.child(_CATALOGUE), FeatureRecord, _COLUMNS, keys=("scan_id", "voxels_sha256"))


def _key(scan_id: str, voxels_sha256: str) -> str:
    return f"{scan_id} {voxels_sha256}"


def _encode(record: ScanRecord, features: FeatureSet) -> GroupContent:
    arrays = {
        "features": ArrayContent(values=features.features, dimensions=("slice", "channel")),
        "mask": ArrayContent(values=features.mask, dimensions=("slice",)),
        "position_mm": ArrayContent(values=features.position_mm, dimensions=("slice",)),
        "slice_index": ArrayContent(values=features.slice_index, dimensions=("slice",)),
    }
    about = {"content": "features", "version": _VERSION}
    attributes = {"neuroray": about, "scan_id": record.scan_id, "voxels_sha256": record.voxels_sha256}
    return GroupContent(arrays, attributes)

"""Withdrawing people from a store: their voxels, their features, and every row that ever named them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from neuroray.storage.catalogue_history import find_rows, purge_rows
from neuroray.storage.faults import StoreError
from neuroray.storage.group import manifest_key
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

_CATALOGUE: Final = "catalogue"
_FEATURES: Final = "features"


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """What was taken out of a store.

    Attributes:
        num_scans: Scans, of whatever version.
        num_objects: Objects deleted.
        size_bytes: Of them.
        num_rows: Rows taken out of the catalogue of scans and those of features.
    """

    num_scans: int
    num_objects: int
    size_bytes: int
    num_rows: int


def withdraw(store: ScanStore, subjects: Collection[str]) -> Withdrawal:
    """Deletes all of these people's data from every version of a store; others' versions stay as they were.

    Data go first, rows last: a call that was cut short leaves rows by which the next one finds what is left. Until it
    is through, whoever asks for these scans is told that objects are missing. Run folders and files exported
    before are not in the store and keep what they hold.

    Args:
        store: Opened without a version.
        subjects: The people, by the name that the catalogue has for them.

    Raises:
        StoreError: nobody of that name was ever in the store, or it cannot be written to.
    """
    location = store.location
    rows = find_rows(location.child(_CATALOGUE), "subject", subjects)
    unknown = set(subjects) - {row["subject"] for row in rows}
    if unknown:
        fix = "list people with `neuroray inspect`; nothing was deleted"
        raise StoreError(f"{len(unknown)} people were never in {store.uri}", given=", ".join(sorted(unknown)), fix=fix)
    scan_ids = {row["scan_id"] for row in rows}
    catalogue = location.child(_CATALOGUE)
    # A scan's name may have passed from one person to another: then only the groups of those who leave go.
    shared = {row["scan_id"] for row in find_rows(catalogue, "scan_id", scan_ids) if row["subject"] not in subjects}
    own = {row["path"] for row in rows}
    deleted = []
    for scan_id in sorted(scan_ids):
        deleted += _delete(location, f"scans/{scan_id}", own if scan_id in shared else None)
    num_rows = 0
    for name in _list_features(location):
        # Features are only a cache: those of a shared name are made again when they are asked for.
        for scan_id in sorted(scan_ids):
            deleted += _delete(location.child(_FEATURES, name), f"sets/{scan_id}")
        num_rows += purge_rows(location.child(_FEATURES, name, _CATALOGUE), "scan_id", scan_ids)
    num_rows += purge_rows(catalogue, "subject", subjects)
    return Withdrawal(
        num_scans=len(scan_ids),
        num_objects=len(deleted),
        size_bytes=sum(deleted),
        num_rows=num_rows,
    )


def _list_features(location: Location) -> list[str]:
    return [name for name in location.child(_FEATURES).names() if "." not in name]


def _delete(location: Location, folder: str, groups: Collection[str] | None = None) -> Iterator[int]:
    """Sizes of the objects deleted: all in the folder, or those of some groups in it."""
    for key, size in location.list(folder):
        if groups is None or any(key.startswith(f"{path}/") or key == manifest_key(path) for path in groups):
            location.delete(key)
            yield size

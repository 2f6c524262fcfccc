"""Opens groups that a catalogue names, keeps them open, and says which object of which scan is at fault when one is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Protocol

from neuroray.storage.faults import (
    DamagedObjectError,
    MissingObjectError,
    StoreError,
)
from neuroray.storage.group import StoredGroup, manifest_key
from neuroray.storage.locations import Location
from neuroray.storage.retries import find_told
from neuroray.storage.verify import find_damage

_MAX_OPEN_GROUPS: Final = 1024  # some kilobytes each
_RESTORE: Final = "run `neuroray verify`; restore the object or ingest the scan again"


class GroupRecord(Protocol):
    """A row of a catalogue that points to a group."""

    @property
    def scan_id(self) -> str:
        """The scan it belongs to."""
        ...

    @property
    def path(self) -> str:
        """Where the group lies."""
        ...

    @property
    def manifest_sha256(self) -> str:
        """Digest of its manifest."""
        ...


class GroupReader:
    """Groups of one location; a group that was opened is kept, for it never changes.

    Args:
        location: Where they lie.
        fix: What mends a damaged one.
    """

    def __init__(self, location: Location, *, fix: str = _RESTORE) -> None:
        self._location, self._fix = location, fix
        self._open: OrderedDict[tuple[str, str], StoredGroup] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(GroupReader, fix=self._fix), (self._location,)

    @contextmanager
    def open(self, record: GroupRecord) -> Iterator[StoredGroup]:
        """The group of a record, to read from inside the block.

        Raises:
            StoreError: opening it or anything in the block failed: names the scan, and the objects that are missing or
                have changed.
        """
        group = None
        try:
            group = self._find(record)
            yield group
        except MemoryError:
            raise
        except Exception as error:
            told = find_told(error)
            if told is not None:
                # It says all that there is to say, and to ask the same server for more would only take longer.
                fault = f"scan {record.scan_id} cannot be read: {told.fault}"
                raise type(told)(fault, given=told.given, expected=told.expected, fix=told.fix) from error
            # Whatever a decoder trips over: the objects are not what was written, or cannot be had.
            damage = manifest_key(record.path) if group is None else self._name_damage(record.path, group)
            fix = self._fix
            if not damage:
                damage, fix = f"{record.path}, though its objects are whole", "read again: it was spoiled on its way"
            raise StoreError(
                f"scan {record.scan_id} in {self._location.uri} cannot be read: {damage}",
                given=f"{type(error).__name__}: {str(error)[:200]}",
                fix=fix,
            ) from error

    def is_whole(self, record: GroupRecord) -> bool:
        """Whether all objects of the group are there with the right size; does not read them."""
        try:
            group = StoredGroup(self._location, record.path, record.manifest_sha256)
        except (MissingObjectError, DamagedObjectError):
            return False
        sizes = {f"{record.path}/{key}": entry["size_bytes"] for key, entry in group.objects.items()}
        return dict(self._location.list(record.path)) == sizes

    def _find(self, record: GroupRecord) -> StoredGroup:
        key = (record.path, record.manifest_sha256)
        group = self._open.pop(key, None) or StoredGroup(self._location, *key)
        self._open[key] = group
        if len(self._open) > _MAX_OPEN_GROUPS:
            self._open.popitem(last=False)
        return group

    def _name_damage(self, path: str, group: StoredGroup) -> str:
        try:
            damage = find_damage(self._location, path, group.objects)
        except StoreError as error:
            return f"{path} cannot be looked into ({error.given})"
        return "; ".join(f"{key}: {problem}" for key, problem in damage)

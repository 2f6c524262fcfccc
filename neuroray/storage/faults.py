"""What can be wrong with what lies on disk or in a bucket: the errors raised, and the faults that `verify` lists."""

from __future__ import annotations

from dataclasses import dataclass

from neuroray.errors import NeurorayError


class StoreError(NeurorayError, OSError):
    """A store, a location or an object in it that cannot be read or written as asked."""


class MissingObjectError(StoreError, FileNotFoundError):
    """An object that is not there, or a folder or bucket that does not exist."""


class ObjectExistsError(StoreError, FileExistsError):
    """An object that was to be created and is already there."""


class DamagedObjectError(StoreError):
    """An object whose bytes are not those that were written."""


class ForbiddenError(StoreError, PermissionError):
    """What the server or the system does not let us do: no right, credentials that ran out, a clock that is wrong."""


class UnreachableError(StoreError):
    """What could not be had though it was tried again until the deadline; says nothing of whether it is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is not as it was written.

    Attributes:
        scan_id: The scan it belongs to.
        object: The object, as a path inside the store.
        problem: What is wrong with it.
    """

    scan_id: str
    object: str
    problem: str

"""Reads every byte of a group, in pieces, and compares it with what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr

from neuroray.storage.faults import DamagedObjectError, Fault, MissingObjectError
from neuroray.storage.group import StoredGroup, manifest_key
from neuroray.storage.locations import Location
from neuroray.storage.retries import find_told


def verify_group(location: Location, path: str, manifest_sha256: str, *, scan_id: str) -> list[Fault]:
    """All that is wrong with a group; empty when every byte is as it was written and all decodes to what it was.

    Holds some 8 MB of an object, and of an array what `slabs` gives at once.

    Raises:
        StoreError: the store cannot be reached, so that nothing can be said.
    """
    try:
        group = StoredGroup(location, path, manifest_sha256)
    except MissingObjectError:
        return [Fault(scan_id=scan_id, object=manifest_key(path), problem="missing")]
    except DamagedObjectError:
        return [Fault(scan_id=scan_id, object=manifest_key(path), problem="its bytes have changed (SHA-256)")]
    problems = find_damage(location, path, group.objects)
    if not problems:
        problems = _compare_arrays(group, path)
    return [Fault(scan_id=scan_id, object=key, problem=problem) for key, problem in problems]


def find_damage(location: Location, path: str, objects: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Objects, as paths in the store, that are missing, changed, or not of this group, each with what is wrong.

    Args:
        location: The store.
        path: The group's path in it.
        objects: Keys in the group with `size_bytes` and `sha256`.
    """
    found = dict(location.list(path))
    problems = []
    for key, entry in sorted(objects.items()):
        full = f"{path}/{key}"
        size_bytes = found.pop(full, None)
        if size_bytes is None:
            problems.append((full, "missing"))
        elif size_bytes != entry["size_bytes"]:
            problems.append((full, f"{size_bytes} bytes instead of {entry['size_bytes']}"))
        elif not _has_digest(location, full, (entry["size_bytes"], entry["sha256"])):
            problems.append((full, "its bytes have changed (SHA-256)"))
    return problems + [(full, "not part of the group") for full in sorted(found)]


def slabs(array: zarr.Array[Any]) -> Iterator[np.ndarray]:
    """All numbers of an array in C order, piece by piece; a piece is a chunk thick.

    Axes that are cut into single planes are walked through, the first one with a thicker chunk is taken a chunk at a
    time, and those behind it whole. With chunks of whole frames, or of parts of one frame, a piece is one chunk.
    """
    thick = next((axis for axis, length in enumerate(array.chunks) if length > 1), len(array.shape) - 1)
    for lead in np.ndindex(array.shape[:thick]):
        for start in range(0, array.shape[thick], array.chunks[thick]):
            yield np.asarray(array[(*lead, slice(start, start + array.chunks[thick]))])


def _has_digest(location: Location, key: str, expected: tuple[int, str]) -> bool:
    # Asked again, for what a network spoiled on its way is no fault of the object.
    return location.digest(key) == expected or location.digest(key) == expected


def _compare_arrays(group: StoredGroup, path: str) -> list[tuple[str, str]]:
    problems = []
    for name in group.array_names:
        try:
            array = group.array(name)
            decoded = _digest_array(array)
        except Exception as error:
            told = find_told(error)
            if told is not None:
                raise told from error
            # Whatever a decoder trips over is what is to be reported.
            problems.append((f"{path}/{name}", f"cannot be decoded ({type(error).__name__}: {error})"))
            continue
        if decoded != array.attrs["sha256"]:
            problems.append((f"{path}/{name}", "decodes to other numbers than were written"))
    return problems


def _digest_array(array: zarr.Array[Any]) -> str:
    """The same digest as `group.array_sha256` of the whole array."""
    sha256 = hashlib.sha256()
    for slab in slabs(array):
        plain = np.ascontiguousarray(slab, dtype=slab.dtype.newbyteorder("<"))
        sha256.update(plain.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()

"""What lies in a store and belongs to no version of any catalogue: left by a crash, or not committed yet."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from neuroray.storage.locations import Location

_CATALOGUE: Final = "catalogue"
_LOG: Final = "_delta_log/"
_MANIFEST: Final = ".manifest.json"
# The object store's library writes a local file under such a name, then moves it to its place.
_UNFINISHED: Final = re.compile(r"#\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """A group, a file of a catalogue or an unfinished file that no catalogue knows of.

    Attributes:
        path: Where it lies in the store.
        num_objects: How many objects it has.
        size_bytes: All of them.
    """

    path: str
    num_objects: int
    size_bytes: int


def find_orphans(location: Location) -> list[Orphan]:
    """What no row of any version refers to, sorted by path. Nothing is deleted.

    A writer that is at work leaves such things too, until it commits: ask when nobody writes.

    Args:
        location: A store.

    Raises:
        StoreError: the store cannot be listed, or a catalogue cannot be read.
    """
    found = [*_find(location, "scans", ""), *_find_unfinished(location)]
    for name in location.child("features").names():
        if "." not in name:
            found += _find(location.child("features", name), "sets", f"features/{name}/")
    return sorted(found, key=lambda orphan: orphan.path)


def _find(location: Location, folder: str, prefix: str) -> Iterator[Orphan]:
    """Of one catalogue and the groups in `folder` beside it."""
    data = {key: size for key, size in location.list(_CATALOGUE) if key.endswith(".parquet") and _LOG not in key}
    committed = _list_committed(location) & data.keys()
    for key in data.keys() - committed:
        yield Orphan(path=prefix + key, num_objects=1, size_bytes=data[key])
    known = _list_groups(location, committed)
    sizes: dict[str, list[int]] = {}
    for key, size in location.list(folder):
        path = _group_of(key)
        if path not in known:
            sizes.setdefault(path, []).append(size)
    for path, each in sizes.items():
        yield Orphan(path=prefix + path, num_objects=len(each), size_bytes=sum(each))


def _list_committed(location: Location) -> set[str]:
    """The data files that any version of the catalogue consisted of."""
    files = set()
    for key, _ in location.list(f"{_CATALOGUE}/_delta_log"):
        if key.endswith(".json"):
            entries = [json.loads(line) for line in location.read_bytes(key).decode().splitlines() if line]
            files |= {f"{_CATALOGUE}/{entry['add']['path']}" for entry in entries if "add" in entry}
    return files


def _list_groups(location: Location, files: Iterable[str]) -> set[str]:
    tables = (pq.read_table(io.BytesIO(location.read_bytes(key)), columns=["path"]) for key in sorted(files))
    return {path for table in tables for path in table["path"].to_pylist()}


def _group_of(key: str) -> str:
    """`scans/ID/DIGEST` for all that lies in it and for its manifest."""
    return "/".join(key.split("/")[:3]).removesuffix(_MANIFEST)


def _find_unfinished(location: Location) -> Iterator[Orphan]:
    if not location.is_local:
        return
    root = Path(location.path)
    for path in root.rglob("*#*"):
        if path.is_file() and _UNFINISHED.search(path.name):
            yield Orphan(path=path.relative_to(root).as_posix(), num_objects=1, size_bytes=path.stat().st_size)

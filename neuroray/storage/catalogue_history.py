"""Taking rows out of every version of a Delta table: the one change that history must not survive.

Delta deletes by adding a version; the rows stay in the files of the versions before, and the log keeps the smallest and
largest label of every file. So the files are written anew under their own names, without the rows, and the log's
entries are corrected. All versions stay readable, for everybody else, at every moment: a file keeps its size, by which
readers find their way in it. The log goes first: rows that are still there are how the call after a crash finds what
is left to do, and every step may be done twice.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neuroray.storage.faults import StoreError
from neuroray.storage.locations import Location

_LOG: Final = "_delta_log/"
_ROUNDS: Final = 3


def find_rows(location: Location, column: str, values: Collection[str]) -> list[dict[str, Any]]:
    """Rows of any version of the table, superseded ones too, whose `column` is one of `values`."""
    found = (_select(_read(location, key), column, values) for key in _list_data(location))
    return [row for rows in found for row in rows.to_pylist()]


def purge_rows(location: Location, column: str, values: Collection[str]) -> int:
    """Takes rows out of all versions; gives how many there were.

    Raises:
        StoreError: the table cannot be written to, or somebody keeps writing such rows.
    """
    num_purged = 0
    for _ in range(_ROUNDS):
        rewritten = [_rewrite(location, key, column, values) for key in _list_data(location)]
        changed = [file for file in rewritten if file.num_removed]
        _correct_log(location, changed)
        for file in changed:
            location.write_bytes(file.key, file.content)
            num_purged += file.num_removed
        # Somebody may have merged files meanwhile, from copies read before.
        if not find_rows(location, column, values):
            return num_purged
    raise StoreError(f"rows come back into {location.uri}", fix="stop whoever writes to it, then try again")


def _list_data(location: Location) -> list[str]:
    return [key for key, _ in location.list() if key.endswith(".parquet") and not key.startswith(_LOG)]


def _read(location: Location, key: str) -> pa.Table:
    return pq.read_table(io.BytesIO(location.read_bytes(key)))


def _is_wanted(rows: pa.Table, column: str, values: Collection[str]) -> np.ndarray:
    return np.array([value in values for value in rows[column].to_pylist()], dtype=bool)


def _select(rows: pa.Table, column: str, values: Collection[str]) -> pa.Table:
    return rows.filter(pa.array(_is_wanted(rows, column, values)))


class _DataFile(NamedTuple):
    """A file as it is to be."""

    key: str
    content: bytes
    num_rows: int
    num_removed: int


def _rewrite(location: Location, key: str, column: str, values: Collection[str]) -> _DataFile:
    before = location.read_bytes(key)
    rows = pq.read_table(io.BytesIO(before))
    kept = rows.filter(pa.array(~_is_wanted(rows, column, values)))
    if kept.num_rows == rows.num_rows:
        return _DataFile(key, before, rows.num_rows, 0)
    # No statistics: a label of the smallest and largest kind would stand in them, and nobody asks for them.
    sink = io.BytesIO()
    pq.write_table(kept, sink, compression="snappy", write_statistics=False)
    return _DataFile(key, _pad(sink.getvalue(), len(before)), kept.num_rows, rows.num_rows - kept.num_rows)


def _pad(parquet: bytes, size_bytes: int) -> bytes:
    """The file at a size, by zeros in front of its footer, where no offset points.

    A file that is not smaller stays as it is: who reads it between the log's correction and its own is told to try
    again.
    """
    footer_length = int.from_bytes(parquet[-8:-4], "little")
    footer = len(parquet) - 8 - footer_length
    return parquet[:footer] + bytes(max(0, size_bytes - len(parquet))) + parquet[footer:]


def _correct_log(location: Location, changed: Sequence[_DataFile]) -> None:
    """Sizes and row counts as they will be; no smallest and largest labels; no checkpoints, which repeat both."""
    counts = {file.key: (len(file.content), file.num_rows) for file in changed}
    for key, _ in location.list(_LOG.rstrip("/")):
        if key.endswith(".json"):
            before = [json.loads(line) for line in location.read_bytes(key).decode().splitlines() if line]
            after = [_correct_entry(entry, counts) for entry in before]
            if after != before:
                lines = (json.dumps(entry, separators=(",", ":")) + "\n" for entry in after)
                location.write_bytes(key, "".join(lines).encode())
        elif "checkpoint" in key:
            location.delete(key)


def _correct_entry(entry: dict[str, Any], counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    for kind in ("add", "remove"):
        action = entry.get(kind)
        if action is None:
            continue
        # Of every file, those long gone too: who left may have been the smallest or largest there.
        stats = {"numRecords": json.loads(action["stats"]).get("numRecords")} if action.get("stats") else {}
        if action["path"] in counts:
            size_bytes, num_rows = counts[action["path"]]
            action, stats = {**action, "size": size_bytes}, {"numRecords": num_rows}
        return {**entry, kind: {**action, "stats": json.dumps(stats)} if kind == "add" or stats else action}
    return entry

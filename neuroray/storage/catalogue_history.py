"""Taking rows out of every version of a Delta table: the one change that history must not survive.

Delta deletes by adding a version; the rows stay in the files of the versions before, and the log keeps the smallest and
largest label of every file. So the files are written anew under their own names, without the rows, and the log's
entries are corrected. All versions stay readable, for everybody else, at every moment: a file keeps its size, by which
readers find their way in it. Every step may be done twice: what a crash leaves half done, the next call finishes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from typing import Any, Final

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
        removed = sum(_rewrite(location, key, column, values) for key in _list_data(location))
        _correct_log(location)
        num_purged += removed
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


def _rewrite(location: Location, key: str, column: str, values: Collection[str]) -> int:
    rows = _read(location, key)
    kept = rows.filter(pa.array(~_is_wanted(rows, column, values)))
    if kept.num_rows < rows.num_rows:
        # No statistics: a label of the smallest and largest kind would stand in them, and nobody asks for them.
        sink = io.BytesIO()
        pq.write_table(kept, sink, compression="snappy", write_statistics=False)
        location.write_bytes(key, _pad(sink.getvalue(), dict(location.list())[key]))
    return rows.num_rows - kept.num_rows


def _pad(parquet: bytes, size_bytes: int) -> bytes:
    """The file at a size, by zeros in front of its footer, where no offset points.

    A file that is not smaller stays as it is: the log's correction, which follows, is then what readers wait for.
    """
    footer_length = int.from_bytes(parquet[-8:-4], "little")
    footer = len(parquet) - 8 - footer_length
    return parquet[:footer] + bytes(max(0, size_bytes - len(parquet))) + parquet[footer:]


def _correct_log(location: Location) -> None:
    """Sizes and row counts as they are now; no smallest and largest labels; no checkpoints, which repeat both."""
    sizes = dict(location.list())
    for key in sizes:
        if not key.startswith(_LOG):
            continue
        if key.endswith(".json"):
            before = location.read_bytes(key)
            lines = [_correct_entry(json.loads(line), location, sizes) for line in before.decode().splitlines() if line]
            after = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
            if [json.loads(line) for line in before.decode().splitlines() if line] != lines:
                location.write_bytes(key, after)
        elif "checkpoint" in key:
            location.delete(key)


def _correct_entry(entry: dict[str, Any], location: Location, sizes: dict[str, int]) -> dict[str, Any]:
    for kind in ("add", "remove"):
        action = entry.get(kind)
        if action is not None and action["path"] in sizes:
            rows = pq.read_metadata(io.BytesIO(location.read_bytes(action["path"]))).num_rows
            counted = {"stats": json.dumps({"numRecords": rows})} if kind == "add" or "stats" in action else {}
            return {**entry, kind: {**action, "size": sizes[action["path"]], **counted}}
    return entry

"""A Delta table of records, one row per write: appended to by many writers, read as the newest row of each key."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from neuroray.storage.faults import ForbiddenError, MissingObjectError, StoreError
from neuroray.storage.locations import Location
from neuroray.storage.retries import Attempts, describe, find_refusal, is_transient, keep_trying, shown

# Old versions stay readable: a run pins one, and may be repeated years later.
_PROPERTIES: Final = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
_LOG: Final = "_delta_log"
_ACTIONS: Final = frozenset(("add", "remove", "metaData", "protocol", "txn", "commitInfo", "cdc", "domainMetadata"))
_MARK: Final = "neuroray.commit"
_COMMIT_ATTEMPTS: Final = 8
_COMMIT_RETRIES: Final = 25  # inside the Delta library, without a pause
_LONGEST_PAUSE_S: Final = 4.0
_MANY_FILES: Final = 100  # a file costs a reader some 2 ms on disk, a round trip in a bucket
_OWN_COLUMNS: Final = (
    pa.field("after_version", pa.int64(), nullable=False),
    pa.field("record_sha256", pa.string(), nullable=False),
)


class Record(Protocol):
    """A frozen dataclass that is a row: its fields are the columns."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> str:
        """What the row is about; the newest row of each counts."""
        ...

    @property
    def written_at(self) -> str:
        """When, in UTC, ISO 8601."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot[R: Record]:
    """The newest record of each key at one version of the table, sorted by key."""

    version: int
    records: tuple[R, ...]
    digests: dict[str, str]
    positions: dict[str, int]

    def find(self, key: str) -> R | None:
        """The record of a key, or None."""
        position = self.positions.get(key)
        return None if position is None else self.records[position]

    def is_intact(self, key: str) -> bool:
        """Whether the record of a key is what its writer put down."""
        return self.digests[key] == digest_record(self.records[self.positions[key]])


class Catalogue[R: Record]:
    """A Delta table of one type of record.

    Each row carries, besides the record, `after_version` (the table's version that its writer had seen) and
    `record_sha256`. Of two rows of one key the newer is the one with the higher `after_version`, for its writer knew
    of the other; between rows written at the same time the later clock decides. So a wrong clock cannot bring back what
    was replaced.

    Args:
        location: The folder of the table.
        record_type: A frozen dataclass.
        columns: Arrow types of its fields, by name.
        keys: The columns that make the record's `key`.
    """

    def __init__(
        self, location: Location, record_type: type[R], columns: pa.Schema, *, keys: tuple[str, ...] = ("scan_id",)
    ) -> None:
        self._location = location
        self._type = record_type
        self._columns = columns
        self._keys = keys
        self._snapshot: Snapshot[R] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_snapshot": None}

    def create(self) -> None:
        """Makes the table where there is none."""
        schema = pa.schema([*self._columns, *_OWN_COLUMNS])

        def make() -> None:
            try:
                uri, options = self._location.delta_uri(), self._location.delta_options
                DeltaTable.create(uri, schema, mode="ignore", configuration=_PROPERTIES, storage_options=options)
            except CommitFailedError:
                # Another process made it between the look and the write, or an earlier try whose answer was lost.
                self._open(None)

        self._try("cannot make the catalogue", make)

    def exists(self) -> bool:
        """Whether the table has been made."""
        return _LOG in self._location.names()

    def version(self) -> int:
        """The newest version.

        Raises:
            StoreError: there is no table, or it cannot be read.
        """
        return self._try("cannot open the catalogue", lambda: self._open(None).version())

    def read(self, version: int | None = None) -> Snapshot[R]:
        """The newest record of each key, at a version or now.

        Raises:
            StoreError: no such table or version, or rows that cannot be read.
        """
        if self._snapshot is not None and version == self._snapshot.version:
            return self._snapshot
        known = self._snapshot

        def load() -> Snapshot[R]:
            table = self._open(version)
            if known is not None and table.version() == known.version:
                return known
            return self._take_snapshot(table.version(), table.to_pyarrow_table())

        self._snapshot = self._try("cannot read the catalogue", load, version)
        return self._snapshot

    def find(self, key: str) -> R | None:
        """The record of a key, from what was read last if it is there: for keys whose records are all as good."""
        known = None if self._snapshot is None else self._snapshot.find(key)
        return known or self.read().find(key)

    def append(self, records: Sequence[R]) -> None:
        """Adds rows in one commit: all of them are there, or none.

        Records that stand in the catalogue already, but for the time of writing, add nothing.

        Raises:
            StoreError: the commit failed, also when tried again.
        """
        seen = self.read()
        plain = self._from_rows(self._to_rows(records))
        new = [record for record in plain if seen.digests.get(record.key) != digest_record(record)]
        if not new:
            return
        rows = self._to_rows(new)
        for field, values in zip(_OWN_COLUMNS, _own_values(new, seen.version), strict=True):
            rows = rows.append_column(field, pa.array(values, field.type))
        table = self._commit(rows, seen.version)
        if table.version() == seen.version + 1:
            self._snapshot = _extend(seen, new)
        self._merge_files(table)

    def find_log_damage(self) -> list[tuple[str, str]]:
        """Entries of the log that say nothing a reader would understand, and would pass over; each with its object.

        The log carries no sums, and a reader takes an action that it does not know for one of a newer writer: rows
        would be gone without a word.

        Raises:
            StoreError: it cannot be read.
        """
        problems = []
        keys = [key for key, _ in self._location.list(_LOG) if re.fullmatch(rf"{_LOG}/\d{{20}}\.json", key)]
        for key in keys:
            try:
                lines = [json.loads(line) for line in self._location.read_bytes(key).splitlines() if line.strip()]
                actions = {action for line in lines for action in line}
            except ValueError:
                problems.append((key, "cannot be understood"))
                continue
            if not actions or actions - _ACTIONS:
                problems.append((key, f"holds {', '.join(sorted(actions - _ACTIONS)) or 'nothing'}"))
        return problems

    def _commit(self, rows: pa.Table, seen_version: int) -> DeltaTable:
        """Appends, again and again while others are quicker or the server fails; gives the table as it is then.

        A commit of which the answer was lost is known by its mark, and not made twice.
        """
        what, mark, num_beaten = "cannot commit to the catalogue", uuid.uuid4().hex, 0
        properties = CommitProperties(max_commit_retries=_COMMIT_RETRIES, custom_metadata={_MARK: mark})
        attempts = Attempts(f"{what} in {self._location.uri}")
        while True:
            try:
                table = self._open(None)
                if not (attempts.num_failed and self._is_marked(mark, seen_version, table.version())):
                    # merge: a table made before a column was thought of gets it now (older rows hold nothing there),
                    # and one that a newer neuroray gave a column more takes rows without it.
                    write_deltalake(table, rows, mode="append", schema_mode="merge", commit_properties=properties)
            except (DeltaError, OSError) as error:
                if is_transient(error):
                    time.sleep(attempts.pause_s(error))
                    continue
                num_beaten += 1
                if not isinstance(error, CommitFailedError):
                    raise self._fault(what, error) from shown(error)
                if num_beaten == _COMMIT_ATTEMPTS:
                    raise self._fault(f"{what}: others did each time", error) from error
                time.sleep(random.uniform(0.0, min(_LONGEST_PAUSE_S, 0.05 * 2**num_beaten)))
            else:
                return table

    def _is_marked(self, mark: str, seen_version: int, version: int) -> bool:
        """Whether a commit after the version seen carries the mark; the Delta library's history would hold the GIL."""
        keys = [f"{_LOG}/{number:020d}.json" for number in range(seen_version + 1, version + 1)]
        return any(mark.encode() in self._location.read_bytes(key) for key in keys)

    def _merge_files(self, table: DeltaTable) -> None:
        """Gathers the files of many small commits into one, so that reading stays quick; old versions keep theirs."""
        if len(table.file_uris()) < _MANY_FILES:
            return
        # Only a convenience: whoever loses the race leaves it to the winner.
        with contextlib.suppress(DeltaError, OSError):
            table.optimize.compact()

    def _try[T](self, what: str, attempt: Callable[[], T], version: int | None = None) -> T:
        what_here = f"{what} in {self._location.uri}"
        try:
            try:
                return keep_trying(attempt, what=what_here)
            except (StoreError, PermissionError):
                raise
            except (DeltaError, OSError, ValueError):
                if self._location.is_local:
                    raise
                # The Delta library checks no sums: what it cannot understand may have been spoiled on its way.
                return keep_trying(attempt, what=what_here)
        except TableNotFoundError as error:
            raise MissingObjectError(f"there is no catalogue in {self._location.uri}") from error
        except StoreError:
            raise
        except (DeltaError, OSError, ValueError) as error:
            if version is None or find_refusal(error) or self._exists(version):
                raise self._fault(what, error) from shown(error)
            raise StoreError(
                f"the catalogue in {self._location.uri} cannot be opened at this version",
                given=version,
                expected=f"0 to {self.version()}",
                fix="leave the version out to read the newest",
            ) from error

    def _exists(self, version: int) -> bool:
        return 0 <= version <= self.version()

    def _open(self, version: int | None) -> DeltaTable:
        uri, options = self._location.delta_uri(), self._location.delta_options
        return DeltaTable(uri, version=version, storage_options=options)

    def _fault(self, what: str, error: BaseException) -> StoreError:
        refusal = None if self._location.is_local else find_refusal(error)
        kind = StoreError if refusal is None else ForbiddenError
        fix = refusal or "check the address, the credentials, the free space"
        return kind(f"{what} in {self._location.uri}", given=describe(error), fix=fix)

    def _take_snapshot(self, version: int, rows: pa.Table) -> Snapshot[R]:
        rows = _newest(rows, self._keys)
        return _index(version, self._from_rows(rows), rows["record_sha256"].to_pylist())

    def _to_rows(self, records: Sequence[R]) -> pa.Table:
        columns = {name: [_to_cell(getattr(record, name)) for record in records] for name in self._columns.names}
        columns["written_at"] = [datetime.fromisoformat(moment) for moment in columns["written_at"]]
        return pa.table(columns, schema=self._columns)

    def _from_rows(self, rows: pa.Table) -> list[R]:
        # A column that an older table lacks is left to the record's default.
        names = [name for name in self._columns.names if name in rows.column_names]
        columns = [_from_column(rows[name]) for name in names]
        try:
            return [self._type(**dict(zip(names, cells, strict=True))) for cells in zip(*columns, strict=True)]
        except TypeError as error:
            raise self._fault("the catalogue lacks a column", error) from error


def digest_record(record: Any) -> str:
    """SHA-256 (hex) of a record but for the time of its writing; fields that hold nothing do not count."""
    fields = {item.name: getattr(record, item.name) for item in dataclasses.fields(record) if item.name != "written_at"}
    filled = {name: value for name, value in fields.items() if value not in (None, (), {})}
    return hashlib.sha256(json.dumps(filled, sort_keys=True).encode()).hexdigest()


def utc_now() -> str:
    """The time in UTC, ISO 8601 to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _index[R: Record](version: int, records: Sequence[R], digests: Sequence[str]) -> Snapshot[R]:
    keys = [record.key for record in records]
    positions = {key: position for position, key in enumerate(keys)}
    return Snapshot(version, tuple(records), dict(zip(keys, digests, strict=True)), positions)


def _extend[R: Record](seen: Snapshot[R], new: Sequence[R]) -> Snapshot[R]:
    """The snapshot one version later, when that version added these records."""
    records = {record.key: record for record in (*seen.records, *sorted(new, key=lambda record: record.written_at))}
    digests = {**seen.digests, **{record.key: digest_record(records[record.key]) for record in new}}
    keys = sorted(records)
    return _index(seen.version + 1, [records[key] for key in keys], [digests[key] for key in keys])


def _own_values(new: Sequence[Any], seen_version: int) -> tuple[list[Any], list[Any]]:
    return [seen_version] * len(new), [digest_record(record) for record in new]


def _newest(rows: pa.Table, keys: tuple[str, ...]) -> pa.Table:
    """The newest row of each key, in the order of the keys."""
    if not rows.num_rows:
        return rows
    columns = (*keys, "after_version", "written_at", "record_sha256")
    rows = rows.sort_by([(name, "ascending") for name in columns])
    is_last = np.zeros(rows.num_rows, dtype=bool)
    is_last[-1] = True
    for name in keys:
        codes = np.asarray(rows[name].combine_chunks().dictionary_encode().indices)
        is_last[:-1] |= codes[1:] != codes[:-1]
    return rows.take(np.flatnonzero(is_last))


def _to_cell(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else value


def _from_column(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        naive = column.cast(pa.timestamp("us")).to_pylist()
        return [moment.replace(tzinfo=UTC).isoformat(timespec="microseconds") for moment in naive]
    if pa.types.is_map(column.type):
        return [dict(cell or ()) for cell in column.to_pylist()]
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _from_lists(column.combine_chunks())
    return column.to_pylist()


def _from_lists(column: Any) -> list[tuple[Any, ...]]:
    """As tuples; the items converted in one go, which is many times faster than list by list."""
    ends = np.cumsum(np.asarray(column.value_lengths(), dtype=np.int64)).tolist()
    items = column.flatten().to_pylist()
    return [tuple(items[start:end]) for start, end in zip([0, *ends], ends, strict=False)]

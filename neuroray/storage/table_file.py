"""A table of text (TSV or CSV, as instruments and spreadsheets write them) as columns and numbered rows."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from neuroray.errors import NeurorayError

MISSING = frozenset({"", "n/a", "na", "nan", "none", "null", "."})
"""What stands for "not known", in lower case (BIDS writes n/a)."""

_MAX_BYTES = 256 * 2**20
_MAX_LISTED = 8
_DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons"}


class TableError(NeurorayError, ValueError):
    """A table that cannot be taken: names file, rows and columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """Cells as they stand in the file, stripped of blanks.

    Attributes:
        name: The file's name.
        columns: Column names, in order.
        rows: Row number, as an editor counts lines (the header is row 1), and one cell per column.
        has_decimal_comma: Whether a comma may stand inside a number (tables with semicolons between cells).
        notices: What a person should know of the file.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    has_decimal_comma: bool = False
    notices: tuple[str, ...] = ()


def read_text_table(path: Path) -> TextTable:
    """Reads a table with a header row; the delimiter is told from that row, not from the file's name.

    A byte order mark and any line ends are taken. Empty lines are skipped.

    Raises:
        TableError: no such file, not UTF-8 text, no rows, columns named twice, rows of another length than the header.
    """
    text = _read_text(path)
    header_line = text.lstrip("\r\n").splitlines()[0]
    delimiter = _find_delimiter(header_line)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, tuple[str, ...]]] = []
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((start, tuple(cell.strip() for cell in cells)))
            start = reader.line_num + 1
    except csv.Error as error:
        raise TableError(
            f"{path.name}: row {start} cannot be taken apart",
            given=str(error),
            fix="look for a stray quote in that row",
        ) from error
    _, columns = lines[0]
    _check_shape(path.name, columns, lines[1:])
    return TextTable(
        name=path.name,
        columns=columns,
        rows=tuple(lines[1:]),
        has_decimal_comma=delimiter == ";",
        notices=_find_notices(path, delimiter),
    )


def raise_faults(name: str, faults: list[str]) -> None:
    """One error for all that is wrong with a table; the first few faults are told in full.

    Raises:
        TableError: `faults` is not empty.
    """
    if not faults:
        return
    shown = "; ".join(faults[:_MAX_LISTED])
    more = f"; and {len(faults) - _MAX_LISTED} more" if len(faults) > _MAX_LISTED else ""
    raise TableError(
        f"{name}: {len(faults)} {'fault' if len(faults) == 1 else 'faults'} in the table",
        given=shown + more,
        fix="correct these cells (rows are counted with the header as row 1); write n/a where a value is not known",
    )


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise TableError(f"{path.name}: there is no such table", fix="check the path")
    if path.stat().st_size > _MAX_BYTES:
        raise TableError(f"{path.name}: the table is too large", expected=f"at most {_MAX_BYTES} bytes")
    content = path.read_bytes()
    if content.startswith(b"PK\x03\x04"):
        raise TableError(
            f"{path.name}: this is a spreadsheet, not text", fix="save it as CSV (UTF-8) and give that file"
        )
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise TableError(f"{path.name}: the table is not UTF-8 text", fix="save it as CSV or TSV with encoding UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"{path.name}: row {row} is not UTF-8 text",
            given=f"byte {content[error.start]:#04x}",
            fix="save the table again with encoding UTF-8",
        ) from error
    if not text.strip():
        raise TableError(f"{path.name}: the table is empty", expected="a header row and one row per person")
    return text


def _find_delimiter(header_line: str) -> str:
    return max(_DELIMITERS, key=header_line.count)


def _find_notices(path: Path, delimiter: str) -> tuple[str, ...]:
    expected = "\t" if path.suffix.lower() == ".tsv" else ","
    if delimiter == expected:
        return ()
    return (f"{path.name}: cells are set apart by {_DELIMITERS[delimiter]}, unlike the file's name says",)


def _check_shape(name: str, columns: tuple[str, ...], rows: list[tuple[int, tuple[str, ...]]]) -> None:
    lowered = [column.lower() for column in columns]
    twice = sorted({column for column in lowered if lowered.count(column) > 1})
    if twice:
        raise TableError(
            f"{name}: row 1 names a column twice", given=", ".join(map(repr, twice)), fix="rename one of them"
        )
    if not rows:
        raise TableError(f"{name}: the table has a header but no rows", expected="one row per person")
    faults = [
        f"row {number}: {len(cells)} cells under {len(columns)} columns"
        for number, cells in rows
        if len(cells) != len(columns)
    ]
    raise_faults(name, faults)

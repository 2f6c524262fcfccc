"""The cells of one row of a table of people, typed; what is wrong or missing is noted by row and column."""

from __future__ import annotations

import math
import re
from typing import Final, Literal

from neuroray.storage.age_unit import AGE_COLUMNS, MONTH_COLUMNS, AgeUnit
from neuroray.storage.scan_names import name_stem, subject_of
from neuroray.storage.table_file import MISSING, TableError, TextTable

Sex = Literal["M", "F"]

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "subject": ("participant_id", "subject_id", "subject", "mrid", "id"),
    "file": ("niftifile", "nifti_file", "filename", "file_name", "file", "image_file", "scan_file"),
    "session": ("session_id", "session"),
    "age_years": (*AGE_COLUMNS, *MONTH_COLUMNS),
    "sex": ("sex", "gender"),
    "diagnosis": ("diagnosis", "dx", "group"),
    "cognition": ("cognition", "cognition_score"),
    "family_id": ("family_id", "family"),
    "site": ("site", "site_id"),
}
_SEXES: Final[dict[str, Sex]] = {"m": "M", "male": "M", "f": "F", "female": "F"}
_OTHER_SEXES = frozenset({"o", "other", "unknown", "u"})
_OLDEST_YEARS = 120.0
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_UNSAFE_CHARACTER = re.compile(r"[^A-Za-z0-9_.-]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_AN_AGE = "outside 0 to 120 years: are these months, days, or a code for missing?"


def check_subject_id(text: str) -> str:
    """The id without BIDS's `sub-`, when it is safe as part of a path and of an object's name in a bucket.

    Raises:
        TableError: it is empty, longer than 128, or holds anything but letters, digits, `_`, `-` and single `.`.
    """
    label = text.removeprefix("sub-")
    if _SAFE_ID.fullmatch(label) and ".." not in label and not label.endswith("."):
        return label
    raise TableError(
        "an id cannot be part of a path",
        given=_describe_unsafe(label),
        expected="up to 128 letters, digits, '_', '-' and single '.', the first a letter or digit",
        fix="give people plain ids",
    )


class RowReader:
    """Typed values of one row; what cannot be typed is noted in `faults`, what is missing in `notices`."""

    def __init__(
        self,
        table: TextTable,
        places: dict[str, int],
        faults: list[str],
        notices: list[str],
        age_unit: AgeUnit | None = None,
    ) -> None:
        self._table = table
        self._places = places
        self._faults = faults
        self._notices = notices
        self._age_unit = age_unit or AgeUnit()
        self._number = 0
        self._cells: tuple[str, ...] = ()

    def move_to(self, number: int, cells: tuple[str, ...]) -> None:
        """The row that is read next."""
        self._number, self._cells = number, cells

    def text(self, key: str) -> str | None:
        """The cell, or None where there is no such column or the value is missing."""
        place = self._places.get(key)
        if place is None or self._cells[place].lower() in MISSING:
            return None
        return self._cells[place]

    def subject(self) -> str:
        """A safe id; "" where there is none (a fault)."""
        cell = self.text("subject")
        if cell is None:
            self._fault("subject", "no id")
            return ""
        try:
            return check_subject_id(cell)
        except TableError as error:
            self._fault("subject", f"an id that cannot be part of a path: {error.given}")
            return ""

    def file(self) -> str | None:
        """The scan's file by its name, without folders and without the ending of a volume."""
        cell = self.text("file")
        return None if cell is None else name_stem(cell)

    def subject_of_file(self) -> str:
        """An id from the file's name, for tables that list files alone; "" where there is none (a fault)."""
        stem = self.file()
        if stem is None:
            self._fault("file", "no file")
            return ""
        return subject_of(stem)

    def session(self) -> str | None:
        """A safe visit label."""
        cell = self.text("session")
        if cell is None:
            return None
        try:
            return check_subject_id(cell.removeprefix("ses-"))
        except TableError as error:
            self._fault("session", f"a label that cannot be part of a path: {error.given}")
            return None

    def number(self, key: str) -> float | None:
        """A finite number; one decimal comma is taken where the table has such."""
        cell = self.text(key)
        if cell is None:
            return None
        plain = cell.replace(",", ".", 1) if self._table.has_decimal_comma else cell
        if _NUMBER.fullmatch(plain) and math.isfinite(float(plain)):
            return float(plain)
        hint = " (a decimal comma?)" if "," in cell else ""
        self._fault(key, f"{cell[:20]!r} is not a number{hint}")
        return None

    def age_years(self) -> float | None:
        """An age that a person can have."""
        cell = self.text("age_years")
        if cell is None:
            if "age_years" in self._places:
                self._notice("age_years", f"no age ({self._raw('age_years') or 'empty'})")
            return None
        if re.fullmatch(r"\d+\+", cell):
            self._notice("age_years", f"{cell} was read as {cell[:-1]}")
            return float(cell[:-1]) / self._age_unit.per_year
        age = self.number("age_years")
        if age is None:
            return None
        years = age / self._age_unit.per_year
        if not 0 <= years <= _OLDEST_YEARS:
            unit = "" if self._age_unit.per_year == 1 else f" {self._age_unit.name}"
            self._fault("age_years", f"an age of {age:g}{unit}, {_NOT_AN_AGE}")
            return None
        return years

    def sex(self) -> Sex | None:
        """M or F."""
        cell = self.text("sex")
        if cell is None:
            if "sex" in self._places:
                self._notice("sex", f"no sex ({self._raw('sex') or 'empty'})")
            return None
        if cell.lower() in _OTHER_SEXES:
            self._notice("sex", f"{cell!r} was taken as not known")
            return None
        if cell.lower() not in _SEXES:
            self._fault("sex", f"{cell[:20]!r} is neither M, male, F, female, other nor n/a")
            return None
        return _SEXES[cell.lower()]

    def extra(self) -> dict[str, str]:
        """Every column without a meaning of its own, where it is not missing."""
        used = set(self._places.values())
        pairs = enumerate(zip(self._table.columns, self._cells, strict=True))
        return {column: cell for place, (column, cell) in pairs if place not in used and cell.lower() not in MISSING}

    def _raw(self, key: str) -> str:
        return self._cells[self._places[key]]

    def _where(self, key: str) -> str:
        return f"row {self._number}, column {self._table.columns[self._places[key]]}"

    def _fault(self, key: str, problem: str) -> None:
        self._faults.append(f"{self._where(key)}: {problem}")

    def _notice(self, key: str, text: str) -> None:
        self._notices.append(f"{self._table.name}: {self._where(key)}: {text}")


def _describe_unsafe(label: str) -> str:
    """What is wrong with an id, without repeating it: it may be a person's name."""
    if not label:
        return "an empty id"
    unsafe = sorted(set(_UNSAFE_CHARACTER.findall(label)))
    if unsafe:
        return f"the {'character' if len(unsafe) == 1 else 'characters'} {' '.join(map(repr, unsafe[:5]))}"
    if ".." in label or label[0] in ".-_" or label.endswith("."):
        return "dots, dashes or underscores where they do not belong"
    return f"{len(label)} characters"

"""In which unit a table's ages are: by the column's name, or by what the JSON file beside the table says of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from neuroray.storage.table_file import TableError

AGE_COLUMNS: Final = ("age_years", "age", "age_at_scan")
MONTH_COLUMNS: Final = ("age_months", "age_in_months", "age_mo")
"""Taken where a table has none of the former."""

_PER_YEAR: Final = {
    "years": 1.0,
    "year": 1.0,
    "yrs": 1.0,
    "yr": 1.0,
    "y": 1.0,
    "months": 12.0,
    "month": 12.0,
    "mo": 12.0,
    "weeks": 52.1775,
    "week": 52.1775,
    "days": 365.2425,
    "day": 365.2425,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeUnit:
    """A unit of age.

    Attributes:
        name: In words.
        per_year: How many make a year.
        notice: What a person should know of it; None for years.
    """

    name: str = "years"
    per_year: float = 1.0
    notice: str | None = None


def find_age_unit(path: Path, column: str) -> AgeUnit:
    """The unit of a column of ages.

    Args:
        path: The table; BIDS describes its columns in a JSON file of the same name (`{"age": {"Units": "months"}}`).
        column: Its name in the table.

    Raises:
        TableError: the JSON file cannot be read, or names a unit that ages do not have.
    """
    if column.lower() in MONTH_COLUMNS:
        return _name_unit("months", f"{path.name}: the column {column}")
    described = path.with_suffix(".json")
    if not described.is_file():
        return AgeUnit()
    try:
        columns = json.loads(described.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise TableError(f"{described.name} cannot be read", given=str(error)[:120], expected="JSON") from error
    about = columns.get(column, {}) if isinstance(columns, dict) else {}
    unit = str(about.get("Units") or "").strip().lower() if isinstance(about, dict) else ""
    if not unit:
        return AgeUnit()
    if unit not in _PER_YEAR:
        raise TableError(
            f"{described.name} gives ages a unit that they do not have",
            given=unit[:40],
            expected=", ".join(name for name in _PER_YEAR if name.endswith("s")),
            fix=f"correct Units of {column} there",
        )
    return _name_unit(unit, f"{described.name}")


def _name_unit(unit: str, told_by: str) -> AgeUnit:
    per_year = _PER_YEAR[unit]
    if per_year == 1.0:
        return AgeUnit()
    return AgeUnit(
        name=unit, per_year=per_year, notice=f"{told_by}: ages are in {unit}; they were divided by {per_year:g}"
    )

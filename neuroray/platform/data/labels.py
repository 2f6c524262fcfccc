"""What a record says of its person under a name: as a class, or as a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from neuroray.errors import NeurorayError

_OTHER_NAMES = {"age": "age_years"}


class LabelError(NeurorayError, ValueError):
    """A label that is not of the kind that was asked for."""


class Labelled(Protocol):
    """Labels are fields (`sex`, `age_years`), or stand among the further columns of the table of participants."""

    @property
    def extra(self) -> Mapping[str, str]:
        """Those columns."""
        ...


def read_text(record: Labelled, name: str) -> str | None:
    """The label as it stands, as text; None where it is not known."""
    value = _find(record, name)
    return None if value is None or value == "" else str(value)


def read_class(record: Labelled, name: str) -> str | None:
    """The label as the name of a class; None where it is not known.

    Raises:
        LabelError: it is a measure with decimals.
    """
    value = _find(record, name)
    if isinstance(value, float) and not value.is_integer():
        raise LabelError(
            f"{name} is a measure, not a class",
            given=value,
            fix="take a label with few values; a split cuts a measure into classes with num_bins",
        )
    return read_text(record, name)


def read_number(record: Labelled, name: str) -> float | None:
    """The label as a number; None where it is not known, or not finite.

    Raises:
        LabelError: it is no number.
    """
    value = _find(record, name)
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except ValueError as error:
        raise LabelError(f"{name} is a class, not a measure", given=value, expected="numbers") from error
    return number if math.isfinite(number) else None


def parse_condition(text: str) -> tuple[str, str]:
    """Column and value of a condition such as `diagnosis=control`.

    Raises:
        LabelError: it is none.
    """
    column, mark, wanted = text.partition("=")
    if not (column and mark and wanted):
        raise LabelError("whom to learn from is no condition", given=text, expected="COLUMN=VALUE")
    return column, wanted


def _find(record: Labelled, name: str) -> Any:
    if hasattr(record, name):
        return getattr(record, name)
    other = _OTHER_NAMES.get(name)
    # A column of the table that is called so comes first.
    return getattr(record, other, None) if other and name not in record.extra else record.extra.get(name)

"""What a model said of people's ages, joined with what the store knows of them: the table that all else rests on."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from neuroray.platform.brain_age_gap.errors import GapError
from neuroray.platform.data.labels import read_text
from neuroray.storage.records import ScanRecord

# Predictions are written with nine digits, and catalogues hold ages as 64-bit numbers.
_SAME_AGE_YEARS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeAnswer:
    """One scan: the age of the person, and the age that a model saw.

    Attributes:
        fold: Which model said it.
        scan_id: Of the store.
        subject: Whose scan it is.
        session: The visit, where there are several.
        family_id: Whom the person is related to.
        age_years: At the scan.
        predicted_years: What the model said.
        group: Of the diagnosis column; None where it is not known.
    """

    fold: int
    scan_id: str
    subject: str
    session: str | None = None
    family_id: str | None = None
    age_years: float
    predicted_years: float
    sex: str | None = None
    site: str | None = None
    group: str | None = None

    @property
    def kin(self) -> str:
        """The family or the person: what is independent of all others."""
        return f"family:{self.family_id}" if self.family_id else f"subject:{self.subject}"


def read_age_answers(
    path: Path,
    records: Mapping[str, ScanRecord],
    *,
    group_column: str = "diagnosis",
    predictor: str | None = None,
) -> list[AgeAnswer]:
    """Reads the predictions of `neuroray evaluate`, or of `neuroray baselines`, and joins them with a store's rows.

    Args:
        path: A table with the columns `fold`, `scan_id` and `predicted`, in years.
        records: The store's scans.
        group_column: Which column of the store says who is a control.
        predictor: Which one, of a table with a column `predictor`.

    Raises:
        GapError: no such table, columns or predictor, a scan that the store does not know or whose age it does not, or
            ages that were not those of the store when the model was judged (months, or shuffled labels).
    """
    rows = _read_rows(path, predictor)
    unknown = sum(row["scan_id"] not in records for row in rows)
    if unknown:
        raise GapError(
            f"{unknown} scans of {path} are not in the store",
            fix="name the store that the model was judged on: --store",
        )
    ageless = sum(records[row["scan_id"]].age_years is None for row in rows)
    if ageless:
        raise GapError(f"the store does not know the age at {ageless} of the scans of {path}", fix="ingest their ages")
    answers = [_join(row, records[row["scan_id"]], group_column, path) for row in rows]
    _require_same_ages(rows, answers, path)
    return sorted(answers, key=lambda answer: (answer.fold, answer.scan_id))


def ages_of(answers: Sequence[AgeAnswer]) -> Float[np.ndarray, " row"]:
    """True ages in years."""
    return np.array([answer.age_years for answer in answers], dtype=np.float64)


def predictions_of(answers: Sequence[AgeAnswer]) -> Float[np.ndarray, " row"]:
    """Predicted ages in years."""
    return np.array([answer.predicted_years for answer in answers], dtype=np.float64)


def first_visits(answers: Sequence[AgeAnswer]) -> list[AgeAnswer]:
    """One row a person: the scan at the lowest age, the first by id among several of that day."""
    first: dict[str, AgeAnswer] = {}
    for answer in sorted(answers, key=lambda answer: (answer.age_years, answer.scan_id, answer.fold)):
        first.setdefault(answer.subject, answer)
    return sorted(first.values(), key=lambda answer: answer.scan_id)


def _read_rows(path: Path, predictor: str | None) -> list[dict[str, str]]:
    if not path.is_file():
        raise GapError("there are no predictions", given=path, fix="neuroray evaluate RUN")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    missing = sorted({"fold", "scan_id", "predicted"} - set(columns))
    if missing:
        raise GapError(f"{path} does not tell ages", given=f"no column {', '.join(missing)}")
    if "predictor" in columns:
        names = sorted({row["predictor"] for row in rows})
        if predictor not in names:
            raise GapError(
                f"{path} holds what several predictors said",
                given=predictor or "none of them named",
                expected=f"one of {', '.join(names)}",
                fix="--predictor NAME",
            )
        rows = [row for row in rows if row["predictor"] == predictor]
    elif predictor is not None:
        raise GapError(f"{path} holds what one model said, and has no predictors to choose among", given=predictor)
    if not rows:
        raise GapError(f"{path} is empty")
    return rows


def _join(row: Mapping[str, str], record: ScanRecord, group_column: str, path: Path) -> AgeAnswer:
    assert record.age_years is not None
    try:
        fold, predicted = int(row["fold"]), float(row["predicted"])
    except ValueError as error:
        raise GapError(f"{path} holds what is no number", given=str(error)) from error
    if not np.isfinite(predicted):
        raise GapError(f"{path} has an age that is no number", given=predicted, fix="the model has diverged")
    return AgeAnswer(
        fold=fold,
        scan_id=record.scan_id,
        subject=record.subject,
        session=record.session,
        family_id=record.family_id,
        age_years=record.age_years,
        predicted_years=predicted,
        sex=record.sex,
        site=record.site,
        group=read_text(record, group_column),
    )


def _require_same_ages(rows: Sequence[Mapping[str, str]], answers: Sequence[AgeAnswer], path: Path) -> None:
    judged = [row.get("value") or row.get("truth") for row in rows]
    off = sum(
        text is not None and abs(float(text) - answer.age_years) > _SAME_AGE_YEARS
        for text, answer in zip(judged, answers, strict=True)
    )
    if off:
        raise GapError(
            f"{off} of {len(rows)} scans of {path} were judged by other ages than the store's",
            expected="the target age, in years",
            fix="a run that predicts age, without shuffled labels",
        )

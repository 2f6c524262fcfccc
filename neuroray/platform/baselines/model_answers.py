"""What a model said of the held-out scans, as `neuroray evaluate` wrote it."""

from __future__ import annotations

import csv
from pathlib import Path

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.question import Question


def find_predictions(run: Path | None, named: str | None) -> Path | None:
    """The named file, else that of a run's evaluation where there is one.

    Of a run with several targets that file answers for the first; `read_model_answers` refuses it for another.

    Raises:
        BaselineError: the named file is not there.
    """
    if named is not None:
        if not Path(named).is_file():
            raise BaselineError("there are no predictions", given=named, fix="neuroray evaluate RUN")
        return Path(named)
    beside = run / "evaluate" / "predictions.csv" if run else None
    return beside if beside and beside.is_file() else None


def read_model_answers(path: Path, question: Question) -> dict[tuple[int, str], tuple[float, ...]]:
    """Probabilities of the question's classes in their order, or the measure, by fold and scan.

    Raises:
        BaselineError: columns that are missing, what is no number, or truths that are not the question's: predictions
            of another target, or labels that have changed since.
    """
    truth = "label" if question.classes else "value"
    columns = [f"probability_{name}" for name in question.classes] or ["predicted"]
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = sorted({"fold", "scan_id", truth, *columns} - set(reader.fieldnames or ()))
        if missing:
            raise BaselineError(
                f"{path} does not answer for {question.target}", given=f"no column {', '.join(missing)}"
            )
        rows = list(reader)
    try:
        for row in rows:
            _check_truth(path, row[truth], row["scan_id"], question)
        return {(int(row["fold"]), row["scan_id"]): tuple(float(row[column]) for column in columns) for row in rows}
    except ValueError as error:
        raise BaselineError(f"{path} holds what is no number", given=str(error)) from error


def _check_truth(path: Path, said: str, scan_id: str, question: Question) -> None:
    asked = question.values.get(scan_id)
    if asked is None:
        return
    expected = question.classes[int(asked)] if question.classes else asked
    # The file keeps nine digits.
    same = said == expected if question.classes else abs(float(said) - asked) <= 1e-6 * max(1.0, abs(asked))
    if not same:
        raise BaselineError(
            f"{path} holds other truths than those of {question.target}",
            given=said,
            expected=expected,
            fix=f"neuroray evaluate RUN --target {question.target} --out OUT, then --predictions OUT/predictions.csv",
        )

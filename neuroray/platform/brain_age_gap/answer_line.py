"""The line that corrects the gap of new people: of controls whom the models had not seen, kept beside the run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from neuroray.platform.brain_age_gap.correction import GapCorrection, fit_correction
from neuroray.platform.brain_age_gap.errors import GapError
from neuroray.platform.brain_age_gap.evidence import GapStudy

LINE_FILE = "age_correction.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLine:
    """A correction with what it holds for.

    Attributes:
        correction: The line.
        fitted_on: `validation` (people whom the weights were selected on, not fitted to), `table` (another table of
            predictions), or `held_out` (the test people of all folds, each by the model that had not seen them).
        controls: The groups it was fitted on; empty: everybody.
        is_useless: Whether the uncorrected model is not known to beat the mean age: then the line says next to nothing.
        weights_sha256: Digests of the models whose predictions it was fitted to, sorted: it corrects no other.
    """

    correction: GapCorrection
    fitted_on: str
    controls: tuple[str, ...]
    is_useless: bool
    weights_sha256: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, for `age_correction.json`."""
        return {"format": _FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` described.

        Raises:
            GapError: another format, or fields that are missing.
        """
        try:
            if data["format"] != _FORMAT:
                raise GapError(f"{LINE_FILE} has another format", given=data["format"], expected=_FORMAT)
            found = dict(data["correction"])
            return cls(
                correction=GapCorrection(**{**found, "ages_years": tuple(found["ages_years"])}),
                fitted_on=data["fitted_on"],
                controls=tuple(data["controls"]),
                is_useless=bool(data["is_useless"]),
                weights_sha256=tuple(data["weights_sha256"]),
            )
        except (KeyError, TypeError) as fault:
            raise GapError(f"{LINE_FILE} is not whole", given=f"{type(fault).__name__} {fault}") from None


def draw_answer_line(study: GapStudy, weights_sha256: Collection[str]) -> AnswerLine:
    """The line for people whom nobody has judged yet.

    With one fold it is the study's own. With several, that of all held-out controls together: none of them was seen by
    the model that judged them, and a new person is none of them.

    Raises:
        GapError: too few controls.
    """
    if len(study.corrections) == 1:
        (correction,) = study.corrections.values()
        fitted_on = study.fit_on
    else:
        controls = [row for row in study.answers if not study.controls or row.group in study.controls]
        correction, fitted_on = fit_correction(controls, []), "held_out"
    return AnswerLine(
        correction=correction,
        fitted_on=fitted_on,
        controls=study.controls,
        is_useless=study.is_useless,
        weights_sha256=tuple(sorted(set(weights_sha256))),
    )


def read_weights(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Digests of the models whose predictions an evaluation's `report.json` tells of; empty where it names none."""
    folds = report.get("folds", [])
    # Those of an ensemble stand in one text.
    return tuple(sorted({digest for fold in folds for digest in str(fold.get("weights_sha256", "")).split()}))


def parse_answer_line(content: bytes, weights_sha256: Sequence[str]) -> AnswerLine:
    """Reads a line for these models.

    Raises:
        GapError: a file that is not whole, or the line of other models.
    """
    try:
        line = AnswerLine.from_json(json.loads(content))
    except ValueError as fault:
        if isinstance(fault, GapError):
            raise
        raise GapError(f"{LINE_FILE} is no JSON", given=str(fault)) from None
    if line.weights_sha256 != tuple(sorted(set(weights_sha256))):
        raise GapError(
            "the line of controls was fitted to what other weights said",
            fix="neuroray evaluate RUN, then neuroray gap RUN",
        )
    return line

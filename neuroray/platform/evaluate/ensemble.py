"""Several trainings of one recipe as one model: its members, what they say together, and how far that is off."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from neuroray.platform.evaluate.conformal import LEVEL, PredictionInterval, fewest_people
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import JudgedNumber
from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.storage.locations import Location

CALIBRATION_FILE = "ensemble.json"
"""In a run folder, beside its seeds and folds."""

NOT_CALIBRATED = (
    "no interval: nobody has measured how far off the mean of these models is in validation people; "
    "`neuroray evaluate RUN` does"
)

_FORMAT = 1
_MEMBER = re.compile(r"(seed|fold)-(\d+)/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One training of an ensemble.

    Attributes:
        path: Of its folder, below the run's: `fold-1`, or `seed-0/fold-1`.
        fold: Which people it was held out from; members of one fold differ in their seed alone.
    """

    path: str
    fold: int


def find_members(run: Location) -> tuple[Member, ...]:
    """Seeds and folds below a run's folder, seeds first, by number; none where the run is one training."""
    seeds = _number_folders(run, "seed")
    if not seeds:
        return tuple(Member(path=path, fold=fold) for fold, path in _number_folders(run, "fold"))
    found = []
    for _, seed in seeds:
        folds = _number_folders(run.child(seed), "fold") or [(0, "")]
        found += [Member(path=f"{seed}/{path}".rstrip("/"), fold=fold) for fold, path in folds]
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleCalibration:
    """How far the members held out from a person were off together, in validation people.

    Attributes:
        target: The measure.
        level: Of the intervals made of it.
        errors: By fold: absolute errors of the mean over that fold's members, one scan a person, one person a family.
        weights_sha256: Digests of all members, sorted: it holds for these and no other.
    """

    target: str
    level: float
    errors: Mapping[int, tuple[float, ...]]
    weights_sha256: tuple[str, ...]

    @property
    def num_people(self) -> int:
        """Whose errors they are."""
        return sum(map(len, self.errors.values()))

    @property
    def reason(self) -> str | None:
        """Why there is no interval; None where there is one."""
        needed = fewest_people(self.level)
        if self.num_people >= needed:
            return None
        return (
            f"no interval: it would rest on the errors in {self.num_people} unrelated validation people, "
            f"and {self.level:.0%} takes {needed} or more"
        )

    def around(self, said: Mapping[int, float]) -> PredictionInterval | None:
        """The interval of an answer, by what the members of each fold say on average; None where there is none.

        With one fold it is split conformal prediction around the ensemble. With several it is CV+ (Barber et al. 2021):
        each person's error goes around what the fold that had not seen that person says, and of all these ends those at
        the wanted ranks are taken. It holds the truth of a new person like these with a probability near the level, and
        of at least `2 level - 1` (less a term that falls with the number of people) whatever the model.

        Raises:
            EvaluationError: a fold without an answer.
        """
        if self.reason is not None:
            return None
        missing = sorted(self.errors.keys() - said.keys())
        if missing:
            raise EvaluationError("a fold of the ensemble has no answer", given=f"folds {missing}")
        lows = np.sort([said[fold] - error for fold, errors in self.errors.items() for error in errors])
        highs = np.sort([said[fold] + error for fold, errors in self.errors.items() for error in errors])
        # 20 * 0.1 must not become 1.9999999999999996 and so 1.
        rank = int(np.floor((self.num_people + 1) * (1 - self.level) + 1e-9))
        low, high = float(lows[rank - 1]), float(highs[-rank])
        return PredictionInterval(low=low, high=high, level=self.level, num_people=self.num_people)

    def to_json(self) -> dict[str, Any]:
        """For `ensemble.json`; nobody's name."""
        method = "split conformal" if len(self.errors) == 1 else "CV+"
        return {
            "format": _FORMAT,
            "method": f"{method}, absolute errors of validation people, each by the members held out from them",
            "target": self.target,
            "level": self.level,
            "errors": {str(fold): list(errors) for fold, errors in sorted(self.errors.items())},
            "weights_sha256": list(self.weights_sha256),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` described.

        Raises:
            EvaluationError: another format, or fields that are missing.
        """
        try:
            if data["format"] != _FORMAT:
                raise EvaluationError(f"{CALIBRATION_FILE} has another format", given=data["format"], expected=_FORMAT)
            return cls(
                target=data["target"],
                level=float(data["level"]),
                errors={int(fold): tuple(map(float, errors)) for fold, errors in data["errors"].items()},
                weights_sha256=tuple(data["weights_sha256"]),
            )
        except (KeyError, TypeError, AttributeError) as fault:
            raise EvaluationError(f"{CALIBRATION_FILE} is not whole", given=f"{type(fault).__name__} {fault}") from None


def calibrate_ensemble(
    rows: Sequence[JudgedNumber], *, target: str, weights_sha256: Sequence[str], level: float = LEVEL
) -> EnsembleCalibration:
    """From what each fold's members say, on average, of the people that their weights were selected on.

    Of the scans of one person, and of the people of one family, the first counts: errors must be independent.

    Raises:
        EvaluationError: errors that are no numbers.
    """
    kept: dict[str, JudgedNumber] = {}
    for row in rows:
        kept.setdefault(row.group, row)
    errors: dict[int, list[float]] = {}
    for row in kept.values():
        errors.setdefault(row.fold, []).append(abs(row.predicted - row.value))
    if not all(np.isfinite(some).all() for some in errors.values()):
        raise EvaluationError("errors that are no numbers")
    return EnsembleCalibration(
        target=target,
        level=level,
        errors={fold: tuple(sorted(some)) for fold, some in sorted(errors.items())},
        weights_sha256=tuple(sorted(set(weights_sha256))),
    )


def read_ensemble_calibration(
    run: Location, weights_sha256: Sequence[str]
) -> tuple[EnsembleCalibration | None, str | None]:
    """What a run folder holds for these members, or why it holds nothing."""
    if not run.exists(CALIBRATION_FILE):
        return None, NOT_CALIBRATED
    found = EnsembleCalibration.from_json(json.loads(run.read_bytes(CALIBRATION_FILE)))
    if found.weights_sha256 != tuple(sorted(set(weights_sha256))):
        return None, f"{NOT_CALIBRATED} (it was measured of other weights)"
    return found, None


def combine_answers(
    answers: Sequence[Sequence[TargetAnswer]],
    folds: Sequence[int],
    calibration: EnsembleCalibration | None,
    no_calibration: str | None,
) -> tuple[TargetAnswer, ...]:
    """What the members say together: means, how far they differ, and intervals that hold for the mean.

    Args:
        answers: Of each member, target by target.
        folds: Of each member.
        calibration: Of the main measure; None where there is none.
        no_calibration: Why there is none.
    """
    return tuple(_combine(some, folds, calibration, no_calibration) for some in zip(*answers, strict=True))


def _combine(
    some: Sequence[TargetAnswer],
    folds: Sequence[int],
    calibration: EnsembleCalibration | None,
    no_calibration: str | None,
) -> TargetAnswer:
    first = dataclasses.replace(some[0], interval=None, no_interval=None, spread=_mean_spread(some))
    shared = {"num_models": len(some)}
    if first.value is None:
        mean = {name: float(np.mean([one.probabilities[name] for one in some])) for name in first.probabilities}
        likeliest = max(mean, key=lambda name: mean[name])
        spread = float(np.std([one.probabilities[likeliest] for one in some], ddof=1))
        return dataclasses.replace(first, probabilities=mean, model_spread=spread, **shared)
    values = [float("nan") if one.value is None else one.value for one in some]
    combined = dataclasses.replace(
        first,
        value=float(np.mean(values)),
        quantiles={level: float(np.mean([one.quantiles[level] for one in some])) for level in first.quantiles},
        model_spread=float(np.std(values, ddof=1)),
        **shared,
    )
    if calibration is None or calibration.target != first.name:
        reason = (
            no_calibration if calibration is None else f"no interval: {first.name} is not the ensemble's main target"
        )
        return dataclasses.replace(combined, no_interval=reason)
    said = {
        fold: float(np.mean([v for v, one in zip(values, folds, strict=True) if one == fold])) for fold in set(folds)
    }
    return dataclasses.replace(combined, interval=calibration.around(said), no_interval=calibration.reason)


def _mean_spread(some: Sequence[TargetAnswer]) -> float | None:
    """Over windows; of the members the mean."""
    found = [one.spread for one in some if one.spread is not None]
    return float(np.mean(found)) if found else None


def _number_folders(folder: Location, kind: str) -> list[tuple[int, str]]:
    matches = [_MEMBER.fullmatch(name) for name in folder.names()]
    return sorted((int(one[2]), f"{kind}-{one[2]}") for one in matches if one and one[1] == kind)

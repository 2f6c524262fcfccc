"""Several trainings of one recipe that differ in their seed: each judged, their spread, and their answers averaged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.evaluate.age_evidence import add_age_evidence
from neuroray.platform.evaluate.conformal import PredictionInterval, calibrate_errors
from neuroray.platform.evaluate.coverage import measure_coverage
from neuroray.platform.evaluate.evidence import Evaluation, Fold, Judged, average_by_person, draw_for, measure, stratify
from neuroray.platform.evaluate.findings import gather_warnings
from neuroray.platform.evaluate.metrics import EvaluationError, classification_metrics, regression_metrics
from neuroray.platform.evaluate.number_evidence import JudgedNumber, NumberEvaluation, weigh_judged
from neuroray.platform.evaluate.number_findings import gather_number_warnings
from neuroray.platform.evaluate.protocol import evaluate
from neuroray.platform.evaluate.run import read_folds
from neuroray.platform.evaluate.seed_spread import SeedSpread

_ENDING = "seed-"


def find_seeds(run: Path) -> list[Path]:
    """The folders of a run's seeds, by number; none where it has one training."""
    found = [path for path in run.glob(f"{_ENDING}*") if path.is_dir() and path.name.removeprefix(_ENDING).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_ENDING)))


def evaluate_seeds(run: Path, **settings: Any) -> Evaluation | NumberEvaluation:
    """Judges every seed on the test people that all share, and their ensemble: the mean of what they say of a scan.

    The metrics, intervals and figures are those of the ensemble; `seeds` holds each seed's and their spread.

    Args:
        run: The folder with `seed-*` in it, each a run or a run with folds.
        settings: As `evaluate` takes them.

    Raises:
        EvaluationError: fewer than two seeds, seeds that were judged on other people or labels, or what `evaluate`
            raises.
    """
    folders = find_seeds(run)
    if len(folders) < 2:
        raise EvaluationError("a spread over seeds takes two or more", given=", ".join(path.name for path in folders))
    found = [evaluate(folder, of_ensemble=True, **settings) for folder in folders]
    _require_same_people(found, folders)
    first = found[0]
    spread = SeedSpread(
        names=tuple(path.name.removeprefix(_ENDING) for path in folders),
        values={name: tuple(one.metrics[name].value for one in found) for name in first.metrics},
    )
    shuffled = any(fold.split.config.shuffle_labels_seed is not None for fold in read_folds(folders[0]))
    provenance = {**first.provenance, "run_name": run.resolve().name}
    draws = {"seed": first.seed, "num_resamples": len(first.resamples)}
    if isinstance(first, NumberEvaluation):
        numbers = _average_numbers(first, [one for one in found if isinstance(one, NumberEvaluation)], draws)
        numbers = dataclasses.replace(numbers, seeds=spread, provenance=provenance)
        return dataclasses.replace(numbers, warnings=gather_number_warnings(numbers, shuffled=shuffled))
    classes = _average_classes(first, [one for one in found if isinstance(one, Evaluation)], draws)
    classes = dataclasses.replace(classes, seeds=spread, provenance=provenance)
    return dataclasses.replace(classes, warnings=gather_warnings(classes, shuffled=shuffled))


def _require_same_people(found: Sequence[Evaluation | NumberEvaluation], folders: Sequence[Path]) -> None:
    told = [
        json.dumps([(row.fold, row.scan_id, row.label if isinstance(row, Judged) else row.value) for row in one.judged])
        for one in found
    ]
    for one, folder in zip(told[1:], folders[1:], strict=True):
        if one != told[0]:
            raise EvaluationError(
                f"{folder.name} was judged on other people or labels than {folders[0].name}",
                expected="seeds of one recipe on one split, as `neuroray train --seeds` makes them",
                fix="judge each by itself: neuroray evaluate RUN/seed-N",
            )


def _average_numbers(
    first: NumberEvaluation, found: Sequence[NumberEvaluation], draws: dict[str, int]
) -> NumberEvaluation:
    said = np.mean([one.predicted for one in found], axis=0)
    validation = _average_validation(found)
    bounds = _bound_by_fold(validation, len(found))
    judged = tuple(
        dataclasses.replace(row, predicted=float(value), spread=None, **bounds(row.fold, float(value)))
        for row, value in zip(first.judged, said, strict=True)
    )
    weighed = dict(weigh_judged(judged, **draws))
    averaged = dataclasses.replace(
        first,
        **weighed,
        folds=tuple(_refold(fold, judged, found) for fold in first.folds),
        coverage=measure_coverage(judged, weighed["resamples"]),
        validation=validation,
    )
    return averaged if first.age is None else add_age_evidence(averaged, first.age.trained_ages_years)


def _bound_by_fold(
    validation: Sequence[JudgedNumber], num_models: int
) -> Callable[[int, float], dict[str, PredictionInterval | str | None]]:
    """Intervals of the mean over seeds, by its own errors in the fold's validation people."""
    by_fold: dict[int, list[JudgedNumber]] = {}
    for row in validation:
        by_fold.setdefault(row.fold, []).append(row)
    calibrations = {
        fold: calibrate_errors([row.predicted - row.value for row in rows], [row.group for row in rows])
        for fold, rows in by_fold.items()
    }
    why = f"no interval: the mean of {num_models} models has no errors in validation people of its own"

    def bound(fold: int, value: float) -> dict[str, PredictionInterval | str | None]:
        if fold not in calibrations:
            return {"interval": None, "no_interval": why}
        return {"interval": calibrations[fold].around(value), "no_interval": calibrations[fold].reason}

    return bound


def _average_validation(found: Sequence[NumberEvaluation]) -> tuple[JudgedNumber, ...]:
    """Of the same people: seeds that were judged on one split share its validation side too."""
    said = np.mean([[row.predicted for row in one.validation] for one in found], axis=0)
    pairs = zip(found[0].validation, said, strict=True)
    return tuple(dataclasses.replace(row, predicted=float(value)) for row, value in pairs)


def _average_classes(first: Evaluation, found: Sequence[Evaluation], draws: dict[str, int]) -> Evaluation:
    said = np.mean([one.probabilities for one in found], axis=0)
    judged = tuple(
        dataclasses.replace(row, probabilities=tuple(values), slice_weights=(), position_mm=())
        for row, values in zip(first.judged, said.tolist(), strict=True)
    )
    people = average_by_person(judged)
    return dataclasses.replace(
        first,
        judged=judged,
        folds=tuple(_refold(fold, judged, found) for fold in first.folds),
        metrics=measure(judged, first.resamples),
        metrics_by_person=measure(people, draw_for(people, **draws)) if len(people) < len(judged) else {},
        strata=stratify(judged, len(first.classes), metric="auc", **draws),
        attention=None,
    )


def _refold(
    fold: Fold, judged: Sequence[Judged | JudgedNumber], found: Sequence[Evaluation | NumberEvaluation]
) -> Fold:
    """The fold with the ensemble's metrics and the weights of all of its models; how each learned is not drawn."""
    rows = [row for row in judged if row.fold == fold.index]
    classes = [row for row in rows if isinstance(row, Judged)]
    numbers = [row for row in rows if isinstance(row, JudgedNumber)]
    if classes:
        labels = np.array([row.label for row in classes])
        metrics = classification_metrics(labels, np.array([row.probabilities for row in classes]))
    else:
        values = np.array([row.value for row in numbers])
        metrics = regression_metrics(values, np.array([row.predicted for row in numbers]))
    facts = [other.facts for one in found for other in one.folds if other.index == fold.index]
    return dataclasses.replace(
        fold,
        curves={},
        metrics={name: float(value[0]) for name, value in metrics.items()},
        facts={
            **fold.facts,
            "weights_sha256": " ".join(str(each["weights_sha256"]) for each in facts),
            "recipe_seed": " ".join(str(each["recipe_seed"]) for each in facts),
        },
    )

"""The test people of a run whose model answers target by target, from windows of runs or from slices of volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.labels import read_class, read_number
from neuroray.platform.data.splits import SIDES
from neuroray.platform.data.targets import Target
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.evaluate.coverage import measure_coverage
from neuroray.platform.evaluate.evidence import (
    Evaluation,
    Fold,
    Judged,
    average_by_person,
    draw_for,
    measure,
    stratify,
)
from neuroray.platform.evaluate.loaded import load_target_model
from neuroray.platform.evaluate.metrics import EvaluationError, classification_metrics, regression_metrics
from neuroray.platform.evaluate.number_evidence import JudgedNumber, NumberEvaluation, weigh_judged
from neuroray.platform.evaluate.run import RunFold, read_curves
from neuroray.platform.evaluate.slice_measure import SliceMeasureModel, judge_measures
from neuroray.platform.evaluate.window_model import TargetAnswer, WindowModel
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

Track = Callable[[Sequence[str]], Iterable[str]]

TargetModel = SliceMeasureModel | WindowModel
"""What answers target by target."""


def judge_runs(
    model: WindowModel, store: ScanStore, scan_ids: Sequence[str], *, track: Track | None = None
) -> Iterator[tuple[str, tuple[TargetAnswer, ...]]]:
    """What the model says of each run, target by target, averaged over windows that leave no frame out.

    One window is in memory at a time.
    """
    with_brain = read_model_profile(model.card).name == "fmri_minimal"
    reader = WindowReader(store.uri, store.version, with_brain=with_brain)
    records = {record.scan_id: record for record in store.records()}
    for scan_id in track(scan_ids) if track else scan_ids:
        items = model.cover(scan_id, records[scan_id].shape[0])
        outputs = model.compute(to_torch(reader.read_batch([item])) for item in items)
        yield scan_id, model.read(outputs)


def evaluate_targets(
    runs: Sequence[RunFold],
    store: ScanStore,
    *,
    target: str | None,
    provenance: Mapping[str, Any],
    seed: int,
    num_resamples: int,
    device: str = "cpu",
    track: Track | None = None,
) -> Evaluation | NumberEvaluation:
    """Judges all folds of a run on one of its targets, the main one where none is named; the rest is left open.

    Test people without the label are not judged.

    Raises:
        EvaluationError: no such target, or nobody on the test side has the label.
    """
    records = {record.scan_id: record for record in store.records()}
    models, chosen = open_targets(runs, target, device=device)
    said = [
        _judge(fold, model, store, one, records, track) for fold, model, one in zip(runs, models, chosen, strict=True)
    ]
    shared = {
        "model_name": models[0].card["model_name"],
        "target": chosen[0].name,
        "modality": models[0].card["modality"],
        "seed": seed,
        "provenance": provenance,
    }
    if chosen[0].kind == "number":
        return _assemble_numbers(runs, chosen, said, records, shared, num_resamples=num_resamples)
    return _assemble_classes(runs, chosen[0], said, records, shared, num_resamples=num_resamples)


def open_targets(runs: Sequence[RunFold], target: str | None, *, device: str) -> tuple[list[TargetModel], list[Target]]:
    """The model of each fold, and in each the target of that name, the main one where none is named.

    Raises:
        EvaluationError: no such target, or models that do not answer target by target.
    """
    models = [load_target_model(fold.path / "model", device=device) for fold in runs]
    return models, [_choose_target(model, target) for model in models]


def answer_number(
    model: TargetModel, store: ScanStore, scan_ids: Sequence[str], target: Target, *, track: Track | None = None
) -> dict[str, float]:
    """What the model says of a measure in each scan; NaN where it says none."""
    index = [one.name for one in model.targets].index(target.name)
    said = {scan_id: answers[index].value for scan_id, answers in _answer_scans(model, store, scan_ids, track)}
    return {scan_id: float("nan") if value is None else value for scan_id, value in said.items()}


def answer_validation(
    runs: Sequence[RunFold], store: ScanStore, *, target: str | None, device: str, track: Track | None = None
) -> tuple[JudgedNumber, ...]:
    """What each fold's model says of a measure in the people that it was selected on; they are in no metric."""
    records = {record.scan_id: record for record in store.records()}
    models, targets = open_targets(runs, target, device=device)
    found = []
    for fold, model, one in zip(runs, models, targets, strict=True):
        truth = {scan_id: _true_value(fold, model, one, records[scan_id]) for scan_id in fold.split.val}
        known = [scan_id for scan_id in fold.split.val if np.isfinite(truth[scan_id])]
        for scan_id, said in answer_number(model, store, known, one, track=track).items():
            person = _person(fold, records[scan_id])
            found.append(JudgedNumber(**person, value=truth[scan_id], predicted=said, guess=one.mean))
    return tuple(found)


_Said = list[tuple[ScanRecord, float, TargetAnswer]]
"""Of each test scan with the label: its row, the true class index or number, and the answer."""


def _choose_target(model: TargetModel, name: str | None) -> Target:
    targets = {target.name: target for target in model.targets}
    wanted = name or model.card["target"]
    if wanted not in targets:
        raise EvaluationError("the model has no such target", given=wanted, expected=f"one of {', '.join(targets)}")
    return targets[wanted]


def _judge(
    fold: RunFold,
    model: TargetModel,
    store: ScanStore,
    target: Target,
    records: Mapping[str, ScanRecord],
    track: Track | None,
) -> _Said:
    truth = {scan_id: _true_value(fold, model, target, records[scan_id]) for scan_id in fold.split.test}
    known = [scan_id for scan_id in fold.split.test if np.isfinite(truth[scan_id])]
    if not known:
        raise EvaluationError(f"nobody on the test side of {fold.path} has a {target.name}")
    index = [one.name for one in model.targets].index(target.name)
    return [
        (records[scan_id], truth[scan_id], answers[index])
        for scan_id, answers in _answer_scans(model, store, known, track)
    ]


def _answer_scans(
    model: TargetModel, store: ScanStore, scan_ids: Sequence[str], track: Track | None
) -> Iterator[tuple[str, tuple[TargetAnswer, ...]]]:
    if isinstance(model, SliceMeasureModel):
        return judge_measures(model, store, scan_ids, track=track)
    return judge_runs(model, store, scan_ids, track=track)


def _true_value(fold: RunFold, model: TargetModel, target: Target, record: ScanRecord) -> float:
    """Of the main target what the split dealt, which may be shuffled; of another what the catalogue says."""
    is_main = target.name == model.card["target"]
    if target.kind == "number":
        text = fold.split.labels.get(record.scan_id) if is_main else read_number(record, target.name)
        return float("nan") if text is None else float(text)
    name = fold.split.labels.get(record.scan_id) if is_main else read_class(record, target.name)
    if name is None:
        return float("nan")
    if name not in target.classes:
        raise EvaluationError(f"a test scan of {fold.path} has a class that the model does not know", given=name)
    return float(target.classes.index(name))


def _person(fold: RunFold, record: ScanRecord) -> dict[str, Any]:
    return {
        "fold": fold.index,
        "scan_id": record.scan_id,
        "subject": record.subject,
        "family_id": record.family_id,
        "age_years": record.age_years,
        "sex": record.sex,
        "site": record.site,
    }


def _assemble_classes(
    runs: Sequence[RunFold],
    target: Target,
    said: Sequence[_Said],
    records: Mapping[str, ScanRecord],
    shared: dict[str, Any],
    *,
    num_resamples: int,
) -> Evaluation:
    judged = [
        [
            Judged(
                **_person(fold, record),
                label=int(truth),
                probabilities=tuple(answer.probabilities[name] for name in target.classes),
                from_cache=False,
            )
            for record, truth, answer in rows
        ]
        for fold, rows in zip(runs, said, strict=True)
    ]
    pooled = tuple(row for rows in judged for row in rows)
    draws = {"seed": shared["seed"], "num_resamples": num_resamples}
    resamples, people = draw_for(pooled, **draws), average_by_person(pooled)
    return Evaluation(
        **shared,
        classes=target.classes,
        judged=pooled,
        folds=tuple(
            describe_fold(fold, target, records, _class_metrics(rows)) for fold, rows in zip(runs, judged, strict=True)
        ),
        metrics=measure(pooled, resamples),
        metrics_by_person=measure(people, draw_for(people, **draws)) if len(people) < len(pooled) else {},
        strata=stratify(pooled, len(target.classes), metric="auc", **draws),
        attention=None,
        resamples=resamples,
    )


def _assemble_numbers(
    runs: Sequence[RunFold],
    targets: Sequence[Target],
    said: Sequence[_Said],
    records: Mapping[str, ScanRecord],
    shared: dict[str, Any],
    *,
    num_resamples: int,
) -> NumberEvaluation:
    judged = [
        [
            JudgedNumber(
                **_person(fold, record),
                value=truth,
                predicted=float("nan") if answer.value is None else answer.value,
                spread=answer.spread,
                num_windows=answer.num_windows,
                interval=answer.interval,
                no_interval=answer.no_interval,
                guess=target.mean,
            )
            for record, truth, answer in rows
        ]
        for fold, target, rows in zip(runs, targets, said, strict=True)
    ]
    pooled = tuple(row for rows in judged for row in rows)
    weighed = weigh_judged(pooled, seed=shared["seed"], num_resamples=num_resamples)
    return NumberEvaluation(
        **shared | weighed,
        unit=targets[0].unit,
        folds=tuple(
            describe_fold(fold, targets[0], records, _number_metrics(rows))
            for fold, rows in zip(runs, judged, strict=True)
        ),
        coverage=measure_coverage(pooled, weighed["resamples"]),
    )


def _class_metrics(rows: Sequence[Judged]) -> dict[str, float]:
    labels, probabilities = np.array([row.label for row in rows]), np.array([row.probabilities for row in rows])
    return {name: float(values[0]) for name, values in classification_metrics(labels, probabilities).items()}


def _number_metrics(rows: Sequence[JudgedNumber]) -> dict[str, float]:
    values, predicted = np.array([row.value for row in rows]), np.array([row.predicted for row in rows])
    return {name: float(found[0]) for name, found in regression_metrics(values, predicted).items()}


def describe_fold(
    fold: RunFold, target: Target, records: Mapping[str, ScanRecord], metrics: Mapping[str, float]
) -> Fold:
    """Who was on which side, how it learned and how it did; people are counted by the records that are there."""
    profile, score = read_model_profile(fold.card), "r" if target.kind == "number" else "auc"
    return Fold(
        index=fold.index,
        counts=fold.split.counts(),
        num_subjects={
            side: len({records[scan_id].subject for scan_id in fold.split.side(side) if scan_id in records})
            for side in SIDES
        },
        curves=read_curves(fold, score=score if target.name == fold.card["target"] else f"{target.name}_{score}"),
        metrics=metrics,
        facts={
            "weights_sha256": fold.card["weights"]["sha256"],
            **{name: fold.card[name] for name in ("encoder_sha256", "feature_fingerprint") if name in fold.card},
            "profile": profile.name,
            "profile_sha256": profile.sha256,
            "split_sha256": fold.split_sha256,
            "recipe": fold.recipe.get("name"),
            "recipe_seed": fold.recipe.get("seed"),
        },
    )

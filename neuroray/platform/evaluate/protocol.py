"""evaluate: a run judged on people it has not seen, with intervals, and with a check that they really are unseen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroray.platform.data.splits import SIDES
from neuroray.platform.evaluate.age_evidence import add_age_evidence, is_age
from neuroray.platform.evaluate.evidence import (
    Evaluation,
    Fold,
    Judged,
    draw_for,
    measure,
    profile_attention,
    stratify,
)
from neuroray.platform.evaluate.external import evaluate_external, find_trained
from neuroray.platform.evaluate.findings import gather_warnings
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
from neuroray.platform.evaluate.loaded import load_slice_model
from neuroray.platform.evaluate.metrics import EvaluationError, classification_metrics
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.number_findings import gather_number_warnings
from neuroray.platform.evaluate.run import (
    RunFold,
    check_people,
    describe_origin,
    open_run_store,
    read_curves,
    read_folds,
)
from neuroray.platform.evaluate.slice_model import SliceModel, SliceView
from neuroray.platform.evaluate.window_protocol import answer_validation, evaluate_targets
from neuroray.platform.models.layers.slices import slice_positions_mm
from neuroray.storage.features import FeatureStore
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

Track = Callable[[Sequence[str]], Iterable[str]]
"""Shows progress over scan ids; `platform` itself shows nothing."""


def evaluate(
    run: Path,
    *,
    store: str | None = None,
    target: str | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    external: bool = False,
    of_ensemble: bool = False,
    device: str = "cpu",
    facts: Mapping[str, Any] | None = None,
    track: Track | None = None,
) -> Evaluation | NumberEvaluation:
    """Judges a run, or all its folds together, on the test people that its splits recorded.

    Scans are taken at the catalogue version that the run recorded, from cached features where they are there and from
    voxels where not. Nothing that is measured here can flow back into the run.

    Args:
        run: The run folder; with `fold-*` folders in it, their test people are pooled.
        store: Where the scans are; where the run found them when left out.
        target: Which of the model's targets; the main one when left out.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
        of_ensemble: The run is one seed of several: what it says of its validation people is wanted too.
        external: Judge everybody in the store, which is that of another cohort, by the models of all folds together.
        device: Where to compute.
        facts: What the report is to tell of its making: `versions`, `made_at`, `git_commit`, `commands`.
        track: Shows progress.

    Raises:
        EvaluationError: people or families on two sides, a run that is not finished, labels that are no classes.
        StoreError: scans or features that cannot be read.
    """
    runs = read_folds(run)
    if external:
        return _judge_external(
            run,
            runs,
            store,
            target=target,
            seed=seed,
            num_resamples=num_resamples,
            device=device,
            facts=facts,
            track=track,
        )
    opened = open_run_store(runs[0], store)
    records = {record.scan_id: record for record in opened.records()}
    for fold in runs:
        check_people(fold, records)
    shuffled = any(fold.split.config.shuffle_labels_seed is not None for fold in runs)
    provenance = describe_origin(run, runs, opened, facts or {})
    draws = {"seed": seed, "num_resamples": num_resamples}
    if "targets" in runs[0].card:
        found = evaluate_targets(
            runs, opened, target=target, provenance=provenance, **draws, device=device, track=track
        )
    else:
        _require_only_target(runs[0], target)
        judged = [_judge(fold, opened, records, device=device, track=track) for fold in runs]
        found = _assemble(runs, judged, records, provenance, **draws)
    if isinstance(found, NumberEvaluation):
        if is_age(found.target) or _is_calibrated(runs, found.target, of_ensemble=of_ensemble):
            said = answer_validation(runs, opened, target=target, device=device, track=track)
            found = dataclasses.replace(found, validation=said)
        return _complete(found, _trained_ages(runs, records), shuffled=shuffled)
    return dataclasses.replace(found, warnings=gather_warnings(found, shuffled=shuffled))


def _is_calibrated(runs: Sequence[RunFold], target: str, *, of_ensemble: bool) -> bool:
    """Whether intervals of several models together will rest on this target's errors in validation people."""
    return (of_ensemble or len(runs) > 1) and target == runs[0].card["target"]


def _judge_external(
    run: Path,
    runs: Sequence[RunFold],
    store: str | None,
    *,
    device: str,
    facts: Mapping[str, Any] | None,
    track: Track | None,
    **options: Any,
) -> NumberEvaluation:
    if store is None:
        raise EvaluationError("no other cohort is named", fix="--store OTHER --external")
    if "targets" not in runs[0].card:
        raise EvaluationError(
            "another cohort is judged for a measure", given=runs[0].card["target"], expected="age, say"
        )
    opened = ScanStore(store)
    opened = ScanStore(store, version=opened.version)
    provenance = describe_origin(run, runs, opened, facts or {}) | {"catalogue_version_recorded": False}
    found = evaluate_external(runs, opened, provenance=provenance, device=device, track=track, **options)
    return _complete(found, _trained_ages(runs, find_trained(runs) or {}), shuffled=False)


def _complete(found: NumberEvaluation, trained_ages: tuple[float, float] | None, *, shuffled: bool) -> NumberEvaluation:
    """With what is told of age where the measure is that, and the warnings."""
    if is_age(found.target):
        found = add_age_evidence(found, trained_ages)
    return dataclasses.replace(found, warnings=gather_number_warnings(found, shuffled=shuffled))


def _trained_ages(runs: Sequence[RunFold], records: Mapping[str, ScanRecord]) -> tuple[float, float] | None:
    trained = {scan_id for fold in runs for scan_id in fold.split.train} & records.keys()
    ages = [age for scan_id in trained if (age := records[scan_id].age_years) is not None]
    return (min(ages), max(ages)) if ages else None


def judge_scans(
    model: SliceModel, store: ScanStore, scan_ids: Sequence[str], *, track: Track | None = None
) -> Iterable[tuple[str, SliceView, np.ndarray, bool]]:
    """Slices of each scan and where they lie in mm, from cached features where they are there, else from voxels.

    Yields:
        Scan id, slices, position of each slice in world mm, and whether they were cached.
    """
    fingerprint = model.card.get("feature_fingerprint")
    cache = FeatureStore(store, fingerprint) if fingerprint else None
    missing = set(scan_ids if cache is None else cache.missing(scan_ids))
    for scan_id in track(scan_ids) if track else scan_ids:
        if cache is not None and scan_id not in missing:
            found = cache.read(scan_id)
            view = SliceView(
                features=torch.from_numpy(np.array(found.features)),
                mask=torch.from_numpy(np.array(found.mask)),
                slice_index=torch.from_numpy(np.array(found.slice_index)),
            )
            yield scan_id, view, np.asarray(found.position_mm), True
        else:
            scan = store.read(scan_id)
            view = model.encode(scan)
            index = view.slice_index.cpu().numpy()
            yield scan_id, view, slice_positions_mm(scan.grid_shape, scan.affine, model.slices, index), False


def choose_example(evaluation: Evaluation) -> Judged:
    """The held-out scan to show: of the last class, called right, with the median probability; else any like it."""
    wanted = len(evaluation.classes) - 1
    right = [row for row in evaluation.judged if int(np.argmax(row.probabilities)) == row.label]
    rows = [row for row in right if row.label == wanted] or right or list(evaluation.judged)
    rows.sort(key=lambda row: (row.probabilities[row.label], row.scan_id))
    return rows[len(rows) // 2]


@torch.no_grad()
def _judge(
    fold: RunFold, store: ScanStore, records: Mapping[str, ScanRecord], *, device: str, track: Track | None
) -> tuple[SliceModel, list[Judged]]:
    model = load_slice_model(fold.path / "model", device=device)
    found = []
    for scan_id, view, position_mm, cached in judge_scans(model, store, fold.split.test, track=track):
        answer, shown = model.answer(view), view.mask.cpu().numpy()
        record = records[scan_id]
        found.append(
            Judged(
                fold=fold.index,
                scan_id=scan_id,
                subject=record.subject,
                family_id=record.family_id,
                label=_class_index(fold, model.classes, scan_id),
                probabilities=tuple(answer.probabilities.tolist()),
                age_years=record.age_years,
                sex=record.sex,
                site=record.site,
                slice_weights=tuple(answer.slice_weights.cpu().double().numpy()[shown].tolist()),
                position_mm=tuple(position_mm[shown].tolist()),
                from_cache=cached,
            )
        )
    return model, found


def _class_index(fold: RunFold, classes: tuple[str, ...], scan_id: str) -> int:
    label = fold.split.labels[scan_id]
    if label not in classes:
        raise EvaluationError(f"the split of {fold.path} has a label that the model does not know", given=label)
    return classes.index(label)


def _require_only_target(fold: RunFold, target: str | None) -> None:
    if target not in (None, fold.card["target"]):
        raise EvaluationError("the model has no such target", given=target, expected=fold.card["target"])


def _assemble(
    runs: Sequence[RunFold],
    judged: Sequence[tuple[SliceModel, list[Judged]]],
    records: Mapping[str, ScanRecord],
    provenance: Mapping[str, Any],
    *,
    seed: int,
    num_resamples: int,
) -> Evaluation:
    pooled = tuple(row for _, rows in judged for row in rows)
    model = judged[0][0]
    resamples = draw_for(pooled, seed=seed, num_resamples=num_resamples)
    return Evaluation(
        model_name=model.card["model_name"],
        classes=model.classes,
        target=model.card["target"],
        modality=model.card["modality"],
        judged=pooled,
        folds=tuple(_describe_fold(fold, rows, records) for fold, (_, rows) in zip(runs, judged, strict=True)),
        metrics=measure(pooled, resamples),
        strata=stratify(pooled, len(model.classes), metric="auc", seed=seed, num_resamples=num_resamples),
        attention=profile_attention(pooled, model.slices.axis),
        resamples=resamples,
        seed=seed,
        provenance=provenance,
    )


def _describe_fold(fold: RunFold, rows: Sequence[Judged], records: Mapping[str, ScanRecord]) -> Fold:
    labels, probabilities = np.array([row.label for row in rows]), np.array([row.probabilities for row in rows])
    metrics = classification_metrics(labels, probabilities)
    return Fold(
        index=fold.index,
        counts=fold.split.counts(),
        num_subjects={side: len({records[scan_id].subject for scan_id in fold.split.side(side)}) for side in SIDES},
        curves=read_curves(fold),
        metrics={name: float(values[0]) for name, values in metrics.items()},
        facts={
            "weights_sha256": fold.card["weights"]["sha256"],
            "encoder_sha256": fold.card.get("encoder_sha256"),
            "feature_fingerprint": fold.card.get("feature_fingerprint"),
            "profile": read_model_profile(fold.card).name,
            "profile_sha256": read_model_profile(fold.card).sha256,
            "split_sha256": fold.split_sha256,
            "recipe": fold.recipe.get("name"),
            "recipe_seed": fold.recipe.get("seed"),
        },
    )

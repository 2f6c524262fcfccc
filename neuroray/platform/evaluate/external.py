"""Another cohort: a run judged on everybody in a store that it was not made on, all its folds' models together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from neuroray.platform.data.labels import read_number
from neuroray.platform.evaluate.evidence import Fold
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import JudgedNumber, NumberEvaluation, measure_numbers, weigh_judged
from neuroray.platform.evaluate.run import RunFold
from neuroray.platform.evaluate.window_protocol import answer_number, describe_fold, open_targets
from neuroray.storage.faults import StoreError
from neuroray.storage.profiles.agreement import require_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

Track = Callable[[Sequence[str]], Iterable[str]]


def evaluate_external(
    runs: Sequence[RunFold],
    store: ScanStore,
    *,
    target: str | None,
    provenance: Mapping[str, Any],
    seed: int,
    num_resamples: int,
    device: str = "cpu",
    track: Track | None = None,
) -> NumberEvaluation:
    """Judges the mean of what the models of all folds say of each scan of the store that has the label.

    Args:
        runs: The folds.
        store: The other cohort.
        target: Which of the model's targets; a measure.
        provenance: For the report.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
        device: Where to compute.
        track: Shows progress.

    Raises:
        EvaluationError: a target of classes, nobody with the label, or scans that the run was trained on.
        ProfileError: scans that were prepared otherwise than those of the training.
    """
    models, targets = open_targets(runs, target, device=device)
    if targets[0].kind != "number":
        raise EvaluationError("another cohort is judged for a measure", given=targets[0].name, expected="age, say")
    name, modality = targets[0].name, runs[0].card["modality"]
    records = {record.scan_id: record for record in store.records() if record.modality == modality}
    truth = {scan_id: read_number(record, name) for scan_id, record in sorted(records.items())}
    known = [scan_id for scan_id, value in truth.items() if value is not None]
    if not known:
        raise EvaluationError(f"nobody in {store.uri} has a {name}", given=f"{len(records)} scans of {modality}")
    for fold in runs:
        require_profile((records[scan_id] for scan_id in known), fold.card)
    trained = find_trained(runs)
    caveats = check_strangers([records[scan_id] for scan_id in known], trained)
    said = [answer_number(model, store, known, one, track=track) for model, one in zip(models, targets, strict=True)]
    judged = tuple(
        JudgedNumber(
            fold=runs[0].index,
            scan_id=scan_id,
            subject=records[scan_id].subject,
            family_id=records[scan_id].family_id,
            value=float(truth[scan_id] or 0.0),
            predicted=float(np.mean([answers[scan_id] for answers in said])),
            guess=float(np.mean([one.mean for one in targets])),
            no_interval="no interval: those of the run hold for people like its own",
            age_years=records[scan_id].age_years,
            sex=records[scan_id].sex,
            site=records[scan_id].site,
        )
        for scan_id in known
    )
    return NumberEvaluation(
        **weigh_judged(judged, seed=seed, num_resamples=num_resamples),
        model_name=models[0].card["model_name"],
        target=name,
        unit=targets[0].unit,
        modality=modality,
        folds=tuple(
            _describe(fold, one, judged, answers, trained)
            for fold, one, answers in zip(runs, targets, said, strict=True)
        ),
        provenance={**provenance, "protocol": "external", "num_models": len(runs), "caveats": caveats},
    )


def find_trained(runs: Sequence[RunFold]) -> dict[str, ScanRecord] | None:
    """The scans that a run was trained or selected on; None where its own store cannot be read any more."""
    if runs[0].store is None:
        return None
    try:
        records = {
            record.scan_id: record for record in ScanStore(runs[0].store, version=runs[0].catalogue_version).records()
        }
    except StoreError:
        return None
    used = {scan_id for fold in runs for scan_id in (*fold.split.train, *fold.split.val)}
    return {scan_id: records[scan_id] for scan_id in used if scan_id in records}


def check_strangers(records: Sequence[ScanRecord], trained: Mapping[str, ScanRecord] | None) -> tuple[str, ...]:
    """Makes sure that no scan of the other cohort was trained on, by content and not by name.

    Returns:
        What could not be made sure of.

    Raises:
        EvaluationError: voxels, or files, that were trained on.
    """
    if trained is None:
        return ("The store of the training is out of reach: whether somebody was trained on could not be checked.",)
    voxels = {record.voxels_sha256 for record in trained.values()}
    files = {record.source_sha256 for record in trained.values()} - {""}
    same = sum(record.voxels_sha256 in voxels or record.source_sha256 in files for record in records)
    if same:
        raise EvaluationError(
            f"{same} scans of the other cohort were trained on",
            expected="another store, of people whom the run has never seen",
            fix="leave --external away: test people of the run's own split are judged then",
        )
    namesakes = {record.subject for record in trained.values()} & {record.subject for record in records}
    if namesakes:
        return (
            f"{len(namesakes)} people carry the id of somebody who was trained on, with other voxels: ids of two "
            "cohorts may coincide; where they are the same people, this is no external cohort.",
        )
    return ()


def _describe(
    fold: RunFold,
    target: Any,
    judged: Sequence[JudgedNumber],
    answers: Mapping[str, float],
    trained: Mapping[str, ScanRecord] | None,
) -> Fold:
    """Its own sides, with the other cohort in the place of its test people, and what its model alone reaches there."""
    own = [dataclasses.replace(row, predicted=answers[row.scan_id]) for row in judged]
    metrics = {name: float(found.value) for name, found in measure_numbers(own, np.ones((1, len(own)))).items()}
    described = describe_fold(fold, target, trained or {}, metrics)
    people = {
        side: described.num_subjects[side] if trained else len(fold.split.side(side)) for side in ("train", "val")
    }
    return dataclasses.replace(
        described,
        counts={side: described.counts[side] for side in ("train", "val")} | {"test": {"external": len(judged)}},
        num_subjects=people | {"test": len({row.subject for row in judged})},
    )

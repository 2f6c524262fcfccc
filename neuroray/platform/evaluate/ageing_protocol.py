"""A run of NeuroAR's transformer judged on the pairs of visits of people that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.evaluate.ageing_evidence import (
    CEILING,
    COPY,
    MODEL,
    ROW_LABELS,
    AgeingEvaluation,
    JudgedPair,
    part_by_gap,
    weigh_rows,
)
from neuroray.platform.evaluate.ageing_rows import AgeTeller, ModelTeller, Told
from neuroray.platform.evaluate.evidence import Fold
from neuroray.platform.evaluate.image_quality import compare_volumes
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.run import RunFold, check_people, read_curves, read_folds
from neuroray.platform.evaluate.visits import Visit, VisitPair, VisitReader, name_scans, pair_records
from neuroray.platform.generate.ageing_model import AgeingModel, load_ageing_model
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

Track = Callable[[Sequence[str]], Iterable[str]]


def evaluate_ageing(
    run: Path,
    *,
    store: str | None = None,
    backward: bool = False,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    device: str = "cpu",
    facts: Mapping[str, Any] | None = None,
    track: Track | None = None,
) -> AgeingEvaluation:
    """Judges a run, or all its folds together, on all pairs of visits of the test people that its splits recorded.

    Args:
        run: The run folder of `neuroar/transformer`; with `fold-*` folders in it, their test people are pooled.
        store: Where the scans are; where the run found them when left out.
        backward: Give the older scan and tell the younger, in place of the other way round.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
        device: Where to compute.
        facts: What the report is to tell of its making: `versions`, `made_at`, `git_commit`, `commands`.
        track: Shows progress over pairs.

    Raises:
        EvaluationError: people or families on two sides, a run that is not finished, nobody with two visits.
        GenerationError: a model folder that tells no brains, or whose tokenizer is not its own.
        ProfileError: scans that were prepared otherwise than those of the training.
        StoreError: scans that cannot be read.
    """
    folds = [name_scans(fold) for fold in read_folds(run)]
    opened = open_run_store(folds[0], store)
    records = {record.scan_id: record for record in opened.records()}
    judged: list[JudgedPair] = []
    described: list[Fold] = []
    for fold in folds:
        check_people(fold, records)
        found = _judge_fold(fold, opened, records, backward=backward, device=device, track=track)
        judged += found
        described.append(_describe_fold(fold, records, found))
    rows = list(ROW_LABELS)
    draws = {"seed": seed, "num_resamples": num_resamples}
    return AgeingEvaluation(
        model_name=folds[0].card["model_name"],
        modality=folds[0].card["modality"],
        row_labels=ROW_LABELS,
        judged=tuple(judged),
        folds=tuple(described),
        whole=weigh_rows(judged, rows, **draws),
        by_gap={name: weigh_rows(some, rows, **draws) for name, some in part_by_gap(judged).items()},
        backward=backward,
        seed=seed,
        num_resamples=num_resamples,
        provenance=describe_origin(run, folds, opened, facts or {}),
    )


def open_run_store(fold: RunFold, store: str | None) -> ScanStore:
    """The store of a run's scans at the version that it recorded.

    Raises:
        EvaluationError: the run does not say where it is, and neither does the caller.
        StoreError: there is none.
    """
    uri = store or fold.store
    if uri is None:
        raise EvaluationError("the run does not say where its scans are", fix="name the store: --store")
    return ScanStore(uri, version=fold.catalogue_version)


def describe_origin(run: Path, folds: Sequence[RunFold], store: ScanStore, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Where the numbers came from."""
    return {
        "run_name": run.resolve().name,
        "store": store.uri,
        "catalogue_version": store.version,
        "catalogue_version_recorded": folds[0].catalogue_version is not None,
        "protocol": folds[0].split.config.hold_out,
        **facts,
    }


def judge_row(told: Told, previous: Visit, target: Visit) -> dict[str, float]:
    """How near a row came to the follow-up: the image, and where it has any, its tokens."""
    scores = compare_volumes(told.volume, target.volume, target.brain)
    if told.tokens is None:
        return scores
    right, changed = told.tokens == target.tokens, previous.tokens != target.tokens
    of_changed = float(right[changed].float().mean()) if bool(changed.any()) else float("nan")
    return scores | {"token_accuracy": float(right.float().mean()), "changed_token_accuracy": of_changed}


def _judge_fold(
    fold: RunFold,
    store: ScanStore,
    records: Mapping[str, ScanRecord],
    *,
    backward: bool,
    device: str,
    track: Track | None,
) -> list[JudgedPair]:
    model = load_ageing_model(str(fold.path), device=device)
    pairs = pair_records([records[scan_id] for scan_id in fold.split.test], backward=backward)
    if not pairs:
        raise EvaluationError(
            f"nobody on the test side of {fold.path} has two visits at different ages",
            given=f"{len(fold.split.test)} scans",
            expected="pairs of visits",
        )
    named = {f"{pair.previous.scan_id} {pair.target.scan_id}": pair for pair in pairs}
    reader = VisitReader(store, model.tokenizer, model.grid)
    tellers: list[AgeTeller] = [ModelTeller(model)]
    return [
        _judge_pair(fold.index, named[name], model, reader, tellers)
        for name in (track(list(named)) if track else list(named))
    ]


def _judge_pair(
    fold_index: int, pair: VisitPair, model: AgeingModel, reader: VisitReader, tellers: Sequence[AgeTeller]
) -> JudgedPair:
    previous, target = reader(pair.previous), reader(pair.target)
    rows = {
        COPY: Told(volume=previous.volume, tokens=previous.tokens),
        CEILING: Told(volume=decode(model, target), tokens=target.tokens),
        **{teller.name: teller.tell(previous, target.age_years) for teller in tellers},
    }
    scores = {name: judge_row(told, previous, target) for name, told in rows.items()}
    return JudgedPair(fold=fold_index, pair=pair, scores=scores)


def decode(model: AgeingModel, visit: Visit) -> np.ndarray:
    """What the tokenizer makes of a scan."""
    return model.tokenizer.decode(visit.tokens, model.grid)[0].cpu().numpy()


def _describe_fold(fold: RunFold, records: Mapping[str, ScanRecord], judged: Sequence[JudgedPair]) -> Fold:
    sides = {side: fold.split.side(side) for side in ("train", "val", "test")}
    means = {name: float(np.mean([one.scores[MODEL][name] for one in judged])) for name in ("psnr_brain", "ssim_brain")}
    return Fold(
        index=fold.index,
        counts={side: {"all": len(scan_ids)} for side, scan_ids in sides.items()},
        num_subjects={side: len({records[one].subject for one in scan_ids}) for side, scan_ids in sides.items()},
        curves=read_curves(fold, score="error_to_copy"),
        metrics=means,
        facts={
            "weights_sha256": fold.card["weights"]["sha256"],
            "tokenizer_sha256": fold.card["tokenizer"]["sha256"],
            "profile": read_model_profile(fold.card).name,
            "profile_sha256": read_model_profile(fold.card).sha256,
            "split_sha256": fold.split_sha256,
            "recipe": fold.recipe.get("name"),
            "recipe_seed": fold.recipe.get("seed"),
        },
    )

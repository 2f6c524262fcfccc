"""A finished run as evidence needs it: its folds, each with its split, its model's card and how it learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.data.duplicates import find_duplicates, tell_duplicates
from neuroray.platform.data.splits import SIDES, Split
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.storage.profiles.agreement import require_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

_RECIPE, _SPLITS, _CARD = "config.json", "splits.json", "model/config.json"
_METRICS, _RESULT = "metrics.jsonl", "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFold:
    """One trained model with the people it was trained, selected and is to be judged on.

    Attributes:
        path: Its folder.
        index: Which fold.
        recipe: What was asked for: `config.json`.
        split: Who is on which side.
        card: `model/config.json`: classes, target, fingerprints, digest of the weights.
        split_sha256: Digest of the file of the split.
    """

    path: Path
    index: int
    recipe: Mapping[str, Any]
    split: Split
    card: Mapping[str, Any]
    split_sha256: str

    @property
    def store(self) -> str | None:
        """Where the scans were when it was trained."""
        return self.recipe.get("data", {}).get("store") or None

    @property
    def catalogue_version(self) -> int | None:
        """Of that store, when it was trained."""
        recorded = self.split.catalogue_version
        return self.recipe.get("data", {}).get("version") if recorded is None else recorded


def read_folds(run: Path) -> list[RunFold]:
    """The folds of a run: `RUN/fold-*` where there are any, else the run itself.

    Raises:
        EvaluationError: no finished run is there, or its folds are not about the same thing.
    """
    folders = sorted(path for path in run.glob("fold-*") if path.is_dir()) or [run]
    folds = [_read_fold(folder, number) for number, folder in enumerate(folders)]
    for name in ("model_name", "classes", "target", "modality"):
        values = {json.dumps(fold.card[name]) for fold in folds}
        if len(values) > 1:
            raise EvaluationError(f"the folds of {run} differ in {name}", given=", ".join(sorted(values)))
    if len({(fold.store, fold.catalogue_version) for fold in folds}) > 1:
        raise EvaluationError(f"the folds of {run} were made on different stores or catalogue versions")
    return folds


def _read_fold(folder: Path, number: int) -> RunFold:
    missing = [name for name in (_RECIPE, _SPLITS, _CARD) if not (folder / name).is_file()]
    if missing:
        raise EvaluationError(
            f"there is no finished run in {folder}",
            given=f"no {', '.join(missing)}",
            expected="the folder that `neuroray train --out` wrote, after training has ended",
        )
    split_bytes = (folder / _SPLITS).read_bytes()
    split = Split.from_json(json.loads(split_bytes))
    return RunFold(
        path=folder,
        index=split.config.fold if folder.name.startswith("fold-") else number,
        recipe=json.loads((folder / _RECIPE).read_text()),
        split=split,
        card=json.loads((folder / _CARD).read_text()),
        split_sha256=hashlib.sha256(split_bytes).hexdigest(),
    )


def check_people(fold: RunFold, records: Mapping[str, ScanRecord]) -> None:
    """Makes sure that nobody judged was trained or selected on, by the catalogue and not by the split's own word.

    Their scans must have been prepared as those of the training.

    Raises:
        EvaluationError: a person, a family or a picture on two sides, or scans that the catalogue does not know.
        ProfileError: scans that were prepared otherwise than those it was trained on.
    """
    unknown = sum(scan_id not in records for side in SIDES for scan_id in fold.split.side(side))
    if unknown:
        raise EvaluationError(
            f"{unknown} scans of the split in {fold.path} are not in the store at version {fold.catalogue_version}",
            fix="name the store that the run was trained on: --store",
        )
    require_profile((records[scan_id] for scan_id in fold.split.test), fold.card)
    leaks = find_duplicates(records.values(), fold.split)
    if leaks:
        raise EvaluationError(
            f"the same picture is on two sides of the split in {fold.path}, under several names",
            given=tell_duplicates(leaks, fold.split),
            fix="neuroray remove STORE --subject ID for the copies, and train again",
        )
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        for what in ("subject", "family_id"):
            both = _names(fold, first, what, records) & _names(fold, second, what, records)
            if both:
                kind = "people" if what == "subject" else "families"
                raise EvaluationError(
                    f"{len(both)} {kind} are on two sides of the split in {fold.path}: {first} and {second}",
                    expected="every person and every family on one side only",
                    fix="make the split anew with neuroray train; evidence from this one would not hold",
                )


def read_curves(fold: RunFold, *, score: str = "auc") -> dict[str, list[tuple[float, float]]]:
    """How it learned, as (epoch, value) points; none where nothing was logged.

    They are `train_loss`, `val_loss`, `val_score` (the logged score of that name) and, of it, `kept`: the one point
    whose weights were exported.
    """
    path = fold.path / _METRICS
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
    wanted = {"train_loss": ("train", "loss"), "val_loss": ("val", "loss"), "val_score": ("val", score)}
    curves = {name: _mean_by_epoch(rows, split, value) for name, (split, value) in wanted.items()}
    result = fold.path / _RESULT
    best_step = json.loads(result.read_text()).get("best_step") if result.is_file() else None
    kept = [row for row in rows if row.get("split") == "val" and row.get("step") == best_step]
    return curves | {"kept": _mean_by_epoch(kept, "val", score)}


def _mean_by_epoch(rows: Sequence[Mapping[str, Any]], split: str, value: str) -> list[tuple[float, float]]:
    by_epoch: dict[float, list[float]] = {}
    for row in rows:
        if row.get("split") == split and row.get(value) is not None:
            by_epoch.setdefault(row["epoch"], []).append(row[value])
    return [(epoch, float(np.mean(values))) for epoch, values in sorted(by_epoch.items())]


def _names(fold: RunFold, side: Any, what: str, records: Mapping[str, ScanRecord]) -> set[str]:
    return {getattr(records[scan_id], what) for scan_id in fold.split.side(side)} - {None}


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

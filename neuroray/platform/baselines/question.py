"""What is asked of a cohort: which target, of whom, and who is on which side in each fold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.data.labels import LabelError, parse_condition, read_number, read_text
from neuroray.platform.data.splits import SIDES, Side, Split, SplitConfig, split_subjects
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

Kind = Literal["classification", "regression"]
# Of a target whose kind is to be found: numbers with more distinct values than this are a measure.
_MOST_CLASSES = 10
_NUM_BINS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One target and the folds that it is judged on.

    Attributes:
        target: Column of the catalogue, or a name among a scan's extra columns.
        kind: Whether its values are classes or a measure.
        classes: Sorted; empty for a measure.
        modality: Of the scans.
        values: Of every scan on a side of a fold: index of its class, or the measure.
        groups: Family or person of each of these scans: what stays together.
        folds: Index and sides of each.
        left_out: Scans of the modality without the target.
        is_shuffled: A control: the values were dealt out anew among the people.
        learned_from: As `column=value`, whom predictors are fitted on; everybody where None.
        learners: Scans of these people.
    """

    target: str
    kind: Kind
    classes: tuple[str, ...]
    modality: str
    values: Mapping[str, float]
    groups: Mapping[str, str]
    folds: tuple[tuple[int, Split], ...]
    left_out: tuple[str, ...] = ()
    is_shuffled: bool = False
    learned_from: str | None = None
    learners: frozenset[str] = frozenset()

    def side(self, split: Split, side: Side) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Scans with the target, their values and groups, of one side; of learners alone where nobody is judged."""
        scan_ids = tuple(scan_id for scan_id in split.side(side) if scan_id in self.values)
        if self.learned_from is not None and side != "test":
            scan_ids = tuple(scan_id for scan_id in scan_ids if scan_id in self.learners)
        return (
            scan_ids,
            np.array([self.values[scan_id] for scan_id in scan_ids]),
            np.array([self.groups[scan_id] for scan_id in scan_ids]),
        )


def ask(
    store: ScanStore,
    target: str,
    config: SplitConfig,
    *,
    kind: Kind | None = None,
    modality: str = "bold",
    all_folds: bool = True,
    num_axes: int = 4,
) -> Question:
    """A target of a store's runs, with folds of its own.

    Args:
        store: Whose runs.
        target: Which column.
        config: How people are dealt; they are stratified by the target, a measure in five bins where it names no other
            number.
        kind: When None: a measure where the values are numbers of more than ten kinds, else classes.
        modality: Which scans.
        all_folds: All folds of the configuration, so that their test people add up; else only its own.
        num_axes: Of the scans: 4 for runs, 3 for volumes.

    Raises:
        BaselineError: no such scans, or nothing to predict: one value, or none.
        SplitError: too few people for so many parts, or a measure where classes are asked for.
    """
    records = [record for record in store.records() if record.modality == modality and len(record.shape) == num_axes]
    if not records:
        what = "runs" if num_axes == 4 else "volumes"
        raise BaselineError(f"there are no {what} in {store.uri}", given=f"modality {modality}", fix="--modality")
    kind = kind or _find_kind(records, target)
    num_bins = (config.num_bins or _NUM_BINS) if kind == "regression" else None
    config = dataclasses.replace(config, stratify_by=target, num_bins=num_bins)
    numbers = range(config.num_folds) if all_folds else [config.fold]
    splits = [
        split_subjects(records, dataclasses.replace(config, fold=number), catalogue_version=store.version)
        for number in numbers
    ]
    return _assemble(target, modality, list(zip(numbers, splits, strict=True)), records)


def ask_as_run(run: Path, store: ScanStore, *, target: str | None = None, kind: Kind | None = None) -> Question:
    """What a run was trained to answer, on the very sides of its splits, finished or not.

    Args:
        run: Its folder; all of `fold-*` where there are such.
        store: Its scans, at the catalogue version that it recorded.
        target: Another column than the first that it answers, of a run with several.
        kind: Of that other target; found from its values when None.

    Raises:
        BaselineError: no run, scans that are not in the store, a target without spread, or another target of a run
            whose labels were shuffled.
    """
    folders = _fold_folders(run)
    data = _read_recipe(folders[0])["data"]
    splits = [Split.read_json(folder / "splits.json") for folder in folders]
    records = {record.scan_id: record for record in store.records()}
    wanted = {scan_id for split in splits for side in SIDES for scan_id in split.side(side)}
    if not wanted <= records.keys():
        raise BaselineError(
            f"{len(wanted - records.keys())} scans of the run's splits are not in {store.uri}",
            fix="name the store that the run was trained on: --store",
        )
    numbers = [
        split.config.fold if folder.name.startswith("fold-") else 0
        for folder, split in zip(folders, splits, strict=True)
    ]
    folds = list(zip(numbers, splits, strict=True))
    modality = data.get("modality", "bold")
    asked = _assemble(data["target"], modality, folds, list(records.values()))
    if target in (None, asked.target):
        return asked
    assert target is not None
    if asked.is_shuffled:
        raise BaselineError(
            "labels of this run were shuffled, which splits.json keeps of its first target alone",
            given=f"--target {target}",
            expected=asked.target,
        )
    return _ask_besides(asked, target, kind, [records[scan_id] for scan_id in sorted(wanted)])


def _ask_besides(asked: Question, target: str, kind: Kind | None, records: Sequence[ScanRecord]) -> Question:
    """Another target of the same people on the same sides, from the catalogue; those without it are left out."""
    kind = kind or _find_kind(records, target)
    if kind == "regression":
        found = {record.scan_id: read_number(record, target) for record in records}
        values = {scan_id: number for scan_id, number in found.items() if number is not None}
        classes: tuple[str, ...] = ()
    else:
        texts = {record.scan_id: read_text(record, target) for record in records}
        classes = tuple(sorted({text for text in texts.values() if text is not None}))
        values = {scan_id: float(classes.index(text)) for scan_id, text in texts.items() if text is not None}
    _require_spread(target, values)
    return dataclasses.replace(
        asked,
        target=target,
        kind=kind,
        classes=classes,
        values=values,
        left_out=tuple(sorted({record.scan_id for record in records} - values.keys())),
    )


def learn_from(question: Question, store: ScanStore, condition: str) -> Question:
    """The same question, with predictors fitted on some people alone (controls); everybody is judged as before.

    Args:
        question: The target and the folds.
        store: Whose scans.
        condition: As `diagnosis=control`: a column of the store and its value.

    Raises:
        BaselineError: no condition, or a side of a fold on which nobody fulfils it.
    """
    try:
        column, wanted = parse_condition(condition)
    except LabelError as fault:
        raise BaselineError(fault.fault, given=fault.given, expected=fault.expected) from fault
    learners = frozenset(record.scan_id for record in store.records() if read_text(record, column) == wanted)
    asked = dataclasses.replace(question, learned_from=condition, learners=learners)
    for index, split in asked.folds:
        for side in ("train", "val"):
            if not asked.side(split, side)[0]:
                raise BaselineError(f"nobody on the {side} side of fold {index} has {condition}")
    return asked


def locate_run(run: Path) -> tuple[str | None, int | None]:
    """Store and catalogue version that a run was trained on, as far as it says.

    Raises:
        BaselineError: there is no run.
    """
    folder = _fold_folders(run)[0]
    data = _read_recipe(folder)["data"]
    recorded = Split.read_json(folder / "splits.json").catalogue_version
    return data.get("store") or None, data.get("version") if recorded is None else recorded


def _assemble(
    target: str, modality: str, folds: Sequence[tuple[int, Split]], records: Sequence[ScanRecord]
) -> Question:
    """The labels are the split's own, and not the catalogue's: in a control experiment they are shuffled."""
    split = folds[0][1]
    is_measure = split.config.num_bins is not None
    distinct = sorted(set(split.labels.values()))
    _require_spread(target, split.labels)
    encode = {name: float(name) if is_measure else float(index) for index, name in enumerate(distinct)}
    return Question(
        target=target,
        kind="regression" if is_measure else "classification",
        classes=() if is_measure else tuple(distinct),
        modality=modality,
        values={scan_id: encode[label] for scan_id, label in split.labels.items()},
        groups={record.scan_id: _name_group(record) for record in records},
        folds=tuple(folds),
        left_out=split.left_out,
        is_shuffled=split.config.shuffle_labels_seed is not None,
    )


def _require_spread(target: str, values: Mapping[str, object]) -> None:
    distinct = sorted({str(value) for value in values.values()})
    if len(distinct) < 2:
        raise BaselineError(
            f"there is nothing to predict in {target}",
            given=f"{len(values)} scans, all of value {', '.join(distinct)}",
            expected="two values or more",
        )


def _name_group(record: ScanRecord) -> str:
    return f"family:{record.family_id}" if record.family_id else f"subject:{record.subject}"


def _fold_folders(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("fold-*") if path.is_dir()) or [run]


def _read_recipe(folder: Path) -> Mapping[str, Any]:
    missing = [name for name in ("config.json", "splits.json") if not (folder / name).is_file()]
    if missing:
        raise BaselineError(
            f"there is no run in {folder}",
            given=f"no {', '.join(missing)}",
            expected="the folder that `neuroray train --out` writes",
        )
    return json.loads((folder / "config.json").read_text())


def _find_kind(records: Sequence[ScanRecord], target: str) -> Kind:
    try:
        numbers = {read_number(record, target) for record in records}
    except LabelError:
        return "classification"
    return "regression" if len(numbers - {None}) > _MOST_CLASSES else "classification"

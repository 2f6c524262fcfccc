"""The cohort of a model of windows: who has time series, what is known of the people, what is odd about the scans."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from neuroray.platform.data.labels import LabelError, read_class, read_number
from neuroray.platform.data.splits import Split, split_subjects
from neuroray.platform.data.targets import Target, TargetError, class_target, number_target
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.train.people import choose_records, spacing_range
from neuroray.platform.train.recipe import Recipe, RecipeError
from neuroray.platform.train.task import Cohort
from neuroray.storage.profiles.agreement import find_common_profile
from neuroray.storage.store import ScanRecord, ScanStore

logger = logging.getLogger(__name__)

# A run's statistics are one small object: in a bucket the way there takes its time.
_READERS = 16
# Repetition times closer than a hundredth are the same: headers round to milliseconds.
_SAME_TIME = 1.01


def prepare_window_cohort(
    store: ScanStore, recipe: Recipe, *, names: Sequence[str], regress: Sequence[str], balanced: bool
) -> Cohort:
    """Chooses runs and people, and finds means, spreads and class weights on the training side.

    People without any of the labels are left out; what is odd about the runs (no repetition time or several, flags of
    the ingest) is said in the log.

    Args:
        store: At the catalogue version that is meant.
        recipe: Its `data.target` is the first of `names`, where there are any.
        names: Labels that are learned; none for a model that needs no labels, which then takes everybody.
        regress: Those of them that are measures.
        balanced: Whether classes are weighted.

    Raises:
        RecipeError: no scans, volumes among the runs, several grids or types of numbers in one batch, one class only,
            a constant measure, runs without spread.
        ProfileError: scans that were not all prepared alike.
        SplitError: too few people.
    """
    records = choose_records(store, recipe)
    _require_runs(records, recipe)
    _require_one_type(store, records, recipe)
    profile = find_common_profile(store, records)
    try:
        labels = {name: _read_labels(records, name, is_number=name in regress) for name in names}
        split = _split(records, labels, recipe, store.version)
        targets = tuple(_make_target(name, labels[name], split, regress, balanced=balanced) for name in names)
    except (LabelError, TargetError) as fault:
        raise RecipeError(fault.fault, given=fault.given, expected=fault.expected, fix=fault.fix) from fault
    for sentence in split.tell_left_out(" or ".join(names) or str(split.config.stratify_by)):
        logger.warning("%s", sentence)
    _require_spread(store, [*split.train, *split.val, *split.test])
    facts = _describe_runs(records, split)
    _tell_of_runs(records, facts)
    return Cohort(
        store=store.uri,
        version=store.version,
        split=split,
        spacing_mm=spacing_range(records, split.train),
        num_frames={record.scan_id: record.shape[0] for record in records},
        targets=targets,
        facts=facts,
        groups={record.scan_id: name_group(record.subject, record.family_id) for record in records},
        profile=profile,
    )


def _require_runs(records: Sequence[ScanRecord], recipe: Recipe) -> None:
    volumes = [record for record in records if len(record.shape) != 4]
    if volumes:
        raise RecipeError(
            f"{len(volumes)} of {len(records)} {recipe.data.modality} scans have no frames",
            given=f"{volumes[0].scan_id} of shape {' x '.join(map(str, volumes[0].shape))}",
            expected="time series (time x y z)",
            fix="take the runs alone: --data.modality bold; a model of volumes for volumes",
        )
    grids = Counter(record.shape[1:] for record in records)
    if len(grids) > 1 and recipe.loop.batch_size > 1:
        told = ", ".join(f"{count} of {' x '.join(map(str, grid))}" for grid, count in grids.most_common(4))
        raise RecipeError(
            "runs of several grids cannot be in one batch",
            given=told,
            fix="--loop.batch-size 1 with --optim.passes 1, or bring the runs to one grid before the ingest",
        )


def _require_one_type(store: ScanStore, records: Sequence[ScanRecord], recipe: Recipe) -> None:
    """A batch is one array of stored numbers; runs whose values are of one type are stored alike."""
    types = Counter(record.dtype for record in records)
    examples = {record.dtype: record.scan_id for record in records}
    stored = {name: str(store.stored_dtype(scan_id)) for name, scan_id in examples.items()} if len(types) > 1 else {}
    if len(set(stored.values())) > 1 and recipe.loop.batch_size > 1:
        told = ", ".join(f"{count} of {stored[name]} (as {examples[name]})" for name, count in types.most_common(4))
        raise RecipeError(
            "runs stored as numbers of several types cannot be in one batch",
            given=told,
            fix="--loop.batch-size 1 with --optim.passes 1, or ingest them from files of one type",
        )


def _require_spread(store: ScanStore, scan_ids: Sequence[str]) -> None:
    """Of every run the mean and spread that z-scores are taken by; told now, not by a worker in the first epoch."""
    with ThreadPoolExecutor(_READERS) as readers:
        found = dict(zip(scan_ids, readers.map(store.read_statistics, scan_ids), strict=True))
    missing = [scan_id for scan_id, one in found.items() if one is None]
    if missing:
        raise RecipeError(
            f"{len(missing)} runs were stored without the mean and spread of their brain",
            given=", ".join(missing[:4]),
            fix="ingest them with --profile fmri_minimal",
        )
    flat = [scan_id for scan_id, one in found.items() if one is not None and not one.std > 0]
    if flat:
        raise RecipeError(
            f"{len(flat)} runs have no spread: all values in the brain are alike, in all frames",
            given=", ".join(flat[:4]),
            fix="look at them (neuroray qc), and take them out (neuroray remove)",
        )


def _read_labels(records: Sequence[ScanRecord], name: str, *, is_number: bool) -> dict[str, Any]:
    read = read_number if is_number else read_class
    found = {record.scan_id: read(record, name) for record in records}
    return {scan_id: value for scan_id, value in found.items() if value is not None}


def _split(
    records: Sequence[ScanRecord], labels: dict[str, dict[str, Any]], recipe: Recipe, catalogue_version: int
) -> Split:
    known = set().union(*labels.values()) if labels else {record.scan_id for record in records}
    nobody = [record.scan_id for record in records if record.scan_id not in known]
    chosen = [record for record in records if record.scan_id in known]
    if not chosen:
        raise RecipeError(f"no scan has a {' or '.join(labels)}", given=f"{len(records)} scans", fix="check the table")
    split = split_subjects(chosen, recipe.split, catalogue_version=catalogue_version)
    return dataclasses.replace(split, left_out=tuple(sorted([*split.left_out, *nobody])))


def _make_target(name: str, labels: dict[str, Any], split: Split, regress: Sequence[str], *, balanced: bool) -> Target:
    # The split's own labels are the shuffled ones in a control experiment.
    if split.config.shuffle_labels_seed is not None:
        labels = {scan_id: float(text) if name in regress else text for scan_id, text in split.labels.items()}
    on_a_side = {*split.train, *split.val, *split.test}
    labels = {scan_id: value for scan_id, value in labels.items() if scan_id in on_a_side}
    if name in regress:
        return number_target(name, labels, train=split.train)
    return class_target(name, labels, train=split.train, balanced=balanced)


def _describe_runs(records: Sequence[ScanRecord], split: Split) -> dict[str, Any]:
    """Of the training runs: grids, frames and repetition times, for the model card."""
    chosen = set(split.train)
    train = [record for record in records if record.scan_id in chosen]
    times_s = [record.repetition_time_s for record in train if record.repetition_time_s is not None]
    frames = [record.shape[0] for record in train]
    return {
        "grid_shapes": [list(grid) for grid in sorted({record.shape[1:] for record in train})],
        "num_frames": [min(frames), max(frames)],
        "repetition_time_s": [min(times_s), max(times_s)] if times_s else None,
        "num_without_repetition_time": len(train) - len(times_s),
    }


def _tell_of_runs(records: Sequence[ScanRecord], facts: dict[str, Any]) -> None:
    without = sum(record.repetition_time_s is None for record in records)
    if without:
        logger.warning("%d runs do not say their repetition time; windows are counted in frames all the same", without)
    known = facts["repetition_time_s"]
    if known is not None and known[1] > known[0] * _SAME_TIME:
        logger.warning("repetition times differ, %g to %g s: windows of so many frames differ in length", *known)
    flagged = sum(bool(record.flags) for record in records)
    if flagged:
        logger.warning(
            "%d runs carry flags of the ingest (identical frames, values that were no numbers); they take part, with "
            "empty frames and what is no number as background: see neuroray qc",
            flagged,
        )

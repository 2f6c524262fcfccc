"""What is explained: a file or a scan of a store, prepared as those of the training were, or a run's test people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from neuroray.jobs.cli import UsageError
from neuroray.platform.data.splits import Split
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles import TemplateTransform, prepare
from neuroray.storage.profiles.agreement import read_model_profile, require_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedScan:
    """A volume as its model takes it.

    Attributes:
        scan: Prepared.
        to_template: How it was brought to a template's space, where it was.
        sex: As the store knows it; None of a file.
    """

    scan: Scan
    to_template: TemplateTransform | None
    sex: str | None


def find_scan(path: str | None, store_uri: str | None, subject: str | None, card: Mapping[str, Any]) -> ExplainedScan:
    """The file at `path`, or the subject's volume in the store.

    Raises:
        ScanError: a file that cannot be read or prepared, or a store without such a volume.
        UsageError: a subject with several.
        ProfileError: stored scans that were prepared otherwise than those of the training.
    """
    if path is not None:
        prepared = prepare(read_scan(path), read_model_profile(card).restore())
        return ExplainedScan(scan=prepared.scan, to_template=prepared.to_template, sex=None)
    store, record = find_record(store_uri, subject, card)
    scan = store.read(record.scan_id)
    return ExplainedScan(scan=scan, to_template=store.read_to_template(record.scan_id), sex=record.sex)


def find_record(store_uri: str | None, subject: str | None, card: Mapping[str, Any]) -> tuple[ScanStore, ScanRecord]:
    """The store, and the subject's volume in it.

    Args:
        store_uri: The store.
        subject: A person with a single volume, or the id of a scan.
        card: The model's `config.json`.

    Raises:
        ScanError: a store without such a volume.
        UsageError: a subject with several.
        ProfileError: it was prepared otherwise than those of the training.
    """
    store = ScanStore(str(store_uri))
    volumes = [record for record in store.records() if len(record.shape) == 3]
    # A person's folder is called sub-001, and the person 001.
    names = {subject, str(subject).removeprefix("sub-")}
    wanted = [record for record in volumes if names & {record.scan_id, record.subject}]
    if not wanted:
        example = f"a person, or a scan such as {volumes[0].scan_id}" if volumes else None
        what, fix = "the store has no volume of this subject or scan id", "see neuroray inspect STORE"
        raise ScanError(what, given=subject, expected=example, fix=fix)
    if len(wanted) > 1:
        names = ", ".join(record.scan_id for record in wanted)
        raise UsageError(f"this subject has {len(wanted)} scans", expected=f"one of {names} as --subject")
    require_profile(wanted, card)
    return store, wanted[0]


def choose_people(
    run: str, store_uri: str | None, number: int, *, side: Literal["train", "test"] = "test"
) -> tuple[ScanStore, list[ScanRecord]]:
    """As many people of a run as asked for, spread evenly over the split's order, and the store they lie in.

    Args:
        run: A RUN folder, or one fold of it.
        store_uri: The store; the one that the run was trained on when None.
        number: How many; all where there are fewer.
        side: Of the split.

    Raises:
        UsageError: a folder without a split.
    """
    folder = Path(run) if (Path(run) / "splits.json").is_file() else Path(run) / "fold-0"
    if not (folder / "splits.json").is_file():
        what = "a group is" if side == "test" else "people to compare with are"
        raise UsageError(f"{what} taken from a run's {side} people", given=run, expected="a RUN folder")
    split = Split.read_json(folder / "splits.json")
    recorded = json.loads((folder / "config.json").read_text()).get("data", {})
    store = ScanStore(str(store_uri or recorded.get("store")), version=split.catalogue_version)
    scan_ids = split.test if side == "test" else split.train
    places = np.unique(np.linspace(0, len(scan_ids) - 1, min(number, len(scan_ids))).round().astype(int))
    return store, [store.record(scan_ids[place]) for place in places]

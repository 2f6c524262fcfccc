"""Whether a model that reads ages has seen in its training the very people whose brains it is to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neuroray.platform.evaluate.external import find_trained
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.run import RunFold, read_folds
from neuroray.storage.records import ScanRecord

_WHAT_THEN = (
    "It may know them, and read them as older or younger by what it has learned of them and not by what is drawn: use "
    "an age model of other people, or believe the ages read less."
)


def find_age_overlap(age_model: str, judged: Sequence[ScanRecord], store: str) -> str | None:
    """A note for the report where people judged here trained or selected the age model; None where none did.

    People are the same where their ids are and the store is, or where a scan has the same voxels or file. Ids alone,
    in another store, are told as such. Nobody is named.

    Args:
        age_model: Its run folder, or its model folder.
        judged: Scans of the people judged.
        store: Where these are.
    """
    folder = Path(age_model) if (Path(age_model) / "model").is_dir() else Path(age_model).parent
    try:
        folds = read_folds(folder)
    except EvaluationError:
        return _doubt("there is no split beside it")
    people = {record.subject for record in judged}
    trained = find_trained(folds)
    if trained is None:
        ids = {scan_id for fold in folds for scan_id in (*fold.split.train, *fold.split.val)}
        same = {record.subject for record in judged if record.scan_id in ids}
        return _tell(len(same), len(people), "by names of scans") if same else _doubt("its store is not there")
    voxels = {record.voxels_sha256 for record in trained.values()}
    files = {record.source_sha256 for record in trained.values()} - {""}
    known = {one.subject for one in judged if one.voxels_sha256 in voxels or one.source_sha256 in files}
    namesakes = people & {record.subject for record in trained.values()}
    if _is_same_store(folds[0], store):
        known |= namesakes
    if known:
        return _tell(len(known), len(people), "")
    if namesakes:
        return _tell(len(namesakes), len(people), "if people of one id in two stores are the same")
    return None


def _is_same_store(fold: RunFold, store: str) -> bool:
    uris = [uri if "://" in uri else str(Path(uri).resolve()) for uri in (fold.store or "", store)]
    return uris[0] == uris[1]


def _tell(number: int, of_people: int, how: str) -> str:
    given = f", {how}" if how else ""
    return (
        f"The age model was trained or selected on {number} of the {of_people} people judged here{given}. {_WHAT_THEN}"
    )


def _doubt(why: str) -> str:
    return f"Whether the age model was trained on people judged here could not be checked: {why}."

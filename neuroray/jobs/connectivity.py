"""`neuroray connectivity`: measure how networks fluctuate together in every run, and enter it as labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.errors import NeurorayError
from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import record_run
from neuroray.platform.baselines.network_edges import PREFIX, measure_edges
from neuroray.platform.baselines.series import CleaningConfig
from neuroray.storage.participants import Participant
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore


class ConnectivityError(NeurorayError, ValueError):
    """A store without a run to measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Label every run of a store with the connectivity between 13 networks (78 measures): what `brainmt:fc` learns.

    Labels go into a new version of the catalogue; voxels are only read. Run again, only new runs are measured.
    Exit code 1 when a run could not be measured; the others are labelled all the same.
    """

    store: Annotated[str, tyro.conf.Positional]
    """A store: a folder or s3://bucket/prefix. Its runs must lie in MNI152 space."""

    high_pass_hz: float = 0.01
    """Slower fluctuations are drift; 0 takes out a straight line only, and needs no repetition time."""

    again: bool = False
    """Measure runs that have such labels already."""

    out: str = "runs/connectivity"
    """Where run.json goes."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Measures, and commits all labels in one step."""
    store = ScanStore(args.store)
    cleaning = CleaningConfig(high_pass_hz=args.high_pass_hz)
    with record_run(Path(args.out), job="connectivity", args=args) as record:
        runs = [one for one in store.records() if len(one.shape) == 4]
        if not runs:
            raise ConnectivityError(
                "the store has no runs", given=f"{len(store.records())} scans", expected="BOLD runs"
            )
        waiting = [one for one in runs if args.again or not any(name.startswith(PREFIX) for name in one.extra)]
        labelled, failed = [], []
        for one in progress(waiting, label="connectivity"):
            try:
                labelled.append(_label(one, measure_edges(store, one, cleaning)))
            except NeurorayError as error:
                failed.append({"scan_id": one.scan_id, "reason": str(error)})
        if labelled:
            store.commit(labelled)
        answer = {
            "store": store.uri,
            "catalogue_version": ScanStore(args.store).version,
            "num_runs": len(runs),
            "num_labelled": len(labelled),
            "failed": failed,
        }
        record.add(**answer)
    text = [f"{store.uri}: {len(labelled)} of {len(runs)} runs labelled, version {answer['catalogue_version']}"]
    text += [f"  {one['scan_id']}: {one['reason']}" for one in failed]
    return answer | {"text": "\n".join(text), "exit_code": int(bool(failed))}


def _label(record: ScanRecord, edges: dict[str, float]) -> ScanRecord:
    """What is known of the person, with old edges replaced."""
    person: Participant = record.participant
    others = {name: value for name, value in person.extra.items() if not name.startswith(PREFIX)}
    extra = {**others, **{name: f"{value:.9g}" for name, value in edges.items()}}
    return record.relabelled(
        subject=record.subject,
        session=record.session,
        modality=record.modality,
        participant=dataclasses.replace(person, extra=extra),
    )

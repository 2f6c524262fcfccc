"""The motion of a training's runs: measured before it starts, kept in the run folder, exported with the model."""

from __future__ import annotations

import dataclasses
import functools
import logging

from neuroray.platform.quality.run_motion import choose_spread, describe_range, measure_stored_motion
from neuroray.platform.train.loop import Run
from neuroray.platform.train.run_folder import read_json, write_json
from neuroray.platform.train.task import Cohort
from neuroray.storage.store import ScanStore

logger = logging.getLogger(__name__)

_FILE = "motion.json"


def with_motion(run: Run, num_runs: int) -> Run:
    """The same run with the range of its training runs' motion among the facts of its cohort.

    Args:
        run: Prepared; of a model of volumes it is given back as it is.
        num_runs: How many training runs are measured, spread evenly over them; 0: none, and answers for other runs
            are then not compared.

    Raises:
        StoreError: a run that is damaged.
    """
    cohort = run.cohort
    # A model may count the pictures of a volume as frames; a volume has no motion to be measured.
    runs = _find_runs(cohort) if num_runs > 0 and cohort.num_frames else []
    if not runs:
        return run
    found = read_json(run.folder, _FILE)
    if found is None:
        chosen = choose_spread(runs, num_runs)
        found = _measure(cohort.store, cohort.version, tuple(chosen))
        write_json(run.folder, _FILE, found)
    return dataclasses.replace(run, cohort=dataclasses.replace(cohort, facts={**cohort.facts, "motion": found}))


def _find_runs(cohort: Cohort) -> list[str]:
    """The training scans that have a time axis, in the split's order."""
    records = {record.scan_id: record for record in ScanStore(cohort.store, version=cohort.version).records()}
    return [scan_id for scan_id in cohort.split.train if len(records[scan_id].shape) == 4]


@functools.lru_cache(maxsize=16)
def _measure(store_uri: str, version: int, scan_ids: tuple[str, ...]) -> dict[str, object]:
    """Seeds of one split share it."""
    store = ScanStore(store_uri, version=version)
    logger.info("measuring the motion of %d training runs", len(scan_ids))
    return describe_range([measure_stored_motion(store, scan_id) for scan_id in scan_ids])

"""Records that actors have made of scans, as they come: in the order in which they are done."""

from __future__ import annotations

import pickle
from collections.abc import Generator
from typing import TYPE_CHECKING

from neuroray.errors import NeurorayError
from neuroray.platform.data.dataset import unwrap_error
from neuroray.storage.features import FeatureRecord

if TYPE_CHECKING:
    import ray.data


def take_records(made: ray.data.Dataset) -> Generator[FeatureRecord]:
    """Runs a dataset whose rows hold, pickled under `made`, a record each, or the fault that a scan raised.

    Raises:
        NeurorayError: whatever a scan raises.
    """
    made.context.enable_progress_bars = False
    made.context.print_on_execution_start = False
    made.context.execution_options.preserve_order = False  # a scan that takes long holds up none that is done
    for record in _unpickle(made):
        if isinstance(record, NeurorayError):
            raise record
        yield record


def _unpickle(made: ray.data.Dataset) -> Generator[FeatureRecord | NeurorayError]:
    try:
        for row in made.iter_rows():
            yield pickle.loads(row["made"])
    except Exception as error:
        raise unwrap_error(error) from error

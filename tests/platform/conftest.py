"""One finished run for all tests that only read it."""

from __future__ import annotations

import pytest
from contracts.finished_run import FinishedRun, make_finished_run, make_store

from neuroray.platform.data.splits import SplitConfig


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Forty people, a third of them judged."""
    folder = tmp_path_factory.mktemp("finished")
    store = make_store(folder / "store")
    return make_finished_run(folder / "run", store, split=SplitConfig(num_parts=3, num_folds=3))

"""Runs with planted coupling, which the tests of this folder only read."""

import pytest
from contracts.planted_runs import make_runs

from neuroray.storage.store import ScanStore


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    store = make_runs(tmp_path_factory.mktemp("planted") / "store")
    return ScanStore(store.uri, version=store.version)

"""`inspect` and `open_scan` show how a scan was prepared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuroray.jobs import inspect
from neuroray.storage.faults import StoreError
from neuroray.storage.labelled import open_scan
from neuroray.storage.profiles import find_profile, prepare
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    """Of one masked run, whose mean in the mask is 100 and whose deviation 5."""
    voxels = np.zeros((4, 7, 7, 7), np.float32)
    voxels[:, 1:-1, 1:-1, 1:-1] = np.array([95, 105, 95, 105]).reshape(4, 1, 1, 1)
    prepared = prepare(Scan(voxels=voxels, affine=np.eye(4)), find_profile("fmri_minimal"))
    made = ScanStore.create(tmp_path / "store")
    made.write(prepared, scan_id="a", subject="s", modality="bold")
    return made


def test_profile_and_statistics_are_shown(store: ScanStore):
    answer = inspect.run(inspect.Args(target=store.uri, scan=("a",)))
    assert "fmri_minimal, 100 ± 5 in 125 brain mask voxels" in str(answer)
    (shown,) = answer.to_json()["scans"]
    assert (shown["profile"], shown["profile_options"]["version"], shown["template"]) == ("fmri_minimal", 1, None)
    assert (shown["statistics"]["num_frames"], shown["statistics"]["max"]) == (4, 105.0)


def test_an_unknown_scan_is_told(store: ScanStore):
    with pytest.raises(StoreError, match=r"no such scans.*b"):
        inspect.run(inspect.Args(target=store.uri, scan=("a", "b")))


def test_a_notebook_has_the_mask_as_a_coordinate(store: ScanStore):
    run = open_scan(f"{store.uri}#a")
    assert run.attrs["profile"] == "fmri_minimal"
    assert run.attrs["statistics"]["mean"] == 100.0
    assert float(run.where(run["mask"]).mean()) == 100.0

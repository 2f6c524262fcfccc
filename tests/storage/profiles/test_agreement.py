"""Scans prepared differently are not mixed, and not given to a model that expects others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts.stored_scans import write

from neuroray.storage.profiles import ProfileError, find_profile, prepare
from neuroray.storage.profiles.agreement import find_common_profile, read_model_profile, require_profile
from neuroray.storage.profiles.stored import StoredProfile
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


@pytest.fixture
def scans(tmp_path: Path) -> ScanStore:
    """Two native runs and one with a mask."""
    store = ScanStore.create(tmp_path / "store")
    voxels = np.random.default_rng(0).normal(100, 5, (3, 7, 7, 7)).astype(np.float32)
    voxels[:, [0, -1]] = voxels[:, :, [0, -1]] = voxels[..., [0, -1]] = 0
    run = Scan(voxels=voxels, affine=np.eye(4))
    for name in ("a", "b"):
        write(store, run, name, modality="bold")
    store.write(prepare(run, find_profile("fmri_minimal")), scan_id="c", subject="s", modality="bold")
    return store


def test_scans_prepared_alike_give_their_profile(scans: ScanStore):
    records = {record.scan_id: record for record in scans.records()}
    assert find_common_profile(scans, [records["a"], records["b"]]) == StoredProfile.of(find_profile("native"))
    assert find_common_profile(scans, [records["c"]]) == StoredProfile.of(find_profile("fmri_minimal"))


def test_a_mixed_cohort_is_refused_with_counts(scans: ScanStore):
    with pytest.raises(ProfileError, match=r"not all prepared alike.*1 fmri_minimal \(\w{8}\), 2 native \(\w{8}\)"):
        find_common_profile(scans, scans.records())


def test_a_model_gets_only_scans_prepared_as_it_expects(scans: ScanStore):
    card = {"profile": StoredProfile.of(find_profile("fmri_minimal")).to_json()}
    require_profile([record for record in scans.records() if record.scan_id == "c"], card)
    with pytest.raises(ProfileError, match=r"given 2 native.*expected fmri_minimal.*--profile fmri_minimal"):
        require_profile(scans.records(), card)


def test_models_of_before_expect_native_scans(scans: ScanStore):
    assert read_model_profile({"format": 1}).restore() == find_profile("native")
    with pytest.raises(ProfileError, match="given 1 fmri_minimal"):
        require_profile(scans.records(), {"format": 1})

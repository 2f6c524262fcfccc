"""Runs that are broken in themselves, met before training starts: refused where nothing can be learned, else told."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from contracts.run_cohort import make_run, tiny, tiny_both, write_run_cohort

from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig, RecipeError
from neuroray.storage.nifti import read_scan, write_scan
from neuroray.storage.participants import Participant
from neuroray.storage.profiles.profile import find_profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.store import ScanStore


def _store_with(folder: Path, voxels: np.ndarray) -> ScanStore:
    """A cohort and one more run, read from a file as an ingest would."""
    store = write_run_cohort(folder / "store", num_people=16)
    run = dataclasses.replace(make_run(3, is_woman=True, cognition=100.0), voxels=voxels)
    write_scan(run, folder / "bad.nii.gz")
    person = Participant(subject="bad", sex="F", cognition=95.0)
    store.write(
        prepare(read_scan(folder / "bad.nii.gz"), find_profile("fmri_minimal")),
        scan_id="bad",
        subject="bad",
        modality="bold",
        participant=person,
    )
    return store


def _good() -> np.ndarray:
    return np.array(make_run(3, is_woman=True, cognition=100.0).voxels, dtype=np.float32)


def test_a_run_without_spread_is_refused_before_training(tmp_path: Path) -> None:
    store = _store_with(tmp_path, np.where(_good() > 0, 500, 0).astype(np.int16))
    with pytest.raises(RecipeError, match=r"1 runs have no spread.*given bad; likely fix.*neuroray remove"):
        fit(tiny(), store=store.uri, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["frozen", "empty", "nan", "infinite"])
def test_broken_frames_and_voxels_are_told_and_train_to_finite_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    voxels = _good()
    if kind == "frozen":
        voxels[3:6] = voxels[2]
    elif kind == "empty":
        voxels[3:6] = 0
    else:
        voxels[2, 5:8, 5:8, 5:8] = np.nan if kind == "nan" else np.inf
    store = _store_with(tmp_path, voxels)
    with pytest.raises(
        RecipeError, match=r"several types.*18 of int16 .*, 1 of float32 \(as bad\).*--loop.batch-size 1"
    ):
        tiny_both().task().prepare(store)
    recipe = tiny_both(loop=LoopConfig(batch_size=1, num_epochs=1))
    with caplog.at_level(logging.WARNING):
        result = fit(recipe, store=store.uri, out=str(tmp_path / "run"))
    assert "1 runs carry flags of the ingest" in caplog.text
    assert "bad" in json.loads((tmp_path / "run/splits.json").read_text())["train"]
    assert np.isfinite(result.best_scores["val_loss"])

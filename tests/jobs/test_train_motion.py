"""`neuroray train` measures how much training runs move, and answers for runs that move more are warned of."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from contracts.run_cohort import tiny, write_run_cohort

from neuroray.jobs import train
from neuroray.platform.quality.run_motion import choose_spread, measure_stored_motion
from neuroray.platform.train.recipe import LoopConfig
from neuroray.serve.predictor import load_predictor


def test_the_range_of_some_training_runs_goes_to_the_model_and_its_answers(tmp_path: Path) -> None:
    store = write_run_cohort(tmp_path / "store", num_people=16)
    recipe = tiny(loop=LoopConfig(batch_size=4, num_epochs=1))
    train.run(train.Args(store=store.uri, out=str(tmp_path / "run"), motion_runs=3), recipe)
    split = json.loads((tmp_path / "run/splits.json").read_text())
    measured = [measure_stored_motion(store, scan_id) for scan_id in choose_spread(split["train"], 3)]
    found = json.loads((tmp_path / "run/model/config.json").read_text())["runs"]["motion"]
    assert found["num_runs"] == 3
    assert found["dvars"] == [min(one.dvars for one in measured), max(one.dvars for one in measured)]
    predictor, scan = load_predictor(str(tmp_path / "run")), store.read(split["train"][0])
    calm = predictor.predict(scan)
    assert not [text for text in calm.warnings if "DVARS" in text]
    # Every other frame brighter by half: the signal jumps, whatever the head does.
    flicker = np.array(scan.voxels)
    flicker[::2] += flicker[::2] // 2
    jumping = predictor.predict(dataclasses.replace(scan, voxels=flicker))
    assert any("DVARS" in text and "in 3 runs of the training" in text for text in jumping.warnings)
    assert jumping.motion is not None
    assert calm.motion is not None
    assert jumping.motion.dvars > calm.motion.dvars


def test_none_is_measured_where_none_is_asked_for(tmp_path: Path) -> None:
    store = write_run_cohort(tmp_path / "store", num_people=12)
    recipe = tiny(loop=LoopConfig(batch_size=4, num_epochs=1))
    train.run(train.Args(store=store.uri, out=str(tmp_path / "run"), motion_runs=0), recipe)
    assert "motion" not in json.loads((tmp_path / "run/model/config.json").read_text())["runs"]
    assert not (tmp_path / "run/motion.json").exists()

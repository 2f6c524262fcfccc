"""A run that loses a worker amid an epoch and goes on with another number of them: the very same samples."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import toy_training
from contracts.toy_training import toy_run
from ray import cloudpickle

from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.train.launch import train_on_ray
from neuroray.platform.train.loop import train_worker, training_plan
from neuroray.platform.train.recipe import ScalingConfig
from neuroray.platform.train.step import TrainingError

WINDOWS = WindowConfig(sampler="random", num_frames=20, per_scan=2)
NUM_EPOCHS, STEPS_PER_EPOCH = 2, 7  # 22 people give 44 windows: six batches of 7, and one of 2

# float32 sums over rows in another order differ by 1e-7 of values near 1, carried on through 14 steps of Adam.
TOLERANCE = 1e-5


def make_run(folder: Path, record: Path, **changes: Any) -> Any:
    return toy_run(
        str(folder),
        num_train=22,
        num_epochs=NUM_EPOCHS,
        select_by="val_loss",
        windows=WINDOWS,
        record_to=str(record),
        **changes,
    )


def read_record(folder: Path) -> list[list[tuple[int, int]]]:
    """The windows of each step of an attempt, those of all ranks one after the other, as far as every rank came."""
    ranks = [path.read_text().splitlines() for path in sorted(folder.iterdir())]
    steps = zip(*([json.loads(line) for line in lines] for lines in ranks), strict=False)
    return [[tuple(window) for part in parts for window in part] for parts in steps]


def weights_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model" / "model.json").read_text())["weights"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # two starts of worker groups: a minute on an idle machine, minutes on a busy one
def test_killed_on_two_workers_and_continued_on_three_it_learns_from_exactly_the_same_samples(
    tmp_path: Path, ray_session: Any
) -> None:
    cloudpickle.register_pickle_by_value(toy_training)  # the workers cannot import from tests
    undisturbed = train_worker(make_run(tmp_path / "whole", tmp_path / "read-whole"))

    two = ScalingConfig(num_workers=2, max_failures=0)
    killed = str(tmp_path / "killed")
    with pytest.raises(TrainingError, match="training failed on the workers"):
        train_on_ray(make_run(tmp_path / "run", tmp_path / "read-by-2", scaling=two, break_at=11, kill_once=killed))
    assert Path(killed).exists(), "rank 1 has killed its process in step 11, the fourth of the second epoch"
    three = ScalingConfig(num_workers=3, max_failures=0)
    continued = train_on_ray(make_run(tmp_path / "run", tmp_path / "read-by-3", scaling=three))

    start = continued.resumed_from
    assert STEPS_PER_EPOCH < start < 2 * STEPS_PER_EPOCH, "in the middle of the second epoch"
    before, after = read_record(tmp_path / "read-by-2"), read_record(tmp_path / "read-by-3")
    assert len(list((tmp_path / "read-by-3").iterdir())) == 3
    assert len(before) > start, "steps after the checkpoint were done, and must not count"
    counted = before[:start] + after
    whole = read_record(tmp_path / "read-whole")
    assert counted == whole, "no sample twice, none lost, the order the same"

    # And that is what the plan says, which knows nothing of workers: two windows of everybody in each epoch.
    run = make_run(tmp_path / "run", tmp_path / "none")
    plan = training_plan(run.recipe, run.cohort)
    planned = [(int(item.scan_id[4:]), item.start) for epoch in range(NUM_EPOCHS) for item in plan.reads(epoch)]
    assert list(chain.from_iterable(counted)) == planned
    assert len(set(planned)) > 44, "the second epoch draws other windows than the first"

    assert continued.num_steps == undisturbed.num_steps == NUM_EPOCHS * STEPS_PER_EPOCH
    for name, values in weights_of(tmp_path / "whole").items():
        found = torch.tensor(weights_of(tmp_path / "run")[name])
        torch.testing.assert_close(found, torch.tensor(values), atol=TOLERANCE, rtol=0)

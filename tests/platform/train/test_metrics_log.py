"""The log: each step once, in a folder or a bucket, and the same numbers for TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neuroray.platform.train.metrics_log import MetricsLog, curve, read_metrics
from neuroray.storage.locations import Location


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        return Location(request.getfixturevalue("s3_bucket")).child("run")
    return Location(str(tmp_path / "run"))


def test_a_log_that_is_opened_again_goes_on_after_the_step_it_is_given(run: Location):
    _log(run, after_step=0, steps=range(1, 6), loss=1.0)
    _log(run, after_step=3, steps=range(4, 7), loss=2.0)
    assert curve(read_metrics(run), "train", "loss") == {1: 1.0, 2: 1.0, 3: 1.0, 4: 2.0, 5: 2.0, 6: 2.0}
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4, 5, 6]


def test_rows_before_a_flush_survive_a_process_that_dies(run: Location):
    log = MetricsLog(run, after_step=0)
    log.append(step=1, epoch=1, split="train", loss=0.5)
    log.flush()
    assert curve(read_metrics(run), "train", "loss") == {1: 0.5}
    log.close()


def test_tensorboard_shows_the_same_numbers_each_step_once(tmp_path: Path):
    run = Location(str(tmp_path))
    _log(run, after_step=0, steps=range(1, 6), loss=1.0)
    _log(run, after_step=3, steps=range(4, 7), loss=2.0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == curve(read_metrics(run), "train", "loss")


def _log(run: Location, *, after_step: int, steps: range, loss: float) -> None:
    with MetricsLog(run, after_step=after_step) as log:
        for step in steps:
            log.append(step=step, epoch=1, split="train", loss=loss)

"""A run from start to end: what is selected, what is logged, and that an interruption changes nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from contracts.toy_training import ToyRecipe, toy_run

from neuroray.platform.train.loop import train_worker, weigh
from neuroray.platform.train.manifest import Progress
from neuroray.platform.train.metrics_log import read_metrics
from neuroray.platform.train.recipe import LoopConfig, OptimConfig, RecipeError
from neuroray.platform.train.step import TrainingError
from neuroray.storage.locations import Location

_TIMES = ("seconds", "samples_per_s")


@pytest.mark.parametrize("average_decay", [None, 0.8])
def test_an_interrupted_run_goes_on_to_the_very_same_numbers(tmp_path: Path, average_decay: float | None):
    """Dropout draws in every step, the optimiser has momentum, the best is remembered: all of it must come back."""
    optim = OptimConfig(lr=0.05, clip_norm=1.0, average_decay=average_decay)
    settings: dict[str, Any] = {"num_epochs": 5, "dropout": 0.3, "optim": optim}
    whole = train_worker(toy_run(str(tmp_path / "whole"), **settings))
    broken = tmp_path / "broken"
    for step in (2, 8, 11):  # before the first checkpoint; between two; once more, some steps after going on
        with pytest.raises(InterruptedError):
            train_worker(toy_run(str(broken), **settings, break_at=step))
    continued = train_worker(toy_run(str(broken), **settings))
    assert 8 < continued.resumed_from < 20
    assert _rows(broken) == _rows(tmp_path / "whole")
    assert continued.best_scores == whole.best_scores
    assert _weights(broken) == _weights(tmp_path / "whole")


def test_each_step_is_logged_once_after_a_torn_line(tmp_path: Path):
    with pytest.raises(InterruptedError):
        train_worker(toy_run(str(tmp_path), break_at=9))
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 9, "epo')
    train_worker(toy_run(str(tmp_path)))
    steps = [row["step"] for row in read_metrics(Location(str(tmp_path))) if row["split"] == "train"]
    assert steps == list(range(1, 17))


def test_a_row_tells_where_it_stands_and_how_fast_it_went(tmp_path: Path):
    train_worker(toy_run(str(tmp_path), num_epochs=2))
    last = [row for row in _all_rows(tmp_path) if row["split"] == "train"][-1]
    assert (last["step"], last["epoch"], last["lr"]) == (8, 2, 0.05)
    assert last["samples_per_s"] == pytest.approx(2 / last["seconds"], rel=0.01)  # the last batch has 23 - 3 * 7 rows
    assert list((tmp_path / "tensorboard").iterdir())


def test_patience_ends_a_run_that_no_longer_gets_better(tmp_path: Path):
    run = toy_run(str(tmp_path), num_epochs=50, patience=2, select_by="val_loss")
    # Steps so large that the loss soon jumps about.
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, optim=OptimConfig(lr=3.0)))
    result = train_worker(run)
    assert result.stopped_early
    assert result.num_steps == result.best_step + 2 * 4
    again = train_worker(run)
    assert (again.num_steps, again.best_step) == (result.num_steps, result.best_step)


def test_the_exported_weights_are_those_of_the_best_evaluation(tmp_path: Path):
    run = toy_run(str(tmp_path), num_epochs=12, keep_checkpoints=1)
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, optim=OptimConfig(lr=1.0)))
    result = train_worker(run)
    losses = {row["step"]: (-row["auc"], row["loss"]) for row in _all_rows(tmp_path) if row["split"] == "val"}
    assert result.best_step == min(losses, key=lambda step: losses[step])
    assert result.best_step < result.num_steps
    stopped = dataclasses.replace(
        run.recipe, loop=dataclasses.replace(run.recipe.loop, num_epochs=result.best_step // 4)
    )
    train_worker(dataclasses.replace(run, recipe=stopped, folder=Location(str(tmp_path / "short"))))
    assert _weights(tmp_path) == _weights(tmp_path / "short")


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_terms(tmp_path: Path):
    run = toy_run(str(tmp_path))
    run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, optim=OptimConfig(lr=1e30)))
    with pytest.raises(TrainingError, match=r"no number at step \d+.*cross_entropy"):
        train_worker(run)


def test_a_folder_with_checkpoints_of_another_recipe_is_refused(tmp_path: Path):
    train_worker(toy_run(str(tmp_path)))
    with pytest.raises(RecipeError, match="another recipe"):
        train_worker(toy_run(str(tmp_path), num_epochs=5))


def test_equal_scores_are_decided_by_the_loss_and_patience_counts():
    config = LoopConfig(select_by="val_auc", patience=2)
    first = weigh(Progress(step=4), {"val_auc": 0.9, "val_loss": 0.5}, checkpoint="a", config=config)
    better = weigh(dataclasses.replace(first, step=8), {"val_auc": 0.9, "val_loss": 0.4}, checkpoint="b", config=config)
    assert (better.best_step, better.best_checkpoint, better.stopped_early) == (8, "b", False)
    worse = {"val_auc": 0.8, "val_loss": 0.1}
    once = weigh(dataclasses.replace(better, step=12), worse, checkpoint="c", config=config)
    twice = weigh(dataclasses.replace(once, step=16), worse, checkpoint="d", config=config)
    assert (once.stopped_early, twice.stopped_early, twice.best_checkpoint) == (False, True, "b")


def test_bfloat16_trains_close_to_float32(tmp_path: Path):
    exact = train_worker(toy_run(str(tmp_path / "fp32")))
    rounded = train_worker(toy_run(str(tmp_path / "bf16"), precision="bf16"))
    assert rounded.best_scores != exact.best_scores
    # bfloat16 has 8 bits: 0.4 % a product, which 16 steps with momentum carry on
    assert rounded.best_scores["val_loss"] == pytest.approx(exact.best_scores["val_loss"], rel=0.1)


def test_workers_and_log_settings_do_not_change_the_identity_of_a_run():
    recipe = ToyRecipe(name="a")
    quiet = dataclasses.replace(recipe, name="b", loop=dataclasses.replace(recipe.loop, log_every_steps=50))
    assert recipe.fingerprint() == quiet.fingerprint()
    assert recipe.fingerprint() != dataclasses.replace(recipe, seed=1).fingerprint()


def _all_rows(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(Location(str(folder)))


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in _TIMES} for row in _all_rows(folder)]


def _weights(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model" / "model.json").read_text())["weights"]

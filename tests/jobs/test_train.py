"""`neuroray train`: any field from the command line, a killed job that goes on, folds, a plan without a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import feature_cohort
from contracts.feature_cohort import MODEL, write_feature_cohort

from neuroray.jobs import train
from neuroray.jobs.cli import UsageError
from neuroray.platform.data.plan import PlanError
from neuroray.platform.train.metrics_log import read_metrics
from neuroray.platform.train.recipe import RecipeError
from neuroray.platform.train.run_folder import read_recipe
from neuroray.storage.features import FeatureStore
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_feature_cohort(tmp_path_factory.mktemp("cohort") / "store")


def command(store: ScanStore, out: Path, *options: str) -> list[str]:
    return [f"{feature_cohort.__file__}:tiny", "--store", store.uri, "--out", str(out), *options]


def test_every_field_can_be_set_and_is_recorded(store: ScanStore, tmp_path: Path):
    answer = train.main(command(store, tmp_path, "--optim.lr", "0.02", "--split.fold", "2", "--workers", "0"))
    assert answer["num_steps"] == 6
    recipe = read_recipe(Location(str(tmp_path)))
    assert (recipe.optim.lr, recipe.split.fold, recipe.loop.num_epochs) == (0.02, 2, 3)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["seed"], record["catalogue_version"]) == ("done", 0, store.version)
    assert record["result"]["best_step"] == answer["best_step"]
    assert record["recipe_fingerprint"] == recipe.fingerprint()
    assert "torch" in record["versions"]


def test_a_run_that_is_done_keeps_its_record(store: ScanStore, tmp_path: Path):
    train.main(command(store, tmp_path))
    record = (tmp_path / "run.json").read_text()
    assert train.main(command(store, tmp_path))["was_finished"]
    with pytest.raises(RecipeError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        train.main(command(store, tmp_path, "--optim.lr", "0.5"))
    assert (tmp_path / "run.json").read_text() == record


def test_another_number_of_workers_is_the_same_run(store: ScanStore, tmp_path: Path):
    train.main(command(store, tmp_path, "--workers", "0"))
    answer = train.main(command(store, tmp_path, "--workers", "3", "--dry-run"))
    assert answer["plans"][0]["recipe"]["scaling"]["num_workers"] == 3
    assert train.main(command(store, tmp_path, "--scaling.cpus-per-worker", "2"))["was_finished"]


def test_windows_that_a_model_cannot_read_are_refused_at_once(store: ScanStore, tmp_path: Path):
    windows = ("--data.windows.sampler", "random", "--data.windows.num-frames", "20")
    with pytest.raises(PlanError, match=r"without frames; likely fix: --data\.windows\.sampler whole"):
        train.main(command(store, tmp_path / "run", *windows))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_sizes_and_steps_and_writes_nothing(store: ScanStore, tmp_path: Path):
    answer = train.main(command(store, tmp_path / "run", "--dry-run"))
    plan = answer["plans"][0]
    channels = MODEL.encoder.resolve_channels(MODEL.slices.image_size)
    attention, embedding = 16 * channels + 16 + 16 + 1, 32 * channels + 32 + 16 * 32 + 16
    assert plan["num_trained_parameters"] == attention + embedding + 2 * 16 + 2
    assert (plan["steps_per_epoch"], plan["num_steps"]) == (2, 6)
    assert plan["cohort"]["counts"]["train"] == {"control": 16, "disease": 16}
    assert plan["cohort"]["left_out"] == 1
    assert '"lr": 0.001' in answer["text"]
    assert not (tmp_path / "run").exists()


def test_all_folds_test_everybody_once(store: ScanStore, tmp_path: Path):
    options = ["--folds", "all", "--split.num-parts", "3", "--split.num-folds", "3"]
    answer = train.main(command(store, tmp_path, *options))
    assert [fold["run"] for fold in answer["folds"]] == [str(tmp_path / f"fold-{k}") for k in range(3)]
    tested = [json.loads((tmp_path / f"fold-{k}" / "splits.json").read_text())["test"] for k in range(3)]
    assert sorted(scan_id for part in tested for scan_id in part) == [f"sub-{number:03d}_T1w" for number in range(40)]


def test_each_seed_is_a_run_of_its_own_on_the_same_people(store: ScanStore, tmp_path: Path):
    answer = train.main(command(store, tmp_path, "--seeds", "4", "7"))
    assert [seed["run"] for seed in answer["seeds"]] == [str(tmp_path / "seed-4"), str(tmp_path / "seed-7")]
    recipes = [read_recipe(Location(seed["run"])) for seed in answer["seeds"]]
    assert [recipe.seed for recipe in recipes] == [4, 7]
    splits = [json.loads((tmp_path / f"seed-{seed}" / "splits.json").read_text()) for seed in (4, 7)]
    assert splits[0] == splits[1]
    losses = [read_metrics(Location(seed["run"]))[0]["loss"] for seed in answer["seeds"]]
    assert losses[0] != losses[1]
    with pytest.raises(UsageError, match="named twice; given 4 4"):
        train.main(command(store, tmp_path, "--seeds", "4", "4"))


def test_extract_makes_the_features_that_are_missing(tmp_path: Path):
    store = write_feature_cohort(tmp_path / "store", num_people=20, with_features=False)
    answer = train.main(command(store, tmp_path / "run", "--extract"))
    features = json.loads((tmp_path / "run" / "run.json").read_text())["features"]
    assert answer["num_steps"] == 3
    assert len(FeatureStore(store, features).records()) == 21


def test_a_recipe_may_stand_in_a_file_of_ones_own(store: ScanStore, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import dataclasses\n"
        "from contracts.feature_cohort import tiny\n"
        "from neuroray.platform.train.recipe import OptimConfig\n"
        "def run():\n"
        "    return dataclasses.replace(tiny(), name='mine', optim=OptimConfig(lr=0.5))\n"
        "def broken():\n"
        "    return 3\n"
    )
    argv = command(store, tmp_path / "run", "--dry-run")
    answer = train.main([f"{tmp_path}/mine.py:run", *argv[1:]])
    assert answer["plans"][0]["recipe"]["optim"]["lr"] == 0.5
    with pytest.raises(UsageError, match="returned no recipe"):
        train.main([f"{tmp_path}/mine.py:broken", *argv[1:]])
    with pytest.raises(UsageError, match=r"has no recipe 'tiny'.*one of broken, run"):
        train.main([f"{tmp_path}/mine.py:tiny", *argv[1:]])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "starts with its recipe.*dinoatten3d:smoke"),
        (["dinoatten:smoke"], "no recipe is called.*dinoatten3d:smoke"),
        (["dinoatten3d:smok"], "one of base, paper, released, smoke"),
        (["./nowhere.py:run"], "no such file of recipes"),
        (["dinoatten3d:smoke", "--store", "s"], "--out"),
        (["dinoatten3d:smoke", "--store", "s", "--out", "o", "--optim.rl", "1"], "optim.rl"),
        (["dinoatten3d:smoke", "--store", "s", "--out", "o", "--optim.lr", "-1"], "optim.lr must be above 0"),
        (["dinoatten3d:smoke", "--store", "s", "--out", "o", "--loop.select-by", "test_auc"], "val_auc"),
    ],
)
def test_wrong_use_says_what_would_be_right(argv: list[str], message: str):
    with pytest.raises((UsageError, RecipeError), match=message):
        train.main(argv)


@pytest.mark.slow
def test_a_job_killed_on_the_way_goes_on_to_the_same_curve(store: ScanStore, tmp_path: Path):
    options = ["--loop.num-epochs", "60", "--loop.checkpoint-every-steps", "7"]
    broken = command(store, tmp_path / "broken", *options)
    tests = str(Path(__file__).parents[1])  # the recipe's file imports from there
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    process = subprocess.Popen([sys.executable, "-m", "neuroray", "train", *broken], env=environment)
    _wait_for_step(tmp_path / "broken", 40)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: their number decides the order of sums, and so the last bits
    try:
        assert 0 < train.main(broken)["resumed_from"] < 120
        train.main(command(store, tmp_path / "whole", *options))
    finally:
        torch.set_num_threads(num_threads)
    assert _rows(tmp_path / "broken") == _rows(tmp_path / "whole")


def _wait_for_step(run: Path, step: int) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until:
        if any(row["step"] >= step for row in read_metrics(Location(str(run)))):
            return
        time.sleep(0.01)
    raise TimeoutError


def _rows(run: Path) -> list[dict[str, Any]]:
    rows = read_metrics(Location(str(run)))
    return [{name: value for name, value in row.items() if name not in ("seconds", "samples_per_s")} for row in rows]

"""`neuroray train --dry-run` without data: what a recipe would take, whether it fits, the exit code that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contracts import run_cohort
from contracts.run_cohort import write_run_cohort

from neuroray.jobs import cli, train
from neuroray.jobs.cli import UsageError


def test_a_recipe_that_fits_needs_no_store_and_ends_with_0(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["train", "brainmt:paper", "--dry-run", "--gpu", "h200"])
    assert leaving.value.code == 0
    told = capsys.readouterr().out
    assert "40,567,233 parameters, 2 windows of 200 frames, 91 x 109 x 91" in told
    assert "fits into 141.00 GB of h200" in told
    assert "operations of a step: 491 TFLOP" in told


def test_one_that_does_not_fit_ends_with_1_and_says_what_would_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["train", "brainmt:paper", "--dry-run", "--device-memory-gb", "8", "--json"])
    assert leaving.value.code == 1
    answer = json.loads(capsys.readouterr().out)["forecast"]
    assert answer["fits"] is False
    assert answer["peak_bytes"] > 8e9
    assert "--optim.passes 2" in {fix["options"] for fix in answer["fixes"]}
    assert sum(answer["flops"]["by_part"].values()) == answer["flops"]["total"]


def test_fields_of_the_recipe_count():
    short = train.main(["brainmt:paper", "--dry-run", "--gpu", "t4", "--data.windows.num-frames", "100"])
    long = train.main(["brainmt:paper", "--dry-run", "--gpu", "t4"])
    assert short["forecast"]["windows"]["num_frames"] == 100
    assert short["forecast"]["peak_bytes"] < long["forecast"]["peak_bytes"]


def test_another_model_is_told_as_far_as_it_is_known():
    answer = train.main(["dinoatten3d:smoke", "--dry-run", "--device-memory-gb", "4"])
    assert answer["exit_code"] == 0
    assert "its activations are not modelled" in answer["text"]
    assert "what is known would fit into 4.00 GB" in answer["text"]


@pytest.mark.parametrize("options", [[], ["--out", "run"]])
def test_a_training_itself_needs_a_store(options: list[str]):
    with pytest.raises(UsageError, match="a training needs a store; expected --store STORE --out RUN"):
        train.main(["brainmt:smoke", *options])


def test_a_dry_run_on_a_store_needs_the_run_s_folder_too():
    with pytest.raises(UsageError, match="--out RUN"):
        train.main(["brainmt:smoke", "--store", "somewhere", "--dry-run"])


def test_with_a_store_its_grid_and_its_longest_run_count(tmp_path: Path):
    store = write_run_cohort(tmp_path / "store", num_people=12)
    lengths = {record.shape[0] for record in store.records() if record.modality == "bold"}
    given = [f"{run_cohort.__file__}:tiny_cognition", "--store", store.uri, "--out", str(tmp_path / "run"), "--dry-run"]
    windows = train.main([*given, "--model.grid-shape", "40", "40", "40"])["forecast"]["windows"]
    assert windows == {"num_frames": 6, "grid_shape": run_cohort.GRID}
    whole = ["--data.windows.sampler", "whole", "--data.windows.num-frames", "None", "--loop.batch-size", "1"]
    answer = train.main([*given, *whole])
    assert answer["forecast"]["windows"]["num_frames"] == max(lengths)
    assert len(answer["plans"]) == 1
    assert not (tmp_path / "run").exists()

"""`neuroray train --init`: a run that starts from another, and recipes that cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contracts.run_cohort import write_run_cohort

from neuroray.jobs import export, train
from neuroray.jobs.cli import UsageError
from neuroray.platform.evaluate.loaded import load_model
from neuroray.platform.evaluate.metrics import EvaluationError

RECIPES = """
from contracts import run_cohort


def pretrain():
    return run_cohort.tiny_pretrain()


def sex():
    return run_cohort.tiny()
"""


def test_a_run_starts_from_another_and_only_where_it_can(tmp_path: Path):
    store = write_run_cohort(tmp_path / "store", num_people=12)
    file = tmp_path / "mine.py"
    file.write_text(RECIPES)
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    options = ["--store", store.uri, "--loop.num-epochs", "1", "--out"]
    answer = train.main([f"{file}:pretrain", *options, first])
    assert answer["best_scores"]["val_ratio"] > 0
    for ask in (
        lambda: load_model(f"{first}/model"),
        lambda: export.run(export.Args(run=first, out=str(tmp_path / "out"))),
    ):
        with pytest.raises(EvaluationError, match=r"has no answers yet.*neuroray train brainmt:probe --init RUN"):
            ask()
    train.main([f"{file}:sex", *options, second, "--init", first])
    recipe = json.loads((tmp_path / "second" / "config.json").read_text())
    assert recipe["start"]["model"] == f"{first}/model"
    assert train.main([f"{file}:sex", *options, second, "--init", first])["was_finished"]
    with pytest.raises(UsageError, match=r"draws its first weights; given --init .* with tiny_pretrain"):
        train.main([f"{file}:pretrain", *options, str(tmp_path / "third"), "--init", first])
    with pytest.raises(UsageError, match="draws its first weights"):
        train.main(["dinoatten3d:smoke", *options, str(tmp_path / "third"), "--init", first])

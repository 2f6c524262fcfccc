"""NeuroAR's two stages as a person runs them: train, extract, train."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts.brain_cohort import write_brain_cohort

from neuroray.config import ConfigError
from neuroray.jobs import extract, train
from neuroray.jobs.cli import UsageError
from neuroray.platform.evaluate.loaded import load_model
from neuroray.platform.evaluate.metrics import EvaluationError

SPLIT = ["--split.num-parts", "4", "--split.num-folds", "2"]


def test_both_stages_from_a_store_to_a_model_folder(tmp_path: Path) -> None:
    store = write_brain_cohort(tmp_path / "store", num_people=4).uri
    first, second = str(tmp_path / "tokenizer"), str(tmp_path / "transformer")
    short = [*SPLIT, "--loop.num-epochs", "1", "--loop.eval-every-epochs", "1"]
    train.main(["neuroar/vqvae:smoke", "--store", store, "--out", first, *short])
    made = extract.run(extract.Args(store=store, recipe="neuroar/transformer:smoke", encoder=first))
    # Of 24 x 24 x 24 voxels: 3 x 3 x 3 at the finest scale, then 2 x 2 x 2, then one token at each of two.
    assert (made["num_extracted"], made["num_present"], made["num_tokens"]) == (7, 0, 37)
    again = extract.run(extract.Args(store=store, recipe="neuroar/transformer:smoke", encoder=first))
    assert (again["num_extracted"], again["num_present"]) == (0, 7)
    answer = train.main(["neuroar/transformer:smoke", "--store", store, "--out", second, "--encoder", first, *short])
    assert answer["best_scores"]["val_loss"] > 0
    assert (tmp_path / "transformer" / "model" / "model.safetensors").is_file()
    for run, words in ((first, "a tokenizer has no answers"), (second, "NeuroAR tells scans, not answers")):
        with pytest.raises(EvaluationError, match=words):
            load_model(f"{run}/model")


def test_a_missing_first_stage_is_told(tmp_path: Path) -> None:
    store = write_brain_cohort(tmp_path / "store", num_people=2).uri
    with pytest.raises(ConfigError, match="made by a tokenizer"):
        extract.run(extract.Args(store=store, recipe="neuroar/transformer:smoke"))
    with pytest.raises(ConfigError, match="in this process"):
        extract.run(extract.Args(store=store, recipe="neuroar/transformer:smoke", workers=2))
    with pytest.raises(UsageError, match="has no first stage"):
        train.main(["brainmt:smoke", "--store", store, "--out", str(tmp_path / "run"), "--encoder", "RUN"])

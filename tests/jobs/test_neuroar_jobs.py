"""NeuroAR's two stages as a person runs them: train, extract, train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.brain_cohort import tiny_tokenizer, write_brain_cohort

from neuroray.config import ConfigError
from neuroray.jobs import extract, train
from neuroray.jobs.cli import UsageError
from neuroray.platform.data.plan import PlanError
from neuroray.platform.data.tokens import extract_tokens, load_tokenizer, open_tokens
from neuroray.platform.evaluate.loaded import load_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

SPLIT = ["--split.num-parts", "4", "--split.num-folds", "2"]
SHORT = LoopConfig(batch_size=3, num_epochs=1, select_by="val_psnr")


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
    with pytest.raises(ConfigError, match="by a trained tokenizer"):
        extract.run(extract.Args(store=store, recipe="neuroar/transformer:smoke", model="config.json"))
    with pytest.raises(UsageError, match="has no first stage"):
        train.main(["brainmt:smoke", "--store", store, "--out", str(tmp_path / "run"), "--encoder", "RUN"])


@pytest.mark.ray
@pytest.mark.slow
def test_actors_make_the_tokens_that_one_process_does_and_go_on_where_others_stopped(
    ray_session: Any, tmp_path: Path
) -> None:
    runs = str(tmp_path / "tokenizer")
    stores = [write_brain_cohort(tmp_path / name, num_people=4) for name in ("here", "there")]
    fit(tiny_tokenizer(loop=SHORT), store=stores[0].uri, out=runs)
    names = [record.scan_id for record in stores[0].records()]
    found = load_tokenizer(runs)
    assert extract_tokens(stores[0], found, names) == names
    first = names[:2]
    extract_tokens(stores[1], found, first)
    args = extract.Args(store=stores[1].uri, recipe="neuroar/transformer:smoke", encoder=runs, workers=2)
    made = extract.run(args)
    assert (made["extracted"], made["num_present"]) == (sorted(set(names) - set(first)), 2)
    here, there = (open_tokens(store, found) for store in stores)
    for name in names:
        assert np.array_equal(here.read(name).features, there.read(name).features)
        # The group's path carries the digest of its arrays: the same bytes, the same path.
        assert here.records()[name].path == there.records()[name].path
    assert extract.run(args)["num_extracted"] == 0


@pytest.mark.ray
@pytest.mark.slow
def test_errors_of_an_actor_arrive_whole_and_what_is_done_stays(ray_session: Any, tmp_path: Path) -> None:
    store = write_brain_cohort(tmp_path / "store", num_people=4)
    runs = str(tmp_path / "tokenizer")
    fit(tiny_tokenizer(loop=SHORT), store=store.uri, out=runs)
    flat = Scan(voxels=np.full((17, 19, 17), 3.0, np.float32), affine=np.diag([4.0, 4.0, 4.0, 1.0]))
    store.write(flat, scan_id="sub-900_T1w", subject="900", modality="T1w")
    args = extract.Args(store=store.uri, recipe="neuroar/transformer:smoke", encoder=runs, workers=1)
    with pytest.raises(PlanError, match="sub-900_T1w"):
        extract.run(args)
    done = open_tokens(ScanStore(store.uri), load_tokenizer(runs)).records()
    assert "sub-900_T1w" not in done
    assert len(done) >= 3  # it is the last of eight; Ray may drop what lies finished behind an error

"""NeuroAR's transformer through the loop: tokens in the store, what it learns, what its folder holds, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.brain_cohort import TOKENIZER, tiny_tokenizer, write_brain_cohort
from contracts.neuroar_ranks import train_run
from contracts.ranks import run_ranks

from neuroray.platform.data.brain_volumes import BrainVolumeReader
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.tokens import (
    TokenError,
    TokenPairReader,
    extract_tokens,
    load_tokenizer,
    open_tokens,
    read_tokens,
)
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.models.neuroar.generate import generate_tokens
from neuroray.platform.train.loop import fit, prepare_run, train_worker
from neuroray.platform.train.recipe import LoopConfig, OptimConfig, RecipeError
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe, use_tokenizer
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.features import FeatureSet
from neuroray.storage.locations import Location
from neuroray.storage.profiles.profile import ProfileError
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_brain_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def tokenizer(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    fit(tiny_tokenizer(), store=store.uri, out=str(folder))
    extract_tokens(store, load_tokenizer(str(folder)), [record.scan_id for record in store.records()])
    return str(folder)


def tiny(tokenizer: str | None, **changes: Any) -> NeuroARRecipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": NeuroARConfig(
            quantiser=TOKENIZER.quantiser, latent_shape=(5, 5, 5), width=32, depth=2, num_heads=2, gamma=0.3
        ),
        "split": tiny_tokenizer().split,
        "optim": OptimConfig(name="adamw", lr=3e-3, clip_norm=2.0),
        "loop": LoopConfig(batch_size=5, num_epochs=12, eval_every_epochs=4, select_by="val_loss"),
        "direction": "both",
        "with_same": True,
        "min_psnr_db": 0.0,
        **changes,
    }
    recipe = NeuroARRecipe(**settings)
    return recipe if tokenizer is None else use_tokenizer(recipe, tokenizer)


@pytest.fixture(scope="module")
def run(store: ScanStore, tokenizer: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(tiny(tokenizer), store=store.uri, out=str(folder))
    return folder


def read_log(folder: Path, split: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def test_tokens_are_made_once_and_are_those_of_the_volume(store: ScanStore, tokenizer: str) -> None:
    found = load_tokenizer(tokenizer)
    assert extract_tokens(store, found, [record.scan_id for record in store.records()]) == []
    cache, scan_id = open_tokens(store, found), store.records()[3].scan_id
    tokens = read_tokens(cache, scan_id, num_tokens=160, num_codes=24)
    volume = BrainVolumeReader(store.uri, store.version, found.grid)(ReadItem(scan_id=scan_id))["volume"]
    assert np.array_equal(tokens, found.model.encode(torch.from_numpy(volume.copy())[None])[0].numpy())
    assert cache.read(scan_id).slice_index.tolist() == [0] * 8 + [1] * 27 + [2] * 125


def test_another_tokenizer_has_tokens_of_its_own(store: ScanStore, tokenizer: str) -> None:
    found = load_tokenizer(tokenizer)
    other = dataclasses.replace(found, sha256="0" * 64)
    assert len(open_tokens(store, other).missing([store.records()[0].scan_id])) == 1


def test_it_learns_and_is_judged_against_copying(run: Path) -> None:
    train, val = read_log(run, "train"), read_log(run, "val")
    assert train[-1]["loss"] < 0.7 * train[0]["loss"]
    assert train[0]["entropy_3"] == pytest.approx(np.log(24), abs=0.3)  # at first all codes are as likely
    assert val[-1]["accuracy"] > val[0]["accuracy"]
    for row in val:
        assert 0 <= row["changed_accuracy"] <= 1
        assert row["error_to_copy"] > 0
    # A quarter of these pairs are a later visit, a quarter an earlier one, and half of them a visit and itself.
    assert val[0]["copy_accuracy"] > 0.5


def test_its_folder_holds_transformer_and_tokenizer(store: ScanStore, run: Path, tokenizer: str) -> None:
    state, card, _ = load_weights(run / "model")
    found = load_tokenizer(tokenizer)
    assert card["tokenizer"]["sha256"] == found.sha256
    assert card["grid_shape"] == [20, 20, 20]
    assert card["gap_range_years"][0] < 0 < card["gap_range_years"][1]
    assert "sub-" not in (run / "model" / "config.json").read_text()
    model = NeuroARConfig.from_json(card["model"]).build().eval()
    model.load_state_dict({n.removeprefix("transformer."): v for n, v in state.items() if n.startswith("transformer.")})
    kept = {n.removeprefix("tokenizer."): v for n, v in state.items() if n.startswith("tokenizer.")}
    assert all(torch.equal(value, kept[name]) for name, value in found.model.state_dict().items())
    tokens = read_tokens(open_tokens(store, found), "sub-003_ses-01_T1w", num_tokens=160, num_codes=24)
    made = generate_tokens(
        model, found.model.quantiser, torch.from_numpy(tokens)[None], torch.tensor([[60.0, 60.0], [60.0, 70.0]])
    )
    assert found.model.decode(made, found.grid).isfinite().all()


def test_the_same_seed_is_the_same_run(store: ScanStore, tokenizer: str, tmp_path: Path) -> None:
    loop = LoopConfig(batch_size=5, num_epochs=1, select_by="val_loss")
    for name in ("one", "other"):
        fit(tiny(tokenizer, loop=loop), store=store.uri, out=str(tmp_path / name))
    one, other = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


@pytest.mark.parametrize("changes", [{"order": "token"}, {"adaln": "none"}, {"previous": "none"}])
def test_ablations_train_and_generate(
    store: ScanStore, tokenizer: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    model = dataclasses.replace(tiny(None).model, **changes)
    loop = LoopConfig(batch_size=5, num_epochs=2, select_by="val_loss")
    fit(tiny(tokenizer, model=model, loop=loop), store=store.uri, out=str(tmp_path))
    first, last = read_log(tmp_path, "val")
    assert last["loss"] < first["loss"]
    assert last["error_to_copy"] > 0  # of what was generated, in the order that the model has


@pytest.mark.slow
def test_two_ranks_train_the_transformer_that_one_process_does(
    store: ScanStore, tokenizer: str, tmp_path: Path
) -> None:
    # Nothing is hidden, for that is drawn rank by rank; of the last batch of each epoch a rank may have no row.
    model = dataclasses.replace(tiny(None).model, age_dropout=0.0, previous_dropout=0.0)
    loop = LoopConfig(batch_size=5, num_epochs=1, select_by="val_loss")
    recipe = tiny(tokenizer, model=model, loop=loop, optim=OptimConfig(name="adamw", lr=1e-3))
    runs = [prepare_run(recipe, store=store.uri, folder=Location(str(tmp_path / name))) for name in ("one", "two")]
    train_worker(runs[0])
    run_ranks(train_run, runs[1])
    one, two = (load_weights(tmp_path / name / "model")[0] for name in ("one", "two"))
    for name, value in one.items():
        # float32 sums in another order, through steps of Adam of 1e-3, which divides by what may be next to nothing.
        torch.testing.assert_close(two[name], value, rtol=1e-2, atol=5e-4, msg=name)
    scores = [read_log(tmp_path / name, "val")[-1] for name in ("one", "two")]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-3)


def test_damaged_tokens_are_errors(store: ScanStore, tokenizer: str) -> None:
    found = load_tokenizer(tokenizer)
    cache = open_tokens(store, dataclasses.replace(found, sha256="1" * 64))
    record = store.records()[0]
    for values in ([3.0, 2.5], [3.0, 24.0], [3.0, -1.0]):
        filled = FeatureSet(
            features=np.array(values, np.float32)[:, None],
            mask=np.ones(2, bool),
            position_mm=np.zeros(2, np.float32),
            slice_index=np.zeros(2, np.int64),
        )
        cache.write(record, filled)
        with pytest.raises(TokenError, match="none of this tokenizer"):
            read_tokens(cache, record.scan_id, num_tokens=2, num_codes=24)
    reader = TokenPairReader(store.uri, store.version, found.fingerprint, {}, num_tokens=160, num_codes=24)
    with pytest.raises(Exception, match="there is no pair"):
        reader(ReadItem(scan_id="a b"))


def test_what_cannot_be_trained_is_refused_with_what_would_help(
    store: ScanStore, tokenizer: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"needs a tokenizer.*neuroar/vqvae"):
        fit(tiny(None), store=store.uri, out=str(tmp_path))
    with pytest.raises(RecipeError, match=r"does not reconstruct well enough.*--min-psnr-db 0"):
        fit(tiny(tokenizer, min_psnr_db=90.0), store=store.uri, out=str(tmp_path))
    with pytest.raises(RecipeError, match="test people have trained or selected the tokenizer"):
        fit(
            tiny(tokenizer, split=dataclasses.replace(tiny_tokenizer().split, fold=1)),
            store=store.uri,
            out=str(tmp_path),
        )
    recipe = tiny(tokenizer)
    assert recipe.tokenizer is not None
    changed = dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, sha256="0" * 64))
    with pytest.raises(RecipeError, match="another one than when the run started"):
        fit(changed, store=store.uri, out=str(tmp_path))
    with pytest.raises(TokenError, match="there is no tokenizer here"):
        tiny(str(tmp_path))
    with pytest.raises(RecipeError, match="selected by its loss"):
        tiny(None, loop=LoopConfig(select_by="val_mae"))


def test_scans_without_tokens_are_named_with_the_command_that_makes_them(tokenizer: str, tmp_path: Path) -> None:
    fresh = write_brain_cohort(tmp_path / "store")
    with pytest.raises(RecipeError, match=r"have no tokens.*neuroray extract.*--encoder"):
        fit(tiny(tokenizer), store=fresh.uri, out=str(tmp_path / "run"))


def test_scans_prepared_otherwise_have_no_tokens(store: ScanStore, tokenizer: str) -> None:
    found = load_tokenizer(tokenizer)
    card = {**found.card, "profile": {**found.card["profile"], "name": "n4", "sha256": "0" * 64}}
    with pytest.raises(ProfileError, match="prepared otherwise"):
        extract_tokens(store, dataclasses.replace(found, card=card), [store.records()[0].scan_id])

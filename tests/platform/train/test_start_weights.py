"""Runs that start from another's encoder: the very weights, tables of other sizes, probes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.run_cohort import MODEL, export_untrained, tiny, tiny_cognition, tiny_pretrain, write_run_cohort
from torch.nn import functional

from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.standardise import standardise
from neuroray.platform.evaluate.loaded import load_window_model
from neuroray.platform.models.brainmt import BrainMT
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig, OptimConfig, RecipeError
from neuroray.platform.train.start_weights import find_start, load_encoder
from neuroray.platform.train.tasks.brainmt import BrainMTRecipe
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.store import ScanStore

ONE = LoopConfig(batch_size=4, num_epochs=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_run_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def pretrained(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("pretrained"))
    loop = LoopConfig(batch_size=4, num_epochs=1, select_by="val_loss")
    fit(tiny_pretrain(seed=7, loop=loop), store=store.uri, out=folder)
    return folder


def encoder_of(folder: str) -> dict[str, torch.Tensor]:
    weights, _, _ = load_weights(f"{folder}/model")
    return {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}


def probe(**changes: Any) -> BrainMTRecipe:
    model = dataclasses.replace(MODEL, pool="mean", head="probe")
    return tiny(**{"model": model, "freeze": "encoder", "loop": ONE, **changes})


def started(recipe: BrainMTRecipe, store: ScanStore) -> BrainMT:
    task = recipe.task()
    module = task.build()
    task.calibrate(module, task.prepare(store))
    return module


def test_a_run_starts_from_the_encoder_bit_for_bit_and_from_a_head_of_its_own(store: ScanStore, pretrained: str):
    recipe = tiny(start=find_start(pretrained))
    drawn, module = recipe.task().build().state_dict(), started(recipe, store).state_dict()
    expected = encoder_of(pretrained)
    assert expected.keys() == {name for name in module if not name.startswith("head.")}
    assert all(torch.equal(module[name], value) for name, value in expected.items())
    assert not torch.equal(module["frame_encoder.stem1.weight"], drawn["frame_encoder.stem1.weight"])
    assert torch.equal(module["head.weight"], drawn["head.weight"])


def test_a_run_on_labels_can_be_started_from_too(store: ScanStore, tmp_path: Path):
    recipe = tiny_cognition()
    folder = export_untrained(dataclasses.replace(recipe, seed=3), store, tmp_path / "model")
    module = started(tiny(start=find_start(str(folder))), store).state_dict()
    weights, _, _ = load_weights(folder)
    assert all(torch.equal(module[name], value) for name, value in weights.items() if not name.startswith("head."))
    assert not torch.equal(module["head.weight"], weights["head.weight"])


def test_what_it_started_from_is_recorded_and_decides_the_run(store: ScanStore, pretrained: str, tmp_path: Path):
    recipe = tiny(start=find_start(pretrained), loop=ONE)
    fit(recipe, store=store.uri, out=str(tmp_path))
    _, source, training = load_weights(f"{pretrained}/model")
    _, _, recorded = load_weights(tmp_path / "model")
    sha256 = json.loads(Path(pretrained, "model", "config.json").read_text())["weights"]["sha256"]
    assert recorded["start"]["weights_sha256"] == sha256
    assert recorded["start"]["recipe_fingerprint"] == training["recipe_fingerprint"]
    assert json.loads((tmp_path / "config.json").read_text())["start"]["recipe"] == "tiny_pretrain"
    assert source["model_name"] == "brainmt_masked"
    assert recipe.fingerprint() != tiny(loop=ONE).fingerprint()
    assert recipe.start is not None
    elsewhere = dataclasses.replace(recipe.start, model="/elsewhere")
    assert dataclasses.replace(recipe, start=elsewhere).fingerprint() == recipe.fingerprint()
    with pytest.raises(RecipeError, match=r"holds another run; given start: "):
        fit(tiny(loop=ONE), store=store.uri, out=str(tmp_path))


def test_test_people_that_were_seen_before_are_counted(
    store: ScanStore, pretrained: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    task = tiny(start=find_start(pretrained)).task()
    with caplog.at_level(logging.WARNING):
        cohort = task.prepare(store)
    split = json.loads(Path(pretrained, "splits.json").read_text())
    expected = len(set(cohort.split.test) & {*split["train"], *split["val"]})
    assert cohort.facts["num_test_seen_before"] == expected > 0
    assert f"{expected} of {len(cohort.split.test)} test scans were trained or selected on" in caplog.text
    same = tiny_pretrain(split=tiny().split, loop=LoopConfig(batch_size=4, num_epochs=1, select_by="val_loss"))
    fit(same, store=store.uri, out=str(tmp_path / "same"))
    caplog.clear()
    cohort = tiny(start=find_start(str(tmp_path / "same"))).task().prepare(store)
    assert cohort.facts["num_test_seen_before"] == 0
    assert "trained or selected on" not in caplog.text
    assert "saw scores by voxel, this one by scan: --standardise.by" in caplog.text


def test_tables_of_another_grid_and_length_are_interpolated_and_the_log_says_so(
    store: ScanStore, pretrained: str, caplog: pytest.LogCaptureFixture
):
    model = dataclasses.replace(MODEL, grid_shape=(33, 20, 18), num_frames=9)
    recipe = tiny(model=model, start=find_start(pretrained))
    with caplog.at_level(logging.INFO):
        module = started(recipe, store)
    source = encoder_of(pretrained)
    space = source["embedding.space"][:, 1:].transpose(1, 2).unflatten(2, (2, 2, 2))
    expected = functional.interpolate(space, (2, 3, 2), mode="trilinear").flatten(2).transpose(1, 2)
    assert torch.equal(module.embedding.space[:, 1:], expected)
    assert torch.equal(module.embedding.space[:, :1], source["embedding.space"][:, :1])
    times = functional.interpolate(source["embedding.time"].transpose(1, 2), 9, mode="linear").transpose(1, 2)
    assert torch.equal(module.embedding.time, times)
    assert "spatial position table of (2, 2, 2) tokens is interpolated to (2, 3, 2)" in caplog.text
    assert "temporal position table of 6 frames is interpolated to 9" in caplog.text


def test_another_architecture_is_refused_with_both_named(store: ScanStore, pretrained: str, tmp_path: Path):
    model = dataclasses.replace(MODEL, width=16, num_heads=4)
    message = (
        r"another than this recipe's; given width 16 in this recipe; num_heads 4 in this recipe; "
        r"expected width 8 as in .*; num_heads 2 as in .*; likely fix: --model\.width 8 --model\.num-heads 2"
    )
    with pytest.raises(RecipeError, match=message):
        fit(tiny(model=model, start=find_start(pretrained)), store=store.uri, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weights_that_were_replaced_or_are_gone_are_refused(store: ScanStore, pretrained: str):
    start = find_start(pretrained)
    with pytest.raises(RecipeError, match="not those that this run started from"):
        load_encoder(tiny().task().build(), dataclasses.replace(start, weights_sha256="0" * 64))
    with pytest.raises(RecipeError, match="is gone"):
        load_encoder(tiny().task().build(), dataclasses.replace(start, model="/nowhere"))


def test_a_start_needs_a_finished_run(store: ScanStore, tmp_path: Path):
    with pytest.raises(RecipeError, match="no run to start from"):
        find_start(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_name": "brainmt"}))
    with pytest.raises(RecipeError, match=r"has no model yet.*the same command again continues it"):
        find_start(str(tmp_path))


def test_a_model_of_slices_is_nothing_to_start_from(store: ScanStore, pretrained: str, tmp_path: Path):
    folder = export_untrained(tiny(), store, tmp_path / "model")
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(card | {"model_name": "dinoatten3d"}))
    with pytest.raises(RecipeError, match="given dinoatten3d in "):
        tiny(start=find_start(str(folder))).task().prepare(store)


def test_each_fold_starts_from_its_own(store: ScanStore, tmp_path: Path):
    for fold in (0, 2):
        export_untrained(tiny(seed=fold), store, tmp_path / f"fold-{fold}" / "model", seed=fold)
        (tmp_path / f"fold-{fold}" / "config.json").write_text(json.dumps({"model_name": "brainmt"}))
    starts = {fold: find_start(str(tmp_path), fold=fold) for fold in (0, 2)}
    assert {fold: start.model for fold, start in starts.items()} == {
        fold: str(tmp_path / f"fold-{fold}" / "model") for fold in (0, 2)
    }
    assert starts[0].weights_sha256 != starts[2].weights_sha256


def test_a_probe_leaves_the_encoder_as_it_was_and_learns_a_head(store: ScanStore, pretrained: str, tmp_path: Path):
    fit(probe(start=find_start(pretrained), optim=OptimConfig(lr=0.1)), store=store.uri, out=str(tmp_path))
    weights, _, _ = load_weights(tmp_path / "model")
    assert all(torch.equal(weights[name], value) for name, value in encoder_of(pretrained).items())
    assert not torch.equal(weights["head.1.weight"], probe().task().build().state_dict()["head.1.weight"])


def test_a_probe_runs_its_encoder_as_in_an_evaluation(store: ScanStore):
    model = dataclasses.replace(MODEL, drop_path=0.9, pool="mean", head="probe")
    task = probe(model=model).task()
    cohort = task.prepare(store)
    module = task.build()
    task.calibrate(module, cohort)
    items = [ReadItem(scan_id=scan_id, start=0, stop=6) for scan_id in cohort.split.val]
    batch = to_torch(task.reader(cohort).read_batch(items))
    first = task.forward(module.eval(), batch)["outputs"]
    assert torch.equal(task.forward(module.train(), batch)["outputs"], first)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {"head.1.weight", "head.1.bias"}


def test_a_probes_scale_is_that_of_the_training_scans_mean_tokens(store: ScanStore):
    task = probe().task()
    cohort = task.prepare(store)
    module = task.build()
    task.calibrate(module, cohort)
    seen = []
    for scan_id in cohort.split.train:
        num_frames = cohort.num_frames[scan_id]
        for start in {*range(0, num_frames - 5, 6), num_frames - 6}:  # the last window is moved back to the run's end
            batch = to_torch(task.reader(cohort).read_batch([ReadItem(scan_id=scan_id, start=start, stop=start + 6)]))
            with torch.no_grad():
                seen.append(module.encode(standardise(batch))[0, 1:].mean(0))
    rows = torch.stack(seen).double()
    state = module.state_dict()
    # float32 means over some 40 numbers of size 1.
    torch.testing.assert_close(state["head.0.mean"], rows.mean(0).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state["head.0.std"], rows.std(0, correction=0).float(), atol=1e-5, rtol=1e-4)


def test_a_probe_is_a_model_like_any_other(store: ScanStore, pretrained: str, tmp_path: Path):
    fit(probe(start=find_start(pretrained)), store=store.uri, out=str(tmp_path))
    model = load_window_model(tmp_path / "model")
    assert model.probe()["outputs"].isfinite().all()
    assert [target.name for target in model.targets] == ["sex"]

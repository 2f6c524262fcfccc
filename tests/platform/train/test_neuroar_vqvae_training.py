"""NeuroAR's tokenizer through the loop: what it learns, who learns from what, being continued, ranks, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.brain_cohort import TOKENIZER, tiny_tokenizer, write_brain_cohort
from contracts.neuroar_ranks import train_run
from contracts.ranks import run_ranks

from neuroray.platform.data.collate import ITEM
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar import VQVAEConfig
from neuroray.platform.models.neuroar.loss import VQVAELossConfig
from neuroray.platform.train.loop import fit, prepare_run, train_worker
from neuroray.platform.train.recipe import DataConfig, LoopConfig, RecipeError
from neuroray.platform.train.tasks.neuroar_vqvae import NeuroARVQVAETask
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

GRID = (20, 20, 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_brain_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(tiny_tokenizer(), store=store.uri, out=str(folder))
    return folder


def read_log(folder: Path, split: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def test_reconstructions_become_better_and_the_codebook_is_used(run: Path) -> None:
    rows = read_log(run, "val")
    assert len(rows) == 12
    assert rows[-1]["psnr_whole"] > rows[0]["psnr_whole"] + 4
    assert rows[-1]["codes_used"] >= 4 / 24
    assert rows[-1]["perplexity_3"] > 2


def test_the_adversary_begins_after_its_epochs(run: Path) -> None:
    rows = read_log(run, "train")
    assert len(rows) == 36
    assert [row["step"] for row in rows if "deceive" in row] == list(range(8 * 3 + 1, 37))


def test_what_is_exported_is_the_tokenizer_with_its_grid(store: ScanStore, run: Path) -> None:
    state, card, _ = load_weights(run / "model")
    assert VQVAEConfig.from_json(card["model"]) == TOKENIZER
    assert card["grid_shape"] == list(GRID)
    assert card["scales"] == [[2, 2, 2], [3, 3, 3], [5, 5, 5]]
    model = TOKENIZER.build()
    model.load_state_dict(state)
    task = tiny_tokenizer().task()
    cohort = task.prepare(store)
    row = task.reader(cohort)(ReadItem(scan_id=cohort.split.val[0]))
    volume = torch.from_numpy(row["volume"].copy())[None]
    rebuilt = model.eval().decode(model.encode(volume), GRID)
    error = ((rebuilt - volume) / 2)[0][torch.from_numpy(row["brain"].copy())].square().mean()
    scores = json.loads((run / "result.json").read_text())["best_scores"]
    others = [float(one) for one in read_log(run, "val")[-1].values() if isinstance(one, float)]
    assert others
    # One of two or three volumes whose mean that score is.
    assert abs(float(-10 * error.log10()) - scores["val_psnr"]) < 3


def make_batch(store: ScanStore, task: NeuroARVQVAETask) -> tuple[Any, dict[str, torch.Tensor]]:
    cohort = task.prepare(store)
    module = task.build()
    task.calibrate(module, cohort)
    rows = [task.reader(cohort)(ReadItem(scan_id=scan_id)) for scan_id in cohort.split.train[:2]]
    batch = {name: torch.stack([torch.from_numpy(row[name].copy()) for row in rows]) for name in rows[0]}
    return module, {**batch, ITEM: torch.arange(2)}


def test_tokenizer_and_adversary_learn_from_their_own_terms_alone(store: ScanStore) -> None:
    recipe = tiny_tokenizer(loss=VQVAELossConfig(adversarial_epochs=0.0, adversarial_weight=0.3))
    task = recipe.task()
    module, batch = make_batch(store, task)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for kept in ("all", "tokenizer", "discriminator"):
        module.load_state_dict(state)
        module.train().zero_grad()
        outputs = task.forward(module, batch)
        if kept == "tokenizer":
            del outputs["discriminate"]
        if kept == "discriminator":
            outputs = {"discriminate": outputs["discriminate"]}
        task.loss(outputs, task.targets(batch))["loss"].backward()
        found[kept] = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert not any(name.startswith("discriminator") for name in found["tokenizer"])
    assert not any(name.startswith("tokenizer") for name in found["discriminator"])
    apart = {**found["tokenizer"], **found["discriminator"]}
    assert apart.keys() == found["all"].keys()
    for name, gradient in found["all"].items():
        assert torch.equal(gradient, apart[name]), name


def test_continued_after_an_interruption_it_is_the_run_that_went_through(
    store: ScanStore, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = NeuroARVQVAETask.forward, []

    def interrupted(self: NeuroARVQVAETask, module: Any, batch: Any) -> Any:
        if module.training:
            calls.append(1)
            if len(calls) == 30:  # behind the checkpoint of step 28, the adversary at work
                raise InterruptedError
        return forward(self, module, batch)

    monkeypatch.setattr(NeuroARVQVAETask, "forward", interrupted)
    with pytest.raises(InterruptedError):
        fit(tiny_tokenizer(), store=store.uri, out=str(tmp_path))
    monkeypatch.undo()
    result = fit(tiny_tokenizer(), store=store.uri, out=str(tmp_path))
    assert result.resumed_from == 28
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_ranks_train_the_tokenizer_that_one_process_does(store: ScanStore, tmp_path: Path) -> None:
    # Batches of 7, the last of one, of which the second rank has none and runs a stand-in.
    loop = LoopConfig(batch_size=7, num_epochs=1, select_by="val_psnr")
    loss = VQVAELossConfig(adversarial_epochs=0.5, discriminator_channels=2)
    runs = []
    for name in ("alone", "together"):
        recipe = tiny_tokenizer(loop=loop, loss=loss)
        runs.append(prepare_run(recipe, store=store.uri, folder=Location(str(tmp_path / name))))
    assert len(runs[0].cohort.split.train) % 7 == 1
    train_worker(runs[0])
    run_ranks(train_run, runs[1])
    alone, together = (load_weights(tmp_path / name / "model")[0] for name in ("alone", "together"))
    assert int(together["quantiser.codebook.num_updates"]) == int(alone["quantiser.codebook.num_updates"]) > 1
    for name, value in alone.items():
        # float32 sums in another order, through steps of Adam of 3e-3, which divides by what may be next to nothing.
        torch.testing.assert_close(together[name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_a_perceptual_network_takes_part(store: ScanStore) -> None:
    loss = VQVAELossConfig(perceptual_weight=1.0, adversarial_weight=0.0, perceptual_slices=1)
    task = tiny_tokenizer(loss=loss).task()
    module, batch = make_batch(store, task)
    terms = task.loss(task.forward(module.train(), batch), task.targets(batch))
    assert float(terms["perceptual"].detach()) > 0
    assert float(terms["loss"].detach()) == pytest.approx(
        sum(float(terms[name].detach()) for name in terms if name != "loss"), rel=1e-5
    )


def test_what_cannot_be_trained_is_refused_before_it_starts(store: ScanStore, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="knows no labels"):
        tiny_tokenizer(loop=LoopConfig(select_by="val_auc"))
    with pytest.raises(RecipeError, match="no classes to balance"):
        tiny_tokenizer(data=DataConfig(target="", sampling="balanced"))
    with pytest.raises(ModelError, match="a multiple of 4"):
        tiny_tokenizer(grid_shape=(20, 20, 18))
    loss = VQVAELossConfig(perceptual_weight=1.0, perceptual_weights="nowhere.pt")
    with pytest.raises(RecipeError, match="weights are not there"):
        fit(tiny_tokenizer(loss=loss), store=store.uri, out=str(tmp_path))

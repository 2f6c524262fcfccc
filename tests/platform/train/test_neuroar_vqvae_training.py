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
from neuroray.platform.train.tasks.neuroar_vqvae import AdversaryConfig, NeuroARVQVAETask
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


def test_the_codebooks_use_is_told_of_every_epoch_of_training(run: Path) -> None:
    rows = [row for row in read_log(run, "train") if "codes_used" in row]
    assert [row["step"] for row in rows] == list(range(3, 37, 3))
    assert 1 / 24 <= rows[-1]["codes_used"] <= 1
    # Perplexity lies between one code and all that are used; the finest scale looks up more than others.
    assert all(1 - 1e-6 <= rows[-1][f"perplexity_{scale}"] <= 24 * rows[-1]["codes_used"] + 1e-6 for scale in (1, 2, 3))


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


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies in the forward pass of this step."""
    forward, calls = NeuroARVQVAETask.forward, []

    def interrupted(self: NeuroARVQVAETask, module: Any, batch: Any) -> Any:
        if module.training:
            calls.append(1)
            if len(calls) == step:
                raise InterruptedError
        return forward(self, module, batch)

    monkeypatch.setattr(NeuroARVQVAETask, "forward", interrupted)


def read_model(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


# Checkpoints every four steps, and of each better evaluation; the adversary begins at step 25, after its 8 epochs of 3.
@pytest.mark.parametrize("step", [10, 26, *(pytest.param(one, marks=pytest.mark.slow) for one in (2, 25, 36))])
def test_killed_at_any_step_it_becomes_the_run_that_went_through(
    store: ScanStore, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    interrupt_at(step, monkeypatch)
    with pytest.raises(InterruptedError):
        fit(tiny_tokenizer(), store=store.uri, out=str(tmp_path))
    monkeypatch.undo()
    result = fit(tiny_tokenizer(), store=store.uri, out=str(tmp_path))
    assert step - 5 < result.resumed_from < step
    assert read_model(tmp_path) == read_model(run)
    ours, theirs = (read_log(folder, "train") for folder in (tmp_path, run))
    for name in ("discriminate", "codes_used", "perplexity_3"):
        assert [row[name] for row in ours if name in row] == [row[name] for row in theirs if name in row]


@pytest.mark.parametrize("damage", ["flip", pytest.param("lose", marks=pytest.mark.slow)])
def test_with_the_newest_checkpoint_damaged_it_goes_on_from_the_one_before(
    store: ScanStore, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    interrupt_at(35, monkeypatch)
    with pytest.raises(InterruptedError):
        fit(tiny_tokenizer(), store=store.uri, out=str(tmp_path))
    monkeypatch.undo()
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1] / "__0_0.distcp"
    if damage == "flip":
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    else:
        newest.unlink()
    result = fit(tiny_tokenizer(), store=store.uri, out=str(tmp_path))
    assert result.resumed_from < int(newest.parent.name.split("-")[1])
    assert read_model(tmp_path) == read_model(run)


def test_the_adversary_learns_by_settings_of_its_own(store: ScanStore, tmp_path: Path) -> None:
    loss = VQVAELossConfig(adversarial_epochs=0.0, discriminator_channels=2)
    loop = LoopConfig(batch_size=3, num_epochs=1, select_by="val_psnr")
    found = []
    for name, adversary in {
        "same": AdversaryConfig(),
        "faster": AdversaryConfig(lr=9e-3, betas=(0.5, 0.9), clip_norm=None),
    }.items():
        fit(tiny_tokenizer(loss=loss, loop=loop, adversary=adversary), store=store.uri, out=str(tmp_path / name))
        found.append(read_log(tmp_path / name, "train"))
    assert all("gradient_norm_discriminator" in row for row in found[0])
    assert not any("gradient_norm_discriminator" in row for row in found[1])
    # The first step's terms are of the same weights; then the adversary has gone another way.
    assert found[0][0]["discriminate"] == found[1][0]["discriminate"]
    assert found[0][-1]["discriminate"] != found[1][-1]["discriminate"]
    with pytest.raises(RecipeError, match="the adversary cannot learn like this"):
        AdversaryConfig(betas=(0.5, 1.0))


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

"""Masked pretraining through the loop: no leak, no label, the same again after an interruption, an honest score."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.ranks import run_ranks
from contracts.run_cohort import MODEL, tiny, tiny_pretrain, write_run_cohort
from contracts.toy_training import train_each
from torch import nn

from neuroray.errors import NeurorayError
from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.standardise import StandardiseConfig
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.models.brainmt import MaskedBrainMTConfig
from neuroray.platform.models.brainmt.masked_windows import MaskedBrainMTOutput
from neuroray.platform.train.loop import fit, prepare_run
from neuroray.platform.train.metrics_log import curve, read_metrics
from neuroray.platform.train.patch_masks import MaskConfig
from neuroray.platform.train.recipe import DataConfig, LoopConfig, RecipeError
from neuroray.platform.train.tasks.brainmt_masked import MaskedBrainMTRecipe, MaskedBrainMTTask
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

TIMES = ("seconds", "samples_per_s")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_run_cohort(tmp_path_factory.mktemp("cohort") / "store")


class Bench:
    """The task on one batch of two windows; keeps what the module was given and what it said."""

    def __init__(self, store: ScanStore, recipe: MaskedBrainMTRecipe) -> None:
        self.task: MaskedBrainMTTask = recipe.task()
        cohort = self.task.prepare(store)
        self.module = self.task.build().eval()
        self.task.calibrate(self.module, cohort)
        items = [ReadItem(scan_id=scan_id, start=1, stop=7) for scan_id in cohort.split.val[:2]]
        self.batch = to_torch(self.task.reader(cohort).read_batch(items))
        self.given: list[torch.Tensor] = []
        self.said: list[torch.Tensor] = []
        self.module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: MaskedBrainMTOutput) -> None:
        self.given.append(inputs[0].clone())
        self.said.append(output.content.detach().clone())

    @torch.no_grad()
    def run(self, **changes: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.task.forward(self.module, {**self.batch, **changes})


def is_hidden(given: torch.Tensor) -> torch.Tensor:
    """Voxels of patches that are filled: all of one frame's cube is exactly 0."""
    found = torch.zeros_like(given, dtype=torch.bool)
    for x in (0, 16):
        for y in (0, 16):
            for z in (0, 16):
                cube = (..., slice(x, x + 16), slice(y, y + 16), slice(z, z + 16))
                found[cube] = (given[cube] == 0).all(-1).all(-1).all(-1)[..., None, None, None]
    return found


@pytest.mark.parametrize("by", ["scan", "voxel"])
def test_what_is_hidden_does_not_reach_the_encoder(store: ScanStore, by: Any):
    bench = Bench(store, tiny_pretrain(standardise=StandardiseConfig(by=by)))
    before = bench.run()
    hidden, voxels = is_hidden(bench.given[0]), bench.batch["voxels"]
    share = hidden.float().mean()
    assert 0.2 < share < 0.8
    noise = torch.randint(300, 900, voxels.shape, dtype=voxels.dtype)
    after = bench.run(voxels=torch.where(hidden, noise, voxels))
    assert torch.equal(bench.said[0], bench.said[1])
    assert not torch.equal(before["error"], after["error"])
    # What is seen does reach it, or the test would prove nothing.
    bench.run(voxels=torch.where(hidden, voxels, noise))
    assert not torch.equal(bench.said[0], bench.said[2])


def test_validation_hides_the_same_whoever_asks_and_training_something_else_each_time(store: ScanStore):
    bench = Bench(store, tiny_pretrain())
    torch.manual_seed(1)
    bench.run()
    torch.manual_seed(2)
    bench.run()
    assert torch.equal(bench.given[0], bench.given[1])
    other = {name: values.flip(0) for name, values in bench.batch.items()}
    with torch.no_grad():
        bench.task.forward(bench.module, other)
    assert torch.equal(bench.given[2], bench.given[0].flip(0))
    bench.module.train()
    bench.run()
    bench.run()
    assert not torch.equal(is_hidden(bench.given[3]), is_hidden(bench.given[4]))
    fixed = Bench(store, tiny_pretrain(mask=MaskConfig(ratio=0.5, block_frames=2, redraw=False)))
    fixed.run()
    fixed.module.train()
    fixed.run()
    assert torch.equal(fixed.given[0], fixed.given[1])


def test_padding_and_lost_frames_are_not_asked_for(store: ScanStore):
    bench = Bench(store, tiny_pretrain())
    voxels = bench.batch["voxels"].clone()
    voxels[:, 5] = 0
    mask = bench.batch["frame_mask"].clone()
    mask[:, 5] = False
    padded = bench.run(voxels=voxels, frame_mask=mask)
    voxels[:, 5] = 500
    again = bench.run(voxels=voxels, frame_mask=mask)
    assert torch.equal(padded["error"], again["error"])
    lost = bench.run(voxels=voxels)
    torch.testing.assert_close(lost["error"], padded["error"])


def test_the_ratio_is_to_the_best_of_what_is_told_without_a_model():
    task = tiny_pretrain().task()
    outputs = {
        "error": torch.tensor([0.5, 0.7]),
        "cell_mean": torch.tensor([1.0, 1.4]),
        "neighbours": torch.tensor([2.0, 2.8]),
        "frame_mean": torch.tensor([0.7, 0.8]),
    }
    scores = task.score(outputs, torch.zeros(2, 1))
    expected = {"ratio": 0.8, "ratio_to_cell_mean": 0.5, "ratio_to_neighbours": 0.25, "ratio_to_frame_mean": 0.8}
    assert scores == pytest.approx(expected)
    assert task.loss(outputs, torch.zeros(2, 1))["loss"].item() == pytest.approx(0.6)


def test_everybody_takes_part_label_or_not(store: ScanStore):
    split = tiny_pretrain().task().prepare(store).split
    assert len({*split.train, *split.val, *split.test}) == 26
    assert split.left_out == ()


def test_people_are_dealt_as_for_the_run_that_follows_where_that_is_asked_for(store: ScanStore):
    wanted = tiny().split
    split = tiny_pretrain(split=wanted).task().prepare(store).split
    assert split.train == tiny().task().prepare(store).split.train
    assert split.left_out == ("sub-900_bold",)


def broken_after(steps: int) -> Any:
    def watch(batches: Iterable[Any], total: int) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == steps:
                raise InterruptedError
            yield batch

    return watch


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in TIMES} for row in read_metrics(Location(str(folder)))
    ]


def test_an_interrupted_pretraining_goes_on_to_the_very_same_numbers(store: ScanStore, tmp_path: Path):
    loop = LoopConfig(batch_size=4, num_epochs=2, select_by="val_loss", checkpoint_every_steps=3)
    recipe = tiny_pretrain(loop=loop)
    whole = fit(recipe, store=store.uri, out=str(tmp_path / "whole"))
    with pytest.raises(InterruptedError):
        fit(recipe, store=store.uri, out=str(tmp_path / "broken"), watch=broken_after(5))
    continued = fit(recipe, store=store.uri, out=str(tmp_path / "broken"))
    assert 0 < continued.resumed_from < whole.num_steps
    assert rows_of(tmp_path / "broken") == rows_of(tmp_path / "whole")
    expected, found = (load_weights(tmp_path / name / "model")[0] for name in ("whole", "broken"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_two_ranks_follow_the_curve_of_one(store: ScanStore, tmp_path: Path):
    """With fixed masks: those of training are drawn by rank."""
    recipe = tiny_pretrain(
        model=MaskedBrainMTConfig(encoder=dataclasses.replace(MODEL, drop_path=0.0), cell_voxels=8),
        mask=MaskConfig(ratio=0.5, block_frames=2, redraw=False),
        loop=LoopConfig(batch_size=3, num_epochs=1, select_by="val_loss"),
    )
    runs = {name: prepare_run(recipe, store=store.uri, folder=Location(str(tmp_path / name))) for name in "ab"}
    train_each([runs["a"]])
    run_ranks(train_each, [runs["b"]])
    one, two = (read_metrics(Location(str(tmp_path / name))) for name in "ab")
    # float32 sums in another order, carried on through 5 or 6 steps of AdamW.
    assert curve(two, "train", "loss") == pytest.approx(curve(one, "train", "loss"), abs=1e-5)
    assert curve(two, "val", "ratio") == pytest.approx(curve(one, "val", "ratio"), abs=1e-5)


def test_the_exported_folder_rebuilds_encoder_and_decoder(store: ScanStore, tmp_path: Path):
    fit(
        tiny_pretrain(loop=LoopConfig(batch_size=4, num_epochs=1, select_by="val_loss")),
        store=store.uri,
        out=str(tmp_path),
    )
    weights, card, training = load_weights(tmp_path / "model")
    module = MaskedBrainMTConfig.from_json(card["model"]).build()
    module.load_state_dict(weights)
    assert not any(name.startswith(("encoder.head", "encoder.final_norm")) for name in weights)
    assert card["mask"]["block_frames"] == 2
    assert training["val_scores"].keys() >= {"val_ratio", "val_loss"}


def test_every_weight_learns():
    module = tiny_pretrain().task().build().eval()
    with torch.no_grad():
        # From 0 on, the tables and the decoder's bias learn in the second step only.
        for parameter in module.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    module(torch.randn(1, 6, 17, 20, 18)).content.square().sum().backward()
    still = [
        name for name, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert still == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loop": LoopConfig(select_by="val_auc")}, "--loop.select-by val_loss"),
        ({"standardise": StandardiseConfig(by="voxel", drift_degree=1)}, "--standardise.drift-degree 0"),
        ({"data": DataConfig(modality="bold")}, "--data.windows.num-frames N"),
        ({"mask": MaskConfig(block_frames=6)}, "blocks of 6 frames in windows of 6"),
        (
            {"data": dataclasses.replace(tiny_pretrain().data, sampling="balanced")},
            "--data.sampling shuffled",
        ),
    ],
)
def test_a_recipe_that_contradicts_itself_says_what_would_be_right(changes: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        tiny_pretrain(**changes)


def test_short_runs_are_refused_or_padded_as_the_recipe_says(tmp_path: Path):
    store = write_run_cohort(tmp_path / "store", num_people=6)
    windows = WindowConfig(sampler="random", num_frames=11)
    data = dataclasses.replace(tiny_pretrain().data, windows=windows)
    with pytest.raises(NeurorayError, match=r"shorter than a window"):
        prepare_run(tiny_pretrain(data=data), store=store.uri, folder=Location(str(tmp_path / "run")))
    padded = dataclasses.replace(data, windows=dataclasses.replace(windows, short="pad"))
    recipe = tiny_pretrain(data=padded, loop=LoopConfig(batch_size=4, num_epochs=1, select_by="val_loss"))
    assert fit(recipe, store=store.uri, out=str(tmp_path / "run")).best_scores["val_loss"] > 0

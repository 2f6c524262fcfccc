"""BrainMT through the loop: what it learns, what is recorded and exported, what is refused before it starts."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.ranks import run_ranks
from contracts.run_cohort import MODEL, tiny, tiny_both, tiny_cognition, write_person, write_run_cohort
from contracts.toy_training import train_each

from neuroray.errors import NeurorayError
from neuroray.platform.data.augment import AugmentConfig
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.data.standardise import StandardiseConfig
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.platform.train.frame_pretraining import PretrainConfig
from neuroray.platform.train.loop import fit, prepare_run
from neuroray.platform.train.metrics_log import curve, read_metrics
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, RecipeError
from neuroray.platform.train.tasks.brainmt import BrainMTTask
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.locations import Location
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

# float32 sums over rows in another order differ by 1e-7 of values near 1, carried on through 5 steps of AdamW.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_run_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.mark.slow
def test_it_learns_a_class_and_a_measure_at_once(store: ScanStore, tmp_path: Path):
    recipe = tiny_both(
        model=dataclasses.replace(MODEL, num_outputs=2, drop_path=0.0), loop=LoopConfig(batch_size=4, num_epochs=26)
    )
    result = fit(recipe, store=store.uri, out=str(tmp_path))
    assert result.best_scores["val_auc"] > 0.9
    rows = read_metrics(Location(str(tmp_path)))
    for name in ("sex", "cognition"):
        losses = list(curve(rows, "train", name).values())
        assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10]), name
    assert max(curve(rows, "val", "cognition_r").values()) > 0.7


def test_means_and_spreads_are_those_of_the_training_scans_alone(store: ScanStore, tmp_path: Path):
    loop = LoopConfig(batch_size=4, num_epochs=1, select_by="val_mae")
    fit(dataclasses.replace(tiny_cognition(), loop=loop), store=store.uri, out=str(tmp_path))
    _, card, training = load_weights(tmp_path / "model")
    split = json.loads((tmp_path / "splits.json").read_text())
    known = {record.scan_id: record.cognition for record in store.records()}
    values = np.array([known[scan_id] for scan_id in split["train"]])
    (target,) = card["targets"]
    assert (target["name"], target["kind"], card["classes"]) == ("cognition", "number", [])
    assert (target["mean"], target["std"]) == pytest.approx((values.mean(), values.std()), rel=1e-12)
    assert target["mean"] != pytest.approx(np.mean([value for value in known.values() if value is not None]), rel=1e-6)
    assert split["left_out"] == ["sub-901_bold"]
    # In the target's own unit: nobody is 40 points off, as a score of 0 to 3 would be from a value near 100.
    assert 0.5 < training["val_scores"]["val_mae"] < 40


def test_the_exported_folder_alone_rebuilds_the_model(store: ScanStore, tmp_path: Path):
    fit(tiny_both(loop=LoopConfig(batch_size=4, num_epochs=1)), store=store.uri, out=str(tmp_path))
    weights, card, training = load_weights(tmp_path / "model")
    model = BrainMTConfig.from_json(card["model"]).build()
    model.load_state_dict(weights)
    assert (card["target"], card["classes"]) == ("sex", ["F", "M"])
    assert [target["name"] for target in card["targets"]] == ["sex", "cognition"]
    assert card["windows"] | {"sampler": "cover", "num_frames": 6} == card["windows"]
    assert card["runs"]["repetition_time_s"] == [2.0, 2.0]
    assert card["runs"]["grid_shapes"] == [[17, 20, 18]]
    assert card["profile"]["options"]["name"] == "fmri_minimal"
    assert sum(training["split_counts"]["train"].values()) == 15


@pytest.mark.slow
def test_two_ranks_follow_the_curve_of_one_for_five_steps(store: ScanStore, tmp_path: Path):
    """Two passes a step, averaged weights, noise off: what is drawn differs by rank, what is learned must not."""
    recipe = tiny_both(
        model=dataclasses.replace(MODEL, num_outputs=2, drop_path=0.0),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0, passes=2, average_decay=0.9),
        loop=LoopConfig(batch_size=3, num_epochs=1, select_by="val_loss"),
    )
    runs = {
        name: prepare_run(recipe, store=store.uri, folder=Location(str(tmp_path / name))) for name in ("one", "two")
    }
    train_each([runs["one"]])
    run_ranks(train_each, [runs["two"]])
    one, two = (read_metrics(Location(str(tmp_path / name))) for name in ("one", "two"))
    for name in ("loss", "sex", "cognition", "gradient_norm"):
        expected = curve(one, "train", name)
        assert len(expected) == 5
        assert curve(two, "train", name) == pytest.approx(expected, abs=TOLERANCE)
    assert curve(two, "val", "loss") == pytest.approx(curve(one, "val", "loss"), abs=TOLERANCE)
    expected, found = (load_weights(tmp_path / name / "model")[0] for name in ("one", "two"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=TOLERANCE, rtol=0)


def test_passes_add_up_to_the_step_of_the_whole_batch(store: ScanStore, tmp_path: Path):
    curves = []
    for passes in (1, 3):
        recipe = tiny(
            model=dataclasses.replace(MODEL, drop_path=0.0),
            optim=OptimConfig(lr=1e-3, passes=passes),
            loop=LoopConfig(batch_size=4, num_epochs=1),
        )
        fit(recipe, store=store.uri, out=str(tmp_path / str(passes)))
        curves.append(curve(read_metrics(Location(str(tmp_path / str(passes)))), "train", "loss"))
    assert len(curves[0]) == 4
    assert curves[1] == pytest.approx(curves[0], abs=TOLERANCE)


def test_augmentation_changes_training_and_not_validation(store: ScanStore, tmp_path: Path):
    rows = {}
    for name, settings in {"plain": AugmentConfig(), "changed": AugmentConfig(noise=0.5, drop_frames=0.3)}.items():
        recipe = tiny(augment=settings, optim=OptimConfig(lr=1e-12), loop=LoopConfig(batch_size=4, num_epochs=1))
        fit(recipe, store=store.uri, out=str(tmp_path / name))
        rows[name] = read_metrics(Location(str(tmp_path / name)))
    assert curve(rows["plain"], "train", "loss") != curve(rows["changed"], "train", "loss")
    assert curve(rows["changed"], "val", "loss") == pytest.approx(curve(rows["plain"], "val", "loss"), abs=1e-6)


@pytest.mark.parametrize(("freeze", "held"), [("nothing", ()), ("frames", ("frame_encoder",)), ("encoder", ("",))])
def test_labels_teach_what_the_recipe_says_of_what_was_pretrained(
    store: ScanStore, tmp_path: Path, freeze: Any, held: tuple[str, ...]
):
    recipe = tiny(
        freeze=freeze,
        standardise=StandardiseConfig(by="voxel", drift_degree=1),
        pretrain=PretrainConfig(num_epochs=2),
        loop=LoopConfig(batch_size=4, num_epochs=1),
    )
    task, cohort = recipe.task(), recipe.task().prepare(store)
    fresh, pretrained = task.build(), task.build()
    task.calibrate(pretrained, cohort)
    fit(recipe, store=store.uri, out=str(tmp_path))
    learned = load_weights(tmp_path / "model")[0]
    for name, value in pretrained.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]) == (not name.startswith("frame_encoder.")), name
        is_held = name.startswith(held) and not name.startswith("head.") if held else False
        assert torch.equal(value, learned[name]) == is_held, name


def test_pretraining_reads_the_training_people_alone(store: ScanStore, monkeypatch: pytest.MonkeyPatch):
    recipe = tiny(standardise=StandardiseConfig(by="voxel"), pretrain=PretrainConfig(num_epochs=1))
    task, seen = recipe.task(), set()
    cohort = task.prepare(store)
    read = WindowReader.read_batch

    def note(self: WindowReader, items: Any, buffers: Any = None) -> Any:
        seen.update(item.scan_id for item in items)
        return read(self, items, buffers)

    monkeypatch.setattr(WindowReader, "read_batch", note)
    task.calibrate(task.build(), cohort)
    assert seen == set(cohort.split.train)


@pytest.mark.parametrize(
    "changes", [{"augment": AugmentConfig(flip_sign=True)}, {"pretrain": PretrainConfig(num_epochs=1)}]
)
def test_what_only_fluctuations_allow_is_refused_of_scores_by_scan(changes: dict[str, Any]):
    with pytest.raises(RecipeError, match=r"--standardise\.by voxel"):
        tiny(**changes)
    assert tiny(**changes, standardise=StandardiseConfig(by="voxel"))
    with pytest.raises(RecipeError, match="hidden_share 1"):
        PretrainConfig(hidden_share=1.0)


def test_windows_of_a_scan_are_averaged_before_they_are_scored():
    task = tiny_cognition().task()
    task._targets = _cohort_targets(mean=100.0, std=10.0)
    outputs = torch.tensor([[-1.0], [0.0], [2.0], [1.0], [1.0]])
    columns = torch.tensor([[90.0, 0], [90.0, 0], [110.0, 1], [110.0, 1], [120.0, 2]])
    # Scans are said to be 95, 115 and 110, and are 90, 110 and 120.
    scores = task.score({"outputs": outputs}, columns)
    assert scores["mae"] == pytest.approx(20 / 3)
    assert scores["r"] == pytest.approx(np.corrcoef([95, 115, 110], [90, 110, 120])[0, 1])


def test_a_missing_value_counts_in_no_term():
    task = tiny_both().task()
    task._targets = (*_class_targets(), *_cohort_targets(mean=0.0, std=1.0))
    nan = float("nan")
    outputs = torch.tensor([[0.3, 2.0], [-0.4, 5.0]], requires_grad=True)
    terms = task.loss({"outputs": outputs}, torch.tensor([[1.0, nan, 0], [nan, 4.0, 1]]))
    # Class 1 counts three times as much, but is alone here.
    assert terms["sex"].item() == pytest.approx(np.log1p(np.exp(-0.3)), rel=1e-6)
    assert terms["cognition"].item() == pytest.approx(1.0)
    terms["loss"].backward()
    assert outputs.grad is not None
    assert (outputs.grad == 0).tolist() == [[False, True], [True, False]]
    nobody = task.loss({"outputs": outputs}, torch.tensor([[1.0, nan, 0], [0.0, nan, 1]]))
    assert nobody["cognition"].item() == 0


def test_who_has_no_label_is_left_out_and_counted(store: ScanStore, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        cohort = tiny().task().prepare(store)
    assert cohort.split.left_out == ("sub-900_bold",)
    assert "1 scans have no sex and are left out" in caplog.text
    both = tiny_both().task().prepare(store)
    assert both.split.left_out == ()
    values = {target.name: target.values for target in both.targets}
    assert "sub-900_bold" not in values["sex"]
    assert "sub-901_bold" not in values["cognition"]


def test_a_control_experiment_learns_the_labels_as_dealt_anew(store: ScanStore):
    recipe = tiny_cognition()
    split = dataclasses.replace(recipe.split, shuffle_labels_seed=3)
    cohort = dataclasses.replace(recipe, split=split).task().prepare(store)
    truth = {record.scan_id: record.cognition for record in store.records()}
    values = cohort.targets[0].values
    assert sorted(values.values()) == sorted(value for value in truth.values() if value is not None)
    assert sum(values[scan_id] != truth[scan_id] for scan_id in values) > 10


def test_what_is_odd_about_runs_is_said_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = write_run_cohort(tmp_path / "store", num_people=20)
    write_person(store, 30, commit=True, repetition_time_s=None)
    for number in (31, 33, 35, 37):
        write_person(store, number, commit=True, repetition_time_s=0.8)
    with caplog.at_level(logging.WARNING):
        cohort = tiny().task().prepare(store)
    assert "1 runs do not say their repetition time" in caplog.text
    assert "repetition times differ, 0.8 to 2 s" in caplog.text
    assert cohort.facts["repetition_time_s"] == [0.8, 2.0]


def test_short_runs_are_refused_or_padded_as_the_recipe_says(store: ScanStore, tmp_path: Path):
    windows = WindowConfig(sampler="random", num_frames=11)
    data = dataclasses.replace(tiny().data, windows=windows)
    with pytest.raises(NeurorayError, match=r"shorter than a window.*--data\.windows\.short pad"):
        fit(tiny(data=data), store=store.uri, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    padded = dataclasses.replace(data, windows=dataclasses.replace(windows, short="pad"))
    result = fit(
        tiny(data=padded, loop=LoopConfig(batch_size=4, num_epochs=1)), store=store.uri, out=str(tmp_path / "run")
    )
    assert np.isfinite(result.best_scores["val_loss"])


def _store_with(tmp_path: Path, change: Callable[[ScanStore], Any]) -> ScanStore:
    store = write_run_cohort(tmp_path / "store", num_people=12)
    change(store)
    return store


def _add_volume(store: ScanStore) -> None:
    store.write(
        Scan(voxels=np.ones((5, 6, 7), np.float32), affine=np.eye(4)), scan_id="v", subject="v", modality="bold"
    )


def test_volumes_among_the_runs_are_refused(tmp_path: Path):
    store = _store_with(tmp_path, _add_volume)
    with pytest.raises(RecipeError, match=r"1 of 15 bold scans have no frames.*given v of shape 5 x 6 x 7"):
        tiny().task().prepare(store)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (tiny(data=dataclasses.replace(tiny().data, modality="T1w")), "no scans to train on.*26 scans of bold"),
        (tiny(model=dataclasses.replace(MODEL, num_outputs=2)), "--model.num-outputs 1"),
        (tiny(data=dataclasses.replace(tiny().data, classes=("F",))), "one class of sex"),
        (
            dataclasses.replace(
                tiny_cognition(),
                regress=("sex",),
                data=dataclasses.replace(tiny().data, target="sex"),
                split=SplitConfig(stratify_by="sex", num_bins=2),
            ),
            "sex is a class, not a measure",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(
    store: ScanStore, tmp_path: Path, recipe: Recipe, message: str
):
    with pytest.raises(RecipeError, match=message):
        fit(recipe, store=store.uri, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_constant_measure_is_refused(tmp_path: Path):
    store = ScanStore.create(tmp_path / "store")
    store.commit([write_person(store, number, cognition=99.0) for number in range(12)])
    split = SplitConfig(stratify_by="cognition", num_bins=1, num_parts=5)
    task = dataclasses.replace(tiny_cognition(), split=split).task()
    with pytest.raises(RecipeError, match="cognition is the same for all training scans"):
        task.prepare(store)


def test_several_grids_need_batches_of_one(tmp_path: Path):
    store = write_run_cohort(tmp_path / "store", num_people=12)
    run = Scan(voxels=np.ones((9, 5, 6, 7), np.int16), affine=np.eye(4), repetition_time_s=2.0)
    from neuroray.storage.profiles.profile import find_profile
    from neuroray.storage.profiles.steps import prepare

    store.write(prepare(run, find_profile("fmri_minimal")), scan_id="other", subject="other", modality="bold")
    with pytest.raises(RecipeError, match=r"several grids.*14 of 17 x 20 x 18, 1 of 5 x 6 x 7.*--loop\.batch-size 1"):
        tiny().task().prepare(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classify": ("diagnosis",)}, "--classify sex, or --regress sex"),
        ({"split": SplitConfig(stratify_by="diagnosis")}, "--split.stratify-by sex"),
        ({"split": SplitConfig(stratify_by="sex", num_bins=3)}, "--split.num-bins None"),
        ({"loop": LoopConfig(select_by="val_r", batch_size=2)}, "--loop.select-by val_auc"),
        ({"data": DataConfig(target="sex")}, "whole runs differ in length"),
    ],
)
def test_a_recipe_that_contradicts_itself_says_what_would_be_right(changes: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        tiny(**changes)


def test_tables_token_and_decay_rates_do_not_decay():
    task = tiny().task()
    module = task.build()
    names = set(task.undecayed(module))
    wide = {name for name, parameter in module.named_parameters() if parameter.ndim >= 2}
    assert names < wide
    assert {name.rsplit(".", 1)[-1] for name in names} == {"cls", "space", "time", "log_decay"}
    assert all("conv" in name or name.endswith("weight") for name in wide - names)


def _cohort_targets(*, mean: float, std: float) -> tuple[Any, ...]:
    from neuroray.platform.data.targets import Target

    return (Target(name="cognition", kind="number", mean=mean, std=std),)


def _class_targets() -> tuple[Any, ...]:
    from neuroray.platform.data.targets import Target

    return (Target(name="sex", kind="class", classes=("F", "M"), class_weights=(1.0, 3.0)),)


def test_the_task_is_that_of_the_recipe():
    assert isinstance(tiny().task(), BrainMTTask)

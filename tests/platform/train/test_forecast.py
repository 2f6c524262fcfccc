"""The forecast of a recipe: parts that add up, ranks that share, devices that are too small, and what would help."""

from __future__ import annotations

import dataclasses

import pytest

from neuroray.jobs.recipes import load_recipe
from neuroray.platform.train.devices import Device, choose_device
from neuroray.platform.train.forecast import Windows, forecast
from neuroray.platform.train.recipe import RecipeError, ScalingConfig
from neuroray.platform.train.tasks.brainmt import BrainMTRecipe


def paper(**changes: object) -> BrainMTRecipe:
    recipe = load_recipe("brainmt:paper")
    assert isinstance(recipe, BrainMTRecipe)
    return dataclasses.replace(recipe, **changes)


def gpu(memory_gb: float) -> Device:
    return Device(name="made up", is_gpu=True, memory_bytes=int(memory_gb * 1e9))


def test_the_paper_s_model_on_200_frames_is_predicted_below_12_gb():
    recipe = paper(loop=dataclasses.replace(paper().loop, batch_size=1))
    found = forecast(recipe, gpu(141))
    assert found.num_parameters == 40_567_233
    assert found.state["parameters"] == 4 * 40_567_233
    assert found.state["optimiser state"] == 8 * 40_567_233
    assert found.windows == Windows(num_frames=200, grid_shape=(91, 109, 91))
    assert found.peak_bytes is not None
    assert found.peak_bytes < 12e9
    assert found.fits
    assert not found.fixes
    # Worked out by hand: 52.8 GFLOP of convolutions for each frame, forward, again and twice backward less the first.
    assert found.flops is not None
    assert found.flops.by_part["conv stage"] == pytest.approx(4 * 10.557e12, rel=0.005)
    most, parts = next(iter(found.peaks.items()))
    assert sum(parts.values()) == found.peak_bytes, most
    assert parts["standardised windows"] == 4 * 200 * 91 * 109 * 91


def test_what_does_not_fit_comes_with_changes_that_do():
    found = forecast(paper(), gpu(8))
    assert found.fits is False
    assert found.peak_bytes is not None
    assert found.peak_bytes > 0.92 * 8e9
    told = dict(found.fixes)
    assert {"--optim.passes 2", "--loop.batch-size 1", "--workers 2"} <= told.keys()
    assert all(peak <= 0.92 * 8e9 for peak in told.values())
    # Each is what the same recipe with that change is predicted to take.
    changed = paper(optim=dataclasses.replace(paper().optim, passes=2))
    assert forecast(changed, gpu(8)).peak_bytes == told["--optim.passes 2"]


def test_where_no_change_suffices_several_are_put_together():
    recipe = paper(model=dataclasses.replace(paper().model, checkpoint=False))
    found = forecast(recipe, gpu(5))
    ((options, peak),) = found.fixes
    assert options.startswith("--model.checkpoint ")
    assert "--model.frames-at-once 1 --optim.passes 2" in options
    assert peak <= 0.92 * 5e9
    assert forecast(recipe, gpu(1)).fixes == ()


def test_chunks_of_frames_matter_where_convolutions_are_the_largest():
    model = dataclasses.replace(paper().model, frames_at_once=None)
    found = forecast(paper(model=model), gpu(14))
    assert next(iter(found.peaks)) == "convolutions"
    assert any(options.startswith("--model.frames-at-once ") for options, _ in found.fixes)


def test_ranks_share_parameters_and_rows():
    alone = forecast(paper(), gpu(141))
    recipe = paper(scaling=ScalingConfig(num_workers=2, use_gpu=True))
    shared = forecast(recipe, gpu(141))
    assert (alone.num_windows, shared.num_windows) == (2, 1)
    assert shared.state["parameters"] == (alone.state["parameters"] + 1) // 2
    parts = next(iter(shared.peaks.values()))
    # What is not a layer of the sequence stays gathered from the forward pass on: 10.36 million parameters.
    assert parts["parameters gathered from all ranks"] > 2 * 4 * 10_357_185


def test_an_average_of_the_weights_is_counted():
    recipe = paper(optim=dataclasses.replace(paper().optim, average_decay=0.999))
    assert forecast(recipe, gpu(141)).state["average of the weights"] == 4 * 40_567_233


def test_of_another_model_what_is_known_is_told():
    found = forecast(load_recipe("dinoatten3d:smoke"), gpu(1))
    assert found.num_parameters > 0
    assert found.state["optimiser state"] == 8 * found.num_parameters
    assert (found.peak_bytes, found.flops, found.fits) == (None, None, None)


def test_devices_are_named_told_or_found():
    scaling = ScalingConfig()
    assert choose_device(scaling, gpu="H200") == Device(name="h200", is_gpu=True, memory_bytes=141_000_000_000)
    told = choose_device(scaling, memory_gb=2.5)
    assert (told.is_gpu, told.memory_bytes) == (False, 2_500_000_000)
    here, half = choose_device(scaling), choose_device(ScalingConfig(num_workers=2))
    assert here.memory_bytes is not None
    assert half.memory_bytes == here.memory_bytes // 2
    with pytest.raises(
        RecipeError, match=r"no such GPU is known; given h3000; expected one of b200, .*--device-memory"
    ):
        choose_device(scaling, gpu="h3000")
    with pytest.raises(RecipeError, match="a device has memory"):
        choose_device(scaling, memory_gb=0)

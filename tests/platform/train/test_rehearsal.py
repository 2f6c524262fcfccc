"""Rehearsals of NeuroAR's steps against what torch allocates, and what the forecast makes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from contracts.brain_cohort import TOKENIZER, tiny_tokenizer
from contracts.step_memory import measure_highest

from neuroray.jobs import train
from neuroray.jobs.recipes import load_recipe
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.models.neuroar.generate import generate_tokens
from neuroray.platform.models.neuroar.loss import VQVAELossConfig
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.train.devices import Device
from neuroray.platform.train.forecast import forecast
from neuroray.platform.train.recipe import LoopConfig, Recipe, ScalingConfig
from neuroray.platform.train.rehearsal import rehearse, trace_peak
from neuroray.platform.train.task import RehearsableTask
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe

GRID = (28, 24, 20)


def tokenizer(*, checkpoint: bool = False, precision: str = "fp32", **loss: Any):
    losses = VQVAELossConfig(adversarial_epochs=0.0, discriminator_channels=4, **loss)
    loop = LoopConfig(batch_size=3, select_by="val_psnr", precision=precision)  # type: ignore[arg-type]
    return tiny_tokenizer(model=dataclasses.replace(TOKENIZER, checkpoint=checkpoint), loss=losses, loop=loop)


def transformer(**changes: Any) -> NeuroARRecipe:
    model = NeuroARConfig(
        quantiser=TOKENIZER.quantiser, latent_shape=(7, 6, 5), width=48, depth=3, num_heads=3, **changes
    )
    return NeuroARRecipe(model=model, loop=LoopConfig(batch_size=3, select_by="val_loss"))


def measure_step(recipe: Recipe, num_rows: int, *, training: bool = True) -> int:
    """What torch allocates in the task's own step on tensors that are there, parameters left out."""
    task = recipe.task()
    assert isinstance(task, RehearsableTask)
    module, make_batch = task.stand_ins(GRID)
    module.train(training)

    def run() -> None:
        with torch.set_grad_enabled(training):
            batch = make_batch(num_rows)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.loop.precision == "bf16"):
                outputs = task.forward(module, batch)
            loss = task.loss({name: value.float() for name, value in outputs.items()}, task.targets(batch))["loss"]
            if training:
                loss.backward()

    run()
    module.zero_grad(set_to_none=True)
    return measure_highest(run)


@pytest.mark.parametrize(
    "recipe",
    [
        tokenizer(),
        tokenizer(checkpoint=True),
        tokenizer(checkpoint=True, precision="bf16"),
        tokenizer(adversarial_weight=0.0),
        transformer(),
        transformer(previous="sequence"),
        transformer(adaln="shared"),
    ],
    ids=["tokenizer", "checkpoint", "bf16", "no_adversary", "transformer", "sequence", "shared"],
)
def test_a_rehearsed_step_holds_what_torch_allocates(recipe: Recipe) -> None:
    held = rehearse(recipe, 3, grid=GRID, training=True, on_gpu=False)
    # What a convolution lays out anew is no tensor of ours: 1.7 to 2.2 of its widest map were seen, 2 are counted.
    assert measure_step(recipe, 3) == pytest.approx(sum(held.peak(1)) + held.laid_out, rel=0.05)


@pytest.mark.parametrize("recipe", [tokenizer(), transformer()], ids=["tokenizer", "transformer"])
def test_a_rehearsed_validation_holds_what_torch_allocates(recipe: Recipe) -> None:
    held = rehearse(recipe, 3, grid=GRID, training=False, on_gpu=False)
    # Forward alone a convolution lays out 1.3 of its widest map; counted are 2 as well, a seventh of it all too much.
    assert measure_step(recipe, 3, training=False) == pytest.approx(sum(held.peak(1)) + held.laid_out, rel=0.16)


def test_generation_holds_what_torch_allocates() -> None:
    config = transformer().model

    def tell(module: Any) -> None:
        quantiser = MultiScaleQuantiser(config.quantiser).eval()
        generate_tokens(module, quantiser, torch.zeros(1, config.num_tokens, dtype=torch.int64), torch.ones(2, 2))

    module = config.build().eval()
    tell(module)
    with torch.no_grad():
        measured = measure_highest(lambda: tell(module))
    assert measured == pytest.approx(trace_peak(config.build, tell), rel=0.1)


def test_checkpoints_hold_less_and_compute_again() -> None:
    plain, again = (
        rehearse(tokenizer(checkpoint=one), 2, grid=GRID, training=True, on_gpu=True) for one in (False, True)
    )
    assert sum(again.peak(1)) < 0.8 * sum(plain.peak(1))
    assert sum(plain.flops["again"].values()) == 0
    assert 0 < sum(again.flops["again"].values()) < sum(again.flops["forward"].values())
    assert again.flops["forward"] == plain.flops["forward"]


def test_operations_of_convolutions_are_those_counted_layer_by_layer() -> None:
    recipe = tokenizer(adversarial_weight=0.0)
    held = rehearse(recipe, 1, grid=GRID, training=False, on_gpu=False)
    assert held.flops["backward"] == dict.fromkeys(held.flops["backward"], 0)
    counted = []

    def count(layer: Any, _: Any, made: torch.Tensor) -> None:
        counted.append(2 * made.numel() * layer.in_channels * layer.kernel_size[0] ** 3)

    model = recipe.model.build().eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv3d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *GRID))
    refiners = 3 * 2 * (7 * 6 * 5) * 6 * 6 * 27  # which run as functions, once a scale
    assert held.flops["forward"]["convolutions"] == sum(counted) + refiners


@pytest.mark.slow
def test_the_papers_transformer_trains_on_eight_ranks_of_24_gb() -> None:
    recipe = load_recipe("neuroar/transformer:paper")
    recipe = dataclasses.replace(recipe, scaling=ScalingConfig(num_workers=8, use_gpu=True))
    found = forecast(recipe, Device(name="24 GB", is_gpu=True, memory_bytes=24_000_000_000))
    assert found.num_parameters == 748_871_168
    assert found.fits
    assert found.num_windows == 2
    assert found.flops is not None
    # Of a pair: 1.44 TFLOP of linear maps, 0.27 of attention, three times that in training but for scores formed anew.
    assert found.flops.forward["linear maps"] / 2 == pytest.approx(1.44e12, rel=0.01)
    assert found.flops.forward["attention"] / 2 == pytest.approx(0.27e12, rel=0.01)


def test_what_does_not_fit_comes_with_changes_that_do() -> None:
    recipe = tokenizer()
    needed = forecast(recipe, Device(name="any", is_gpu=True, memory_bytes=None)).peak_bytes
    assert needed is not None
    found = forecast(recipe, Device(name="small", is_gpu=True, memory_bytes=int(needed * 0.9)))
    assert found.fits is False
    told = dict(found.fixes)
    assert any(options.startswith("--model.checkpoint ") for options in told)
    assert "--loop.batch-size 2" in told
    changed = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop, batch_size=2))
    device = Device(name="any", is_gpu=True, memory_bytes=None)
    assert forecast(changed, device).peak_bytes == told["--loop.batch-size 2"]


@pytest.mark.slow
def test_a_dry_run_tells_of_steps_and_of_generation() -> None:
    device = ["--dry-run", "--device-memory-gb", "8"]
    first = train.main(["neuroar/vqvae:smoke", *device, "--grid-shape", "48", "56", "48"])
    assert "2 volumes of 48 x 56 x 48 in a step" in first["text"]
    assert first["forecast"]["fits"] is True
    assert first["forecast"]["flops"]["by_part"]["convolutions"] > 0
    second = train.main(["neuroar/transformer:smoke", *device])
    assert "4 pairs of" in second["text"]
    assert "generating one brain of" in second["text"]
    assert second["generation"]["peak_bytes"] > second["generation"]["parameters"] > 0

"""Learning rates over steps, weight decay where it belongs, clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from neuroray.platform.train.optim import WeightAverage, build_optimizer, clip_gradient, learning_rate
from neuroray.platform.train.recipe import OptimConfig, RecipeError


def test_the_rate_rises_linearly_and_then_stays():
    config = OptimConfig(lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, 10, config, steps_per_epoch=5) for step in range(1, 11)]
    assert rates == pytest.approx([0.025, 0.05, 0.075] + [0.1] * 7)


def test_the_cosine_ends_at_nothing_and_is_half_way_down_in_the_middle():
    config = OptimConfig(lr=2.0, schedule="cosine", warmup_steps=2)
    assert learning_rate(2, 12, config, steps_per_epoch=5) == 2.0
    assert learning_rate(7, 12, config, steps_per_epoch=5) == pytest.approx(1.0)
    assert learning_rate(12, 12, config, steps_per_epoch=5) == pytest.approx(0.0, abs=1e-12)  # cos(pi) + 1 in float64


def test_a_warm_up_longer_than_the_run_never_divides_by_zero():
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=10)
    assert learning_rate(5, 5, config, steps_per_epoch=5) == 0.5


def test_biases_and_norms_do_not_decay():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(module, OptimConfig(name="adamw", lr=0.5, weight_decay=0.1))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer.step()
    for name, value in module.named_parameters():
        # AdamW multiplies by 1 - lr * decay = 0.95; a zero gradient moves nothing else.
        factor = 0.95 if value.ndim >= 2 else 1.0
        torch.testing.assert_close(value.detach(), before[name] * factor)


def test_frozen_parameters_are_left_out():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    held = [p for group in build_optimizer(module, OptimConfig()).param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module[1].parameters()}


def test_clipping_scales_the_whole_gradient_and_tells_its_norm():
    module = nn.Linear(2, 2, bias=False)
    module.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert float(clip_gradient(module, 1.0)) == pytest.approx(5.0)
    # torch adds 1e-6 to the norm before it divides
    assert math.sqrt(float((module.weight.grad**2).sum())) == pytest.approx(1.0, rel=1e-6)


def test_a_warm_up_may_be_given_in_epochs():
    epochs, steps = OptimConfig(lr=1.0, warmup_epochs=1.5), OptimConfig(lr=1.0, warmup_steps=6)
    for step in range(1, 20):
        expected = learning_rate(step, 20, steps, steps_per_epoch=4)
        assert learning_rate(step, 20, epochs, steps_per_epoch=4) == expected
    with pytest.raises(RecipeError, match="not in both"):
        OptimConfig(warmup_steps=3, warmup_epochs=1)


def test_what_a_model_exempts_does_not_decay():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(module, OptimConfig(weight_decay=0.1), undecayed={"1.weight"})
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert len(decayed) == 1
    assert decayed[0] is module[0].weight


def test_the_average_follows_the_weights_and_gives_them_back():
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    average, expected = WeightAverage(module, decay=0.5), 1.0
    for step, value in enumerate((3.0, 5.0, 2.0), start=1):
        nn.init.constant_(module.weight, value)
        average.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
    with average.applied():
        assert float(module.weight) == pytest.approx(expected)
    assert float(module.weight) == 2.0

"""Learning rates over steps, weight decay where it belongs, clipping."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from neuroray.platform.train.optim import (
    Rival,
    WeightAverage,
    build_optimizer,
    clip_gradient,
    learning_rate,
    set_learning_rate,
)
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


def make_rivals(adversary: Rival) -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
    torch.manual_seed(0)
    module = nn.ModuleDict({"maker": nn.Linear(3, 2), "judge": nn.Linear(3, 2)})
    config = OptimConfig(name="adamw", lr=0.1, weight_decay=0.2)
    return module, build_optimizer(module, config, rivals=[adversary])


JUDGE = Rival(name="judge", prefix="judge.", lr_share=0.25, betas=(0.5, 0.9), weight_decay=0.03, clip_norm=0.01)


def test_rivals_in_one_optimiser_learn_as_by_two():
    module, joined = make_rivals(JUDGE)
    apart, _ = make_rivals(JUDGE)
    bias = {"weight_decay": 0.0}
    makers = torch.optim.AdamW([{"params": [apart["maker"].weight]}, {"params": [apart["maker"].bias], **bias}])
    judges = torch.optim.AdamW(
        [{"params": [apart["judge"].weight]}, {"params": [apart["judge"].bias], **bias}], betas=(0.5, 0.9)
    )
    makers.param_groups[0]["weight_decay"], judges.param_groups[0]["weight_decay"] = 0.2, 0.03
    for step in range(1, 9):
        for parts in (module, apart):
            parts.zero_grad()
            made = parts["maker"](torch.full((1, 3), float(step)))
            loss = made.square().sum()
            if step > 3:  # the judge begins late, and counts its own steps
                loss = loss + parts["judge"](torch.ones(1, 3)).sin().sum()
            loss.backward()
        rate = 0.1 / step
        set_learning_rate(joined, rate)
        set_learning_rate(makers, rate)
        set_learning_rate(judges, 0.25 * rate)
        norms = clip_gradient(module, 0.5, [JUDGE])
        assert set(norms) == ({"gradient_norm", "gradient_norm_judge"} if step > 3 else {"gradient_norm"})
        clip_gradient(apart["maker"], 0.5)
        clip_gradient(apart["judge"], 0.01)
        for optimizer in (joined, makers, judges):
            optimizer.step()
        for name, value in module.named_parameters():
            assert torch.equal(value, apart.get_parameter(name)), (step, name)


def test_state_is_there_from_the_start_and_changes_no_step():
    module, plain = nn.Linear(3, 2), nn.Linear(3, 2)
    plain.load_state_dict(module.state_dict())
    ours, theirs = build_optimizer(module, OptimConfig(lr=0.1)), torch.optim.Adam(plain.parameters(), lr=0.1)
    assert all(set(ours.state[p]) == {"step", "exp_avg", "exp_avg_sq"} for p in module.parameters())
    for optimizer, one in ((ours, module), (theirs, plain)):
        for step in range(3):
            optimizer.zero_grad()
            one(torch.full((1, 3), 1.0 + step)).sin().sum().backward()
            optimizer.step()
    assert torch.equal(module.weight, plain.weight)


def test_clipping_scales_the_whole_gradient_and_tells_its_norm():
    module = nn.Linear(2, 2, bias=False)
    module.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert float(clip_gradient(module, 1.0)["gradient_norm"]) == pytest.approx(5.0)
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

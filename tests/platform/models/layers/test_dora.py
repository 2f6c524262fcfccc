"""DoRA on rows of a linear layer: against its formula, merged, and what learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.dora import DoraLinear

RANGES = ((0, 5), (10, 15))


def make(*, dropout: float = 0.0, bias: bool = True, moved: bool = True) -> tuple[nn.Linear, DoraLinear]:
    torch.manual_seed(0)
    linear = nn.Linear(7, 15, bias=bias)
    adapted = DoraLinear(linear, RANGES, rank=3, alpha=6.0, dropout=dropout)
    if moved:
        for parameter in adapted.updates.parameters():
            parameter.data += torch.randn_like(parameter) / 2
    return linear, adapted


@pytest.mark.parametrize("bias", [True, False])
def test_it_starts_as_the_layer_that_it_adapts(bias: bool) -> None:
    linear, adapted = make(bias=bias, moved=False)
    inputs = torch.randn(2, 9, 7)
    torch.testing.assert_close(adapted(inputs), linear(inputs))


def test_adapted_rows_follow_the_formula_and_the_others_stay() -> None:
    linear, adapted = make()
    expected = linear.weight.detach().clone()
    for (start, stop), update in zip(RANGES, adapted.updates, strict=True):
        for row in range(start, stop):
            moved = expected[row] + 2.0 * update.up[row - start] @ update.down
            expected[row] = update.magnitude[row - start] * moved / moved.square().sum().sqrt()
    merged = adapted.merge()
    torch.testing.assert_close(merged.weight, expected)
    assert torch.equal(merged.weight[5:10], linear.weight[5:10])
    assert torch.equal(merged.bias, linear.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_merged_it_gives_the_same_outputs(bias: bool) -> None:
    linear, adapted = make(dropout=0.4, bias=bias)
    inputs = torch.randn(2, 9, 7)
    given = adapted.eval()(inputs)
    # Sums in another order, float32.
    torch.testing.assert_close(adapted.merge()(inputs), given, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(given, linear(inputs), atol=1e-2)


def test_dropout_touches_what_goes_through_the_factors_alone() -> None:
    linear, adapted = make(dropout=0.5, moved=False)
    inputs = torch.randn(4, 7)
    torch.testing.assert_close(adapted.train()(inputs), linear(inputs))  # the factors give 0 yet
    adapted.updates[0].up.data += 1
    assert not torch.allclose(adapted(inputs)[:, :5], adapted.eval()(inputs)[:, :5])
    assert torch.equal(adapted.train()(inputs)[:, 5:], adapted.eval()(inputs)[:, 5:])


def test_factors_and_magnitudes_learn_and_the_layer_does_not() -> None:
    _, adapted = make()
    adapted(torch.randn(4, 7)).square().sum().backward()
    learned = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert learned == {f"updates.{i}.{name}" for i in range(2) for name in ("down", "up", "magnitude")}
    assert all(parameter.grad.abs().max() > 0 for parameter in adapted.updates.parameters())


@pytest.mark.parametrize("ranges", [((0, 5), (4, 9)), ((10, 16),), (), ((5, 5),)])
def test_ranges_that_are_none_are_refused(ranges: tuple) -> None:
    with pytest.raises(ModelError, match="no ranges"):
        DoraLinear(nn.Linear(7, 15), ranges, rank=2, alpha=2.0, dropout=0.0)

"""Attention pooling: the kernel contract over its options, and the facts that hold whatever the implementation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contracts.kernel_contract import Inputs, KernelContract
from torch import Tensor

from neuroray.kernels import KernelError
from neuroray.kernels.attention_pool import IMPLEMENTATIONS, attention_pool


def make_inputs(generator: torch.Generator, lengths: list[int], **options: Any) -> Inputs:
    """Rows, offsets and weights; `head`, `channel`, `hidden`, `gated`, `biases`, `masked` (a fraction)."""
    channel, hidden, head = options.get("channel", 5), options.get("hidden", 3), options.get("head", 1)
    rows = sum(lengths)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs: Inputs = {
        "h": draw(rows, channel),
        "offsets": torch.tensor([0, *lengths]).cumsum(0),
        "V": draw(hidden, channel) / math.sqrt(channel),
        "w": draw(head, hidden),
    }
    if options.get("gated"):
        inputs["U"] = draw(hidden, channel) / math.sqrt(channel)
    if options.get("biases"):
        inputs |= {"bias_v": draw(hidden), "bias_w": draw(head)}
        if options.get("gated"):
            inputs["bias_u"] = draw(hidden)
    if options.get("masked"):
        inputs["mask"] = torch.rand(rows, generator=generator) >= options["masked"]
    return inputs


CASES = {
    "one slice": lambda g: make_inputs(g, [1]),
    "plain": lambda g: make_inputs(g, [7, 3], biases=True),
    "gated": lambda g: make_inputs(g, [4, 5], gated=True, biases=True),
    "gated without biases": lambda g: make_inputs(g, [6], gated=True),
    "several heads": lambda g: make_inputs(g, [3, 8], head=3, gated=True, biases=True),
    "empty volumes": lambda g: make_inputs(g, [0, 4, 0, 0, 2, 0], biases=True),
    "nothing but empty volumes": lambda g: make_inputs(g, [0, 0]),
    "masked": lambda g: make_inputs(g, [9, 6], masked=0.4, biases=True),
    "wholly masked": lambda g: make_inputs(g, [3, 2], masked=1.1),
    "odd and wide": lambda g: make_inputs(g, [63, 1, 65], channel=33, hidden=17, head=2, gated=True, biases=True),
}


class TestTorchImplementation(KernelContract):
    cases = CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="torch")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="reference")


class TestReference(KernelContract):
    """The definition obeys the contract too: finite differences check its gradients."""

    cases = {name: case for name, case in CASES.items() if name != "odd and wide"}  # noqa: RUF012 - a test's constant

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="reference")

    define = run


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def impl(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_a_hand_calculated_case(impl: str) -> None:
    h = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    plain = attention_pool(h, torch.tensor([0, 2]), one, one, impl=impl)
    score = math.tanh(1.0)
    assert plain.pooled.item() == pytest.approx(math.exp(score) / (1 + math.exp(score)), abs=1e-14)
    assert plain.log_sum_exp.item() == pytest.approx(math.log(1 + math.exp(score)), abs=1e-14)
    gated = attention_pool(h, torch.tensor([0, 2]), one, one, one, impl=impl)
    score = math.tanh(1.0) / (1 + math.exp(-1.0))
    assert gated.pooled.item() == pytest.approx(math.exp(score) / (1 + math.exp(score)), abs=1e-14)


def test_weights_are_a_distribution_over_each_volume(impl: str, generator: torch.Generator) -> None:
    output = attention_pool(**make_inputs(generator, [7, 0, 2], head=2, biases=True), impl=impl)
    assert (output.weights >= 0).all()
    assert torch.allclose(output.weights[:7].sum(0), torch.ones(2, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(output.weights[7:].sum(0), torch.ones(2, dtype=torch.float64), atol=1e-14)


def test_the_order_of_rows_does_not_matter(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [9], gated=True, biases=True)
    order = torch.randperm(9, generator=generator)
    plain = attention_pool(**inputs, impl=impl)
    shuffled = attention_pool(**{**inputs, "h": inputs["h"][order]}, impl=impl)
    assert torch.allclose(shuffled.pooled, plain.pooled, atol=1e-14)
    assert torch.allclose(shuffled.weights, plain.weights[order], atol=1e-14)


def test_identical_rows_share_the_weight(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [7])
    inputs["h"] = inputs["h"][:1].expand(7, -1)
    output = attention_pool(**inputs, impl=impl)
    assert torch.allclose(output.weights, torch.full((7, 1), 1 / 7, dtype=torch.float64), atol=1e-15)


def test_a_constant_on_the_scores_moves_only_the_log_sum_exp(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [7, 4])
    plain = attention_pool(**inputs, impl=impl)
    moved = attention_pool(**inputs, bias_w=torch.full((1,), 300.0, dtype=torch.float64), impl=impl)
    assert torch.allclose(moved.weights, plain.weights, atol=1e-12)
    assert torch.allclose(moved.log_sum_exp, plain.log_sum_exp + 300, atol=1e-12)


def test_scores_too_large_for_exp_stay_finite(impl: str, generator: torch.Generator) -> None:
    inputs = {
        name: value.float() if value.is_floating_point() else value for name, value in CASES["plain"](generator).items()
    }
    output = attention_pool(**{**inputs, "w": inputs["w"] * 1e4}, impl=impl)
    assert all(value.isfinite().all() for value in output)


def test_half_precision_keeps_its_softmax_in_float32(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [130])
    inputs = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
    output = attention_pool(**inputs, impl=impl)
    assert output.weights.dtype == torch.float32
    # 130 bfloat16 weights would miss 1 by about 130 * 2^-9 / 130 = 2e-3; float32 sums of them miss by less than 1e-6.
    assert output.weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert output.pooled.dtype == torch.bfloat16


def test_masked_rows_count_nothing_even_when_they_are_nan(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [6, 3], biases=True)
    mask = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    kept = attention_pool(**{**inputs, "h": inputs["h"][mask], "offsets": torch.tensor([0, 4, 6])}, impl=impl)
    inputs["h"][~mask] = torch.nan
    inputs["V"].requires_grad_()
    output = attention_pool(**inputs, mask=mask, impl=impl)
    assert (output.weights[~mask] == 0).all()
    assert torch.allclose(output.pooled, kept.pooled, atol=1e-14)
    output.pooled.sum().backward()
    assert inputs["V"].grad.isfinite().all()


def test_a_nan_stays_in_its_volume(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [4, 3])
    plain = attention_pool(**inputs, impl=impl)
    inputs["h"][1] = torch.nan
    output = attention_pool(**inputs, impl=impl)
    assert output.pooled[0].isnan().all()
    assert torch.equal(output.pooled[1], plain.pooled[1])
    assert torch.equal(output.weights[4:], plain.weights[4:])


def test_an_empty_volume_pools_to_zero(impl: str, generator: torch.Generator) -> None:
    output = attention_pool(**make_inputs(generator, [3, 0]), impl=impl)
    assert (output.pooled[1] == 0).all()
    assert output.log_sum_exp[1].item() == -math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"h": torch.zeros(9, 4, dtype=torch.float64)}, "V does not fit"),
        ({"h": torch.zeros(9, dtype=torch.float64)}, "h has the wrong shape"),
        ({"h": torch.zeros(9, 5, dtype=torch.int64)}, "no floating-point"),
        ({"V": torch.zeros(3, 5)}, "V and h differ in dtype"),
        ({"w": torch.zeros(1, 2, dtype=torch.float64)}, "w does not fit"),
        ({"bias_u": torch.zeros(3, dtype=torch.float64)}, "without U"),
        ({"mask": torch.ones(9)}, "mask is not boolean"),
        ({"mask": torch.ones(8, dtype=torch.bool)}, "mask does not fit"),
        ({"offsets": torch.tensor([0, 6, 4, 9])}, "offsets fall"),
        ({"offsets": torch.tensor([0, 6, 8])}, "do not cover"),
        ({"offsets": torch.tensor([1, 6, 9])}, "do not cover"),
        ({"offsets": torch.tensor([0.0, 9.0])}, "offsets are not integers"),
        ({"w": torch.zeros(1, 3, dtype=torch.float64, device="meta")}, "different devices"),
        ({"impl": "fastest"}, "no such implementation"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: Inputs, words: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [6, 3])
    with pytest.raises(KernelError, match=words):
        attention_pool(**{**inputs, **change})

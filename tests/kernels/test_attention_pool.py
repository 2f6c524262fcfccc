"""Attention pooling: the kernel contract over its options, and the facts that hold whatever the implementation."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.attention_pool_cases import CASES, make_inputs
from contracts.kernel_contract import Inputs, KernelContract
from torch import Tensor

from neuroray.kernels import KernelError
from neuroray.kernels.attention_pool import IMPLEMENTATIONS, attention_pool, projections, segments, torch_impl
from neuroray.kernels.attention_pool.api import choose_implementation

CPU = torch.device("cpu")


class TestTorchImplementation(KernelContract):
    cases = CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="torch")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="reference")


class TestTorchInSmallBlocks(TestTorchImplementation):
    """A few rows at a time and projections computed again, as for millions of rows; sums by tiles, as on a GPU."""

    # Ten times the calls, and the same formulas as above.
    test_gradcheck_in_float64 = None

    @pytest.fixture(autouse=True)
    def _little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_impl, "BLOCK_BYTES", {"cpu": 1500})
        monkeypatch.setattr(projections, "KEPT_BYTES", 0)
        monkeypatch.setattr(segments, "TILE_ROWS", 3)
        by_tiles = lambda values, offsets, volume: segments.reduce_by_tiles(values, offsets, "sum")  # noqa: E731
        monkeypatch.setattr(torch_impl, "sum_segments", by_tiles)


class TestReference(KernelContract):
    """The definition obeys the contract too: finite differences check its gradients."""

    cases = {name: case for name, case in CASES.items() if name != "odd and wide"}  # noqa: RUF012 - a test's constant

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="reference")

    define = run


RUNS_HERE = sorted(name for name, one in IMPLEMENTATIONS.items() if one.find_obstacle(CPU, torch.float32) is None)
"""With TRITON_INTERPRET=1 in the environment, the Triton kernels too: test_attention_pool_triton.py does so."""


@pytest.fixture(params=RUNS_HERE)
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


def test_no_volumes_at_all_give_empty_outputs(impl: str, generator: torch.Generator) -> None:
    output = attention_pool(**make_inputs(generator, [], head=2), impl=impl)
    assert [tuple(value.shape) for value in output] == [(0, 2, 5), (0, 2), (0, 2)]


def test_gradients_of_the_weights_alone_flow(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [5, 2])
    inputs["w"].requires_grad_()
    attention_pool(**inputs, impl=impl).weights[0].sum().backward()
    expected = torch.zeros_like(inputs["w"])
    # d weight / d w = weight * (hidden - the volume's mean hidden), from the softmax's own derivative.
    hidden = torch.tanh(inputs["h"][:5] @ inputs["V"].T)
    weights = torch.softmax(hidden @ inputs["w"][0], 0).detach()
    expected[0] = weights[0] * (hidden[0] - weights @ hidden)
    assert torch.allclose(inputs["w"].grad, expected, atol=1e-14)


def test_autocast_changes_nothing(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [7, 4], gated=True, biases=True)
    inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    inputs["V"].requires_grad_()
    plain = attention_pool(**inputs, impl=impl)
    (expected,) = torch.autograd.grad(plain.pooled.sum(), inputs["V"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = attention_pool(**inputs, impl=impl)
        (gradient,) = torch.autograd.grad(cast.pooled.sum(), inputs["V"])
    assert torch.equal(cast.pooled, plain.pooled)
    # The reference's gradient is autograd's, which autocast may round; the others say that they do not.
    assert impl == "reference" or torch.equal(gradient, expected)


@pytest.mark.parametrize("impl", [name for name in RUNS_HERE if name != "reference"])
def test_two_runs_agree_to_the_last_bit(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [65, 0, 130], head=2, gated=True, biases=True)
    names = [name for name, value in inputs.items() if value.is_floating_point()]

    def run() -> list[Tensor]:
        leaves = {name: inputs[name].float().requires_grad_() for name in names}
        output = attention_pool(**{**inputs, **leaves}, impl=impl)
        loss = output.pooled.square().sum() + output.weights.square().sum()
        return [*output, *torch.autograd.grad(loss, list(leaves.values()))]

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


@pytest.mark.parametrize("operation", ["sum", "max"])
@pytest.mark.parametrize("lengths", [[1], [0, 7, 0], [3, 3, 6], [31, 0, 2, 65, 0]])
def test_sums_by_tiles_are_those_of_loops(
    operation: str, lengths: list[int], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "TILE_ROWS", 3)
    values = torch.randn(sum(lengths), 2, generator=generator, dtype=torch.float64)
    found = segments.reduce_by_tiles(values, torch.tensor([0, *lengths]).cumsum(0), operation)
    for part, volume in zip(values.split(lengths), found, strict=True):
        if operation == "sum":
            assert torch.allclose(volume, part.sum(0), atol=1e-14)
        else:
            assert torch.equal(volume, part.amax(0) if len(part) else torch.full((2,), -torch.inf).double())


@pytest.mark.parametrize("impl", [name for name in RUNS_HERE if name != "reference"])
def test_a_second_derivative_is_refused_not_left_out(impl: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [4])
    inputs["h"].requires_grad_()
    pooled = attention_pool(**inputs, impl=impl).pooled.sum()
    with pytest.raises(KernelError, match="no second derivative"):
        torch.autograd.grad(pooled, inputs["h"], create_graph=True)


def test_the_choice_says_what_runs() -> None:
    assert choose_implementation("auto", CPU, torch.float32) == "torch"
    assert choose_implementation("reference", CPU, torch.float64) == "reference"


@pytest.mark.skipif("triton" in RUNS_HERE, reason="under the interpreter it runs on a CPU")
def test_an_implementation_that_cannot_run_here_says_why(generator: torch.Generator) -> None:
    with pytest.raises(KernelError, match=r"cannot run 'triton' here.*triton"):
        attention_pool(**make_inputs(generator, [4]), impl="triton")


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
        ({"impl": "cpp"}, "no such implementation"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: Inputs, words: str, generator: torch.Generator) -> None:
    inputs = make_inputs(generator, [6, 3])
    with pytest.raises(KernelError, match=words):
        attention_pool(**{**inputs, **change})

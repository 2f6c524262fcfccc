"""The causal convolution: the contract in torch, torch's own conv1d, and what holds for every implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.causal_conv_cases import CASES, SHORT_CASES, make_inputs, run_conv
from contracts.kernel_contract import Inputs, KernelContract
from torch import Tensor
from torch.nn import functional

from neuroray.kernels import KernelError
from neuroray.kernels.causal_conv import IMPLEMENTATIONS, causal_conv, choose_implementation

CPU = torch.device("cpu")


class TestTorch(KernelContract):
    cases = CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "torch")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "reference")


class TestReference(TestTorch):
    """The definition obeys the contract too: finite differences check its gradients."""

    cases = SHORT_CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "reference")


RUNS_HERE = sorted(name for name, one in IMPLEMENTATIONS.items() if one.find_obstacle(CPU, torch.float32) is None)
"""With TRITON_INTERPRET=1 in the environment, the Triton kernels too: test_causal_conv_triton.py does so."""


@pytest.fixture(params=RUNS_HERE)
def impl(request: pytest.FixtureRequest) -> str:
    return request.param


def make(tokens: int, **options: Any) -> Inputs:
    """A case in float32."""
    return cast(make_inputs(torch.Generator().manual_seed(1), tokens, **options), torch.float32)


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def differentiate(inputs: Inputs, impl: str) -> list[Tensor]:
    """The output, and every gradient of a weighted sum of it."""
    leaves = {n: v.detach().requires_grad_() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    (output,) = run_conv(leaves, impl)
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    wanted = [value for value in leaves.values() if isinstance(value, Tensor)]
    return [output.detach(), *torch.autograd.grad(output, wanted, factors)]


def test_a_hand_calculated_case(impl: str) -> None:
    x = torch.tensor([1.0, 10.0, 100.0, 1000.0])[None, :, None]
    weight = torch.tensor([[2.0, 3.0, 5.0]])
    bias = torch.tensor([7.0])
    ahead = causal_conv(x, weight, bias, silu=False, impl=impl)
    # The last tap is the present token's: 5 * 100 + 3 * 10 + 2 * 1 + 7.
    assert ahead.flatten().tolist() == [12, 60, 539, 5327]
    back = causal_conv(x, weight, bias, silu=False, reverse=True, impl=impl)
    assert back.flatten().tolist() == [242, 2357, 3507, 5007]


@pytest.mark.parametrize("taps", [2, 4, 7])
def test_it_is_torchs_conv1d_with_a_group_per_channel_and_silu(impl: str, taps: int) -> None:
    conv = torch.nn.Conv1d(5, 5, taps, groups=5, padding=taps - 1)
    x = torch.randn(2, 31, 5)
    expected = functional.silu(conv(x.transpose(1, 2))[..., :31]).transpose(1, 2)
    # Sums of up to eight terms near 1, in another order: a few float32 roundings of 6e-8.
    assert torch.allclose(causal_conv(x, conv.weight[:, 0], conv.bias, impl=impl), expected, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 2, 7, 65])
def test_reverse_is_the_convolution_between_two_flips(impl: str, tokens: int) -> None:
    inputs = make(tokens, channels=17)
    flipped = causal_conv(**{**inputs, "x": inputs["x"].flip(1)}, impl=impl).flip(1)
    # The same sums in the same order: not a bit may differ.
    assert torch.equal(causal_conv(**{**inputs, "reverse": True}, impl=impl), flipped)


@pytest.mark.parametrize("reverse", [False, True])
def test_no_token_sees_the_other_side(impl: str, reverse: bool) -> None:
    inputs = make(9, channels=2, reverse=reverse)
    clean = causal_conv(**inputs, impl=impl)
    inputs["x"][1, 4, 1] = torch.nan
    output = causal_conv(**inputs, impl=impl)
    struck = torch.zeros(2, 9, 2, dtype=torch.bool)
    struck[1, slice(1, 5) if reverse else slice(4, 8), 1] = True
    assert output[struck].isnan().all()
    assert torch.equal(output[~struck], clean[~struck])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_nan_strikes_no_gradient_further_than_its_reach(impl: str, reverse: bool) -> None:
    # At the end of 16 tokens, where a chunk ends: the walk goes on beyond it, over tokens that are not there.
    inputs = make(16, channels=2, reverse=reverse)
    last = 0 if reverse else 15
    inputs["x"][0, last, 1] = torch.nan
    _, by_x, by_weight, by_bias = differentiate(inputs, impl)
    struck = torch.zeros(2, 16, 2, dtype=torch.bool)
    struck[0, slice(0, 4) if reverse else slice(12, 16), 1] = True
    assert by_x[struck].isnan().all()
    assert by_x[~struck].isfinite().all()
    assert by_weight[0].isfinite().all()
    assert by_bias[0].isfinite()


def test_large_sums_saturate_without_nan(impl: str) -> None:
    x = torch.tensor([-1e4, 1e4, -200.0, 200.0])[None, :, None].expand(1, 4, 3)
    output, by_x, *_ = differentiate({"x": x, "weight": torch.tensor([[0.0, 1.0]] * 3)}, impl)
    assert torch.equal(output, functional.relu(x))
    assert by_x.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(impl: str, dtype: torch.dtype) -> None:
    if impl == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter cuts bfloat16 off, a GPU rounds it")
    inputs = cast(make(31, channels=17), dtype)
    exact = causal_conv(**cast(inputs, torch.float32), impl=impl)
    rounded = causal_conv(**inputs, impl=impl)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, exact.to(dtype))


def test_weights_may_have_another_dtype_than_x(impl: str) -> None:
    inputs = make(31, channels=17)
    mixed = inputs | {"x": inputs["x"].bfloat16()}
    found = differentiate(mixed, impl)
    assert [one.dtype for one in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    expected = differentiate(cast(mixed, torch.float64), "reference")
    # One rounding to bfloat16, by up to 2^-8; Triton's interpreter cuts off instead, by up to 2^-7.
    for given, wanted in zip(found, expected, strict=True):
        assert (given.double() - wanted).abs().max() / wanted.abs().max() < 1e-2


def test_only_wanted_gradients_are_made_and_they_do_not_change(impl: str) -> None:
    inputs = make(31, channels=17)
    names = ("x", "weight", "bias")
    everything = dict(zip(names, differentiate(inputs, impl)[1:], strict=True))
    factors = torch.randn(2, 31, 17, generator=torch.Generator().manual_seed(2))
    for name in names:
        leaf = inputs[name].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(causal_conv(**{**inputs, name: leaf}, impl=impl), leaf, factors)
        assert torch.equal(gradient, everything[name]), name


def test_two_runs_agree_to_the_last_bit(impl: str) -> None:
    inputs = make(300 if impl != "triton" else 31, channels=33)
    for one, other in zip(differentiate(inputs, impl), differentiate(inputs, impl), strict=True):
        assert torch.equal(one, other)


def test_autocast_changes_nothing(impl: str) -> None:
    inputs = make(31)
    expected = differentiate(inputs, impl)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = differentiate(inputs, impl)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_channels_first_memory_just_works(impl: str) -> None:
    inputs = make(31, channels=17)
    turned = inputs["x"].transpose(1, 2).contiguous().transpose(1, 2)
    half = torch.cat([inputs["x"], inputs["x"]], -1)[..., :17]
    expected = causal_conv(**inputs, impl=impl)
    assert not turned.is_contiguous()
    assert not half.is_contiguous()
    for view in (turned, half):
        assert torch.equal(causal_conv(**{**inputs, "x": view}, impl=impl), expected)


@pytest.mark.parametrize("impl", [name for name in RUNS_HERE if name != "reference"])
def test_a_second_derivative_is_refused(impl: str) -> None:
    inputs = make(7)
    inputs["x"].requires_grad_()
    (gradient,) = torch.autograd.grad(run_conv(inputs, impl)[0].square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 7)}, r"x has the wrong number of axes; given \(2, 7\); expected batch token channel"),
        ({"x": torch.zeros(2, 0, 3)}, r"x is empty; given \(2, 0, 3\)"),
        ({"x": torch.zeros(0, 7, 3)}, "x is empty"),
        ({"x": torch.zeros(2, 7, 3, dtype=torch.int64)}, "x holds no floating-point numbers; given torch.int64"),
        ({"x": torch.zeros(2, 7, 3, dtype=torch.complex64)}, "x is complex; given torch.complex64"),
        ({"x": torch.zeros(2, 7, 3).to(torch.float8_e5m2)}, "x has a dtype that is not taken; given torch.float8_e5m2"),
        ({"x": None}, "x is no tensor; given NoneType"),
        ({"weight": None}, "weight is no tensor; given NoneType"),
        ({"weight": [[1.0]]}, "weight is no tensor; given list"),
        ({"weight": torch.zeros(4)}, "weight has the wrong number of axes"),
        ({"weight": torch.zeros(3, 1, 4)}, r"weight has the axes of torch's conv1d; .* take weight\[:, 0\]"),
        ({"weight": torch.zeros(4, 3)}, r"weight does not fit x; given \(4, 3\); expected \(3, 3\)"),
        ({"weight": torch.zeros(3, 1)}, "number of taps that is not taken; given 1; expected 2 to 8"),
        ({"weight": torch.zeros(3, 9)}, "number of taps that is not taken; given 9; expected 2 to 8"),
        ({"weight": torch.zeros(3, 4, dtype=torch.float64)}, "weight is float64 and x is not"),
        ({"bias": torch.zeros(1)}, r"bias does not fit x; given \(1,\); expected \(3,\)"),
        ({"bias": torch.zeros(3, device="meta")}, "bias and x lie on different devices; given meta; expected cpu"),
        ({"bias": 1.0}, "bias is no tensor; given float"),
        ({"impl": "fastest"}, "no such implementation; given fastest; expected auto, reference, torch, cpp, triton"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: Inputs, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        causal_conv(**{**make(7), **change})


def test_the_choice_says_what_runs() -> None:
    fast = "cpp" if "cpp" in RUNS_HERE else "torch"
    assert choose_implementation("auto", CPU, torch.float32) == fast
    assert choose_implementation("auto", CPU, torch.float64) == "torch"
    assert choose_implementation("reference", CPU, torch.float64) == "reference"
    assert torch.equal(causal_conv(**make(7)), causal_conv(**make(7), impl=fast))

"""The selective scan: the kernel contract over its options, long sequences, and the facts that hold for any of them."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from contracts.kernel_contract import Inputs, KernelContract
from contracts.scan_cases import (
    BOTH_CASES,
    CASES,
    EVERYTHING,
    LONG_CASES,
    SHORT_BOTH_CASES,
    SHORT_CASES,
    make_both,
    make_scan,
    run_both,
    run_scan,
)
from torch import Tensor

from neuroray.kernels import KernelError
from neuroray.kernels.selective_scan import (
    IMPLEMENTATIONS,
    ReverseDirection,
    bidirectional_selective_scan,
    choose_implementation,
    selective_scan,
    torch_impl,
)
from neuroray.kernels.selective_scan.api import Implementation


class _ByReference(KernelContract):
    impl = "torch"

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, self.impl)

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, "reference")


class _BothByReference(KernelContract):
    impl = "torch"

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, self.impl)

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, "reference")


class TestTorch(_ByReference):
    cases = SHORT_CASES


class TestTorchLong(_ByReference):
    cases = LONG_CASES
    test_gradcheck_in_float64 = None


class TestTorchBoth(_BothByReference):
    """Its float64 gradients are the reference's to 1e-12, and those pass finite differences below."""

    cases = BOTH_CASES
    test_gradcheck_in_float64 = None


class _ShortSegments:
    """Every case crosses from segment to segment, the last one shorter, whose rows run in lanes or one by one."""

    dtypes = (torch.float64,)
    test_gradcheck_in_float64 = None
    test_strides_change_nothing = None

    @pytest.fixture(autouse=True, params=[0, 10**9], ids=["by rows", "in lanes"])
    def _short_segments(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_impl, "_SEGMENT_ON_CPU", 1)
        monkeypatch.setattr(torch_impl, "_LONG_ROW", request.param)


class TestTorchInShortSegments(_ShortSegments, _ByReference):
    cases = CASES


class TestTorchBothInShortSegments(_ShortSegments, _BothByReference):
    cases = BOTH_CASES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestTorchOnGpu(_ByReference):
    cases = CASES
    devices = ("cuda",)
    test_gradcheck_in_float64 = None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestTorchBothOnGpu(_BothByReference):
    cases = BOTH_CASES
    devices = ("cuda",)
    test_gradcheck_in_float64 = None


class TestReference(_ByReference):
    """The definition obeys the contract too: finite differences check its gradients."""

    impl = "reference"
    cases = {  # noqa: RUF012 - a constant
        name: SHORT_CASES[name]
        for name in ("one token", "everything", "reverse everything", "constant B and C", "groups of B and C differ")
    }
    dtypes = (torch.float32,)


class TestReferenceBoth(_BothByReference):
    impl = "reference"
    cases = {name: SHORT_BOTH_CASES[name] for name in ("all shared, one token", "all of its own")}  # noqa: RUF012
    dtypes = (torch.float32,)


@pytest.fixture(params=["reference", "torch", "cpp"])
def impl(request: pytest.FixtureRequest) -> str:
    obstacle = IMPLEMENTATIONS[request.param].find_obstacle(torch.device("cpu"), torch.float32)
    if obstacle is not None:
        pytest.skip(obstacle)
    return request.param


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _measure(inputs: Inputs, run: Any, impl: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of a fixed random weighting of them all, by name; any dtype holds the weights."""
    leaves = {
        name: value.detach().requires_grad_() if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    outputs = run(leaves, impl)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(output.shape, generator=generator).bfloat16() for output in outputs]
    loss = sum((weight.to(output.dtype) * output).sum() for weight, output in zip(weights, outputs, strict=True))
    names = [name for name, value in leaves.items() if isinstance(value, Tensor)]
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names])
    found = {f"output {index}": output.detach() for index, output in enumerate(outputs)}
    return found, {f"gradient of {name}": value for name, value in zip(names, gradients, strict=True)}


def _round(inputs: Inputs, dtype: torch.dtype, wide: tuple[str, ...] = ("A", "D", "delta_bias")) -> Inputs:
    """As a model gives them: what changes by token in `dtype`, the weights `wide` in float32."""
    return {
        name: value.to(torch.float32 if name.removeprefix("back_") in wide else dtype)
        if isinstance(value, Tensor)
        else value
        for name, value in inputs.items()
    }


def _widen(inputs: Inputs) -> Inputs:
    return {name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()}


# One rounding to bfloat16 is at most 2^-9 = 2e-3 of a value and 1e-3 of a norm; float32 state leaves 1e-6 and less.
_NORM_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3}
_LENGTHS = (1, 31, 1025, 5041)


def _assert_norms_near(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in found.items():
        error = ((value.double() - expected[name]).norm() / expected[name].norm().clamp_min(1e-12)).item()
        assert error <= tolerance, f"{name}: ||error|| / ||reference|| = {error:.2e}"


_RUNS = {"ahead": run_scan, "reverse": run_scan, "both": run_both}


@functools.cache
def _expect(length: int, direction: str) -> tuple[Inputs, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Inputs rounded to bfloat16, which float32 holds as well: one float64 reference serves both."""
    generator = torch.Generator().manual_seed(length)
    options = {"batch": 1, "channels": 6, "states": 16, "D": True, "z": True, "delta_bias": True, "softplus": True}
    if direction == "both":
        inputs = make_both(generator, length, ("A", "B", "C", "delta"), **options)
    else:
        inputs = make_scan(generator, length, reverse=direction == "reverse", **options)
    inputs = _round(inputs, torch.bfloat16)
    return inputs, _measure(_widen(inputs), _RUNS[direction], "reference")


@pytest.mark.parametrize("name", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", list(_NORM_TOLERANCE), ids=["float32", "bfloat16"])
@pytest.mark.parametrize("direction", list(_RUNS))
@pytest.mark.parametrize("length", _LENGTHS)
def test_sixteen_states_stay_near_float64_at_any_length(
    length: int, direction: str, dtype: torch.dtype, name: str
) -> None:
    obstacle = IMPLEMENTATIONS[name].find_obstacle(torch.device("cpu"), torch.float32)
    if obstacle is not None:
        pytest.skip(obstacle)
    inputs, expected = _expect(length, direction)
    found = _measure(_round(inputs, dtype), _RUNS[direction], name)
    for one, wanted in zip(found, expected, strict=True):
        _assert_norms_near(one, wanted, _NORM_TOLERANCE[dtype])


def test_a_hand_calculated_case(impl: str) -> None:
    # Decay exp(-1 * ln 2) = 1/2 a token: h = 1, 1/2 + 1 * 3 = 3.5; y = 2 h, and D u = 10 u beside it.
    def column(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1)

    output, last_state = selective_scan(
        column(1, 3),
        column(1, 1),
        torch.tensor([[-math.log(2)]]),
        column(1, 1),
        column(2, 2),
        torch.tensor([10.0]),
        return_last_state=True,
        impl=impl,
    )
    assert output.flatten().tolist() == pytest.approx([12, 37], rel=1e-6)
    assert last_state.item() == pytest.approx(3.5, rel=1e-6)


def test_a_token_changes_no_output_before_it(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 31, **EVERYTHING), torch.float32)
    plain, _ = run_scan(inputs, impl)
    changed = {name: inputs[name].clone() for name in ("u", "delta", "B", "C", "z")}
    for value in changed.values():
        value[:, 17:] += 1
    output, _ = run_scan(inputs | changed, impl)
    assert torch.equal(output[:, :17], plain[:, :17])
    assert not torch.isclose(output[:, 17], plain[:, 17]).any()


def test_the_reverse_is_a_scan_of_flipped_inputs(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 65, **EVERYTHING), torch.float32)
    flipped = inputs | {name: inputs[name].flip(1) for name in ("u", "delta", "B", "C", "z")}
    expected, expected_state = run_scan(flipped, impl)
    output, state = run_scan(inputs | {"reverse": True}, impl)
    # Float32 rounding in another order: about 1e-6 of values near 1 to 10.
    assert torch.allclose(output, expected.flip(1), rtol=1e-5, atol=1e-5)
    assert torch.allclose(state, expected_state, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cut", [1, 30, 64])
def test_a_sequence_in_two_parts_is_the_sequence(
    cut: int, reverse: bool, impl: str, generator: torch.Generator
) -> None:
    inputs = _round(make_scan(generator, 65, reverse=reverse, **EVERYTHING), torch.float32)
    whole, whole_state = run_scan(inputs, impl)
    by_token = ("u", "delta", "B", "C", "z")
    parts = [inputs | {name: inputs[name][:, piece] for name in by_token} for piece in (slice(cut), slice(cut, None))]
    first, second = parts[::-1] if reverse else parts
    first_output, middle = run_scan(first, impl)
    second_output, state = run_scan(second | {"initial_state": middle}, impl)
    outputs = (second_output, first_output) if reverse else (first_output, second_output)
    assert torch.allclose(torch.cat(outputs, 1), whole, rtol=1e-5, atol=1e-5)
    assert torch.allclose(state, whole_state, rtol=1e-5, atol=1e-5)


def test_both_directions_are_the_sum_of_two_scans_gated_once(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 65, D=True, softplus=True), torch.float32)
    gate, rates = torch.randn(2, 65, 4, generator=generator), -torch.rand(4, 3, generator=generator)
    ahead, _ = run_scan(inputs, impl)
    back, _ = run_scan(inputs | {"A": rates, "reverse": True}, impl)
    output = bidirectional_selective_scan(**inputs, z=gate, reverse=ReverseDirection(A=rates), impl=impl)
    expected = (ahead + back) * torch.nn.functional.silu(gate)
    assert torch.allclose(output, expected, rtol=1e-5, atol=1e-5)


def test_the_last_state_alone_carries_gradients(impl: str, generator: torch.Generator) -> None:
    inputs = make_scan(generator, 31, **EVERYTHING)
    given, expected = ({"u": inputs["u"].float().requires_grad_()} for _ in range(2))
    run_scan(_round(inputs, torch.float32) | given, impl)[1].sum().backward()
    run_scan(_round(inputs, torch.float32) | expected, "reference")[1].sum().backward()
    assert torch.allclose(given["u"].grad, expected["u"].grad, rtol=1e-5, atol=1e-6)


def test_bfloat16_keeps_its_state_in_float32(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 130, **EVERYTHING), torch.bfloat16)
    output, state = run_scan(inputs, impl)
    _, expected = run_scan(_widen(inputs), "reference")
    assert output.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    # A bfloat16 state would miss by 2e-3.
    assert torch.allclose(state.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_same_inputs_give_the_same_bits(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 130, groups_b=2, **EVERYTHING), torch.float32)
    first, second = (_measure(inputs, run_scan, impl) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_autocast_changes_nothing(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 65, **EVERYTHING), torch.float32)
    plain = _measure(inputs, run_scan, impl)
    with torch.autocast("cpu", torch.bfloat16):
        cast = _measure(inputs, run_scan, impl)
    for one, other in zip(plain, cast, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_inputs_stay_as_they_were(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 31, **EVERYTHING), torch.float32)
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    _measure(inputs, run_scan, impl)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())


def test_views_that_overlap_themselves_work(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 7), torch.float32)
    wide = {name: inputs[name][:1, :, :1].expand(2, 7, 4) for name in ("u", "delta")}
    expected, _ = run_scan(inputs | {name: value.contiguous() for name, value in wide.items()}, impl)
    assert torch.equal(run_scan(inputs | wide, impl)[0], expected)


def test_gradients_of_some_inputs_are_those_of_all(impl: str, generator: torch.Generator) -> None:
    inputs = _round(make_scan(generator, 31, **EVERYTHING), torch.float32)
    _, expected = _measure(inputs, run_scan, impl)
    seeded = torch.Generator().manual_seed(2)
    shapes = ((2, 31, 4), (2, 4, 3))
    weights = [torch.randn(shape, generator=seeded).bfloat16().float() for shape in shapes]
    for name in ("A", "z", "initial_state"):
        leaf = inputs[name].clone().requires_grad_()
        outputs = run_scan(inputs | {name: leaf}, impl)
        sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True)).backward()
        assert torch.allclose(leaf.grad, expected[f"gradient of {name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["torch", "cpp"])
def test_a_second_derivative_is_refused(name: str, generator: torch.Generator) -> None:
    if IMPLEMENTATIONS[name].find_obstacle(torch.device("cpu"), torch.float32) is not None:
        pytest.skip(f"no {name} here")
    inputs = _round(make_scan(generator, 7), torch.float32)
    u = inputs["u"].requires_grad_()
    (gradient,) = torch.autograd.grad(run_scan(inputs, name)[0].square().sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_torch_keeps_for_the_backward_is_a_small_part_of_the_inputs(generator: torch.Generator) -> None:
    """At L=4096, N=16 the kept states are N / segment of u: the segment of 128 tokens makes it 1/8."""
    channels, states, length = 512, 16, 1025
    inputs = _round(make_scan(generator, length, batch=1, channels=channels, states=states, z=True), torch.float32)
    inputs["u"].requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        run_scan(inputs, "torch")
    own = [tensor for tensor in kept if tensor.data_ptr() not in {value.data_ptr() for value in inputs.values()}]
    assert sum(tensor.numel() for tensor in own) <= 0.15 * length * channels


def test_nothing_is_kept_where_no_gradient_is_wanted(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    kept: list[bool] = []
    run = torch_impl._Direction.run

    def note(direction: Any, *, keep: bool, **options: Any) -> Any:
        kept.append(keep)
        return run(direction, keep=keep, **options)

    monkeypatch.setattr(torch_impl._Direction, "run", note)
    inputs = _round(make_scan(generator, 7), torch.float32)
    run_scan(inputs, "torch")
    inputs["A"].requires_grad_()
    with torch.no_grad():
        run_scan(inputs, "torch")
    run_scan(inputs, "torch")
    assert kept == [False, False, True]


def _pretend(monkeypatch: pytest.MonkeyPatch, **obstacles: str | None) -> None:
    for name, obstacle in obstacles.items():
        entry = IMPLEMENTATIONS[name]
        changed = Implementation(entry.scan, entry.both, lambda device, dtype, obstacle=obstacle: obstacle)
        monkeypatch.setitem(IMPLEMENTATIONS, name, changed)


@pytest.mark.parametrize(
    ("device", "obstacles", "expected"),
    [
        ("cuda", {"triton": None, "cpp": None}, "triton"),
        ("cuda", {"triton": "no triton", "cpp": None}, "torch"),
        ("cpu", {"triton": None, "cpp": None}, "cpp"),
        ("cpu", {"triton": None, "cpp": "no compiler", "mamba_ssm": None}, "torch"),
    ],
)
def test_auto_takes_the_fastest_that_can_run(
    device: str, obstacles: dict[str, str | None], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend(monkeypatch, **obstacles)
    assert choose_implementation("auto", torch.device(device), torch.float32) == expected


def test_a_name_runs_or_raises_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, cpp="there is no compiler")
    assert choose_implementation("torch", torch.device("cpu"), torch.float64) == "torch"
    with pytest.raises(KernelError, match="there is no compiler"):
        choose_implementation("cpp", torch.device("cpu"), torch.float32)
    with pytest.raises(KernelError, match=r"no such implementation; given fastest; expected auto, reference, torch"):
        choose_implementation("fastest", torch.device("cpu"), torch.float32)


def test_an_implementation_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "neuroray.kernels.selective_scan.triton_impl", None)
    with pytest.raises(KernelError, match="triton_impl cannot be imported"):
        choose_implementation("triton", torch.device("cuda"), torch.float32)

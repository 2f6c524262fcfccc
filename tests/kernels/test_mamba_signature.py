"""mamba-ssm's signature on our scan, over mamba-ssm's own test grid at its tolerances, and mamba-ssm itself as a peer.

The grid is that of its `tests/ops/test_selective_scan.py`, the values commented out there too: batch 2, 4 channels, 8
states, A = -0.5 rand, delta and its bias 0.5 rand, all else normal. Left out: complex A, which this scan does not take.
"""

from __future__ import annotations

import functools
import itertools
import sys
import types
from typing import Any, NamedTuple

import pytest
import torch
from contracts.scan_cases import EVERYTHING, make_scan, run_both, run_scan
from torch import Tensor

from neuroray.kernels import KernelError
from neuroray.kernels.selective_scan import (
    api,
    choose_implementation,
    mamba_ssm_impl,
    selective_scan,
    selective_scan_fn,
)
from neuroray.kernels.selective_scan.inputs import ScanInputs, check_inputs
from neuroray.kernels.selective_scan.reference import scan_by_tokens

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LENGTHS = (8, 16, 32, 64, 128, 256, 372, 512, 784, 1024, 1134, 2048, 4096)
_TOLERANCE = {torch.float32: (6e-4, 2e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (3e-2, 5e-2)}
_PLACES = (
    ("torch", "cpu"),
    ("cpp", "cpu"),
    pytest.param("torch", "cuda", marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", marks=pytest.mark.gpu),
)


class GridCase(NamedTuple):
    """One point of mamba-ssm's grid; constant B or C have no groups."""

    dtype: torch.dtype
    length: int
    groups: int = 1
    variable_b: bool = True
    variable_c: bool = True
    has_d: bool = True
    has_z: bool = True
    has_delta_bias: bool = True
    delta_softplus: bool = True
    return_last_state: bool = True


def _draw(case: GridCase) -> dict[str, Any]:
    """Arguments as mamba-ssm's test draws them: tensors `batch channel token`, weights float32.

    What has the dtype of the case is rounded to what all three dtypes hold: one float64 reference serves the three.
    """
    generator = torch.Generator().manual_seed(0)
    batch, channels, states, length = 2, 4, 8, case.length

    def weights(variable: bool) -> Tensor:
        if not variable:
            return torch.randn(channels, states, generator=generator)
        shape = (batch, states, length) if case.groups == 1 else (batch, case.groups, states, length)
        return _round(torch.randn(shape, generator=generator)).to(case.dtype)

    arguments: dict[str, Any] = {
        "A": -0.5 * torch.rand(channels, states, generator=generator),
        "B": weights(case.variable_b),
        "C": weights(case.variable_c),
        "u": _round(torch.randn(batch, channels, length, generator=generator)).to(case.dtype),
        "delta": _round(0.5 * torch.rand(batch, channels, length, generator=generator)).to(case.dtype),
    }
    if case.has_d:
        arguments["D"] = torch.randn(channels, generator=generator)
    if case.has_z:
        arguments["z"] = _round(torch.randn(batch, channels, length, generator=generator)).to(case.dtype)
    if case.has_delta_bias:
        arguments["delta_bias"] = 0.5 * torch.rand(channels, generator=generator)
    return arguments | {"delta_softplus": case.delta_softplus, "return_last_state": case.return_last_state}


def _round(tensor: Tensor) -> Tensor:
    return tensor.bfloat16().half().float()


def _scan_by_tokens_in_float64(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **options: Any) -> Any:  # noqa: N803
    """The reference behind mamba-ssm's signature, its axes moved here and not by what is tested."""
    wants_state = options.pop("return_last_state")
    B, C = (tensor.movedim(-1, 1) if tensor.ndim > 2 else tensor for tensor in (B, C))  # noqa: N806
    options["z"] = options["z"].transpose(1, 2) if "z" in options else None
    output, state = selective_scan(
        u.transpose(1, 2), delta.transpose(1, 2), A, B, C, **options, impl="reference", return_last_state=True
    )
    output = output.transpose(1, 2)
    return (output, state) if wants_state else output


def _differentiate(function: Any, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Output, last state where wanted, and the gradients for a fixed one of the output."""
    leaves = {
        name: value.detach().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    returned = function(**leaves)
    output, *states = returned if isinstance(returned, tuple) else (returned,)
    gradient = _round(torch.randn(output.shape, generator=torch.Generator().manual_seed(1)))
    output.backward(gradient.to(output))
    found = {name: value.grad for name, value in leaves.items() if isinstance(value, Tensor)}
    found["output"] = output.detach()
    return found | ({"last state": states[0].detach()} if states else {})


@functools.cache
def _expect(case: GridCase) -> dict[str, Tensor]:
    arguments = {name: v.double() if isinstance(v, Tensor) else v for name, v in _draw(case).items()}
    return _differentiate(_scan_by_tokens_in_float64, arguments)


def _tolerate(name: str, dtype: torch.dtype) -> tuple[float, float]:
    """Relative and absolute tolerance of mamba-ssm's test for one result."""
    relative, absolute = _TOLERANCE[dtype]
    weight_relative, weight_absolute = max(1e-3, relative), max(1e-3, absolute)
    table = {
        "u": (2 * relative, 2 * absolute),
        "delta": (5 * relative, 10 * absolute),
        "A": (weight_relative, 5 * weight_absolute),
        "D": (weight_relative, weight_absolute),
        "z": (weight_relative, weight_absolute),
        "delta_bias": (weight_relative, weight_absolute),
    }
    return table.get(name, (relative, absolute))


def _check(case: GridCase, impl: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    obstacle = api.IMPLEMENTATIONS[impl].find_obstacle(torch.device(device), torch.float32)
    if obstacle is not None:
        pytest.skip(obstacle)
    monkeypatch.setattr(api, "_PREFERRED", (impl,))
    monkeypatch.setattr(api, "_PREFERRED_ON", {})
    arguments = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in _draw(case).items()}
    found = _differentiate(selective_scan_fn, arguments)
    expected = _expect(case._replace(dtype=torch.float32))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        relative, absolute = _tolerate(name, case.dtype)
        torch.testing.assert_close(
            value.cpu().double(), expected[name], rtol=relative, atol=absolute, msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize(("impl", "device"), _PLACES)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", _LENGTHS)
@pytest.mark.parametrize("dtype", _DTYPES, ids=["float32", "float16", "bfloat16"])
def test_every_length_of_mambas_grid(
    dtype: torch.dtype, length: int, groups: int, impl: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(GridCase(dtype, length, groups), impl, device, monkeypatch)


@pytest.mark.parametrize(("impl", "device"), _PLACES)
@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=5)))
@pytest.mark.parametrize(
    "weights", [(1, True, True), (2, True, True), (2, True, False), (2, False, True), (1, False, False)]
)
def test_every_option_of_mambas_grid(
    weights: tuple[int, bool, bool], flags: tuple[bool, ...], impl: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(GridCase(torch.float32, 64, *weights, *flags), impl, device, monkeypatch)


@pytest.mark.parametrize(("impl", "device"), _PLACES)
@pytest.mark.parametrize("weights", [(1, True, False), (2, False, True), (1, False, False)])
@pytest.mark.parametrize("dtype", _DTYPES[1:], ids=["float16", "bfloat16"])
def test_constant_weights_beside_half_precision(
    dtype: torch.dtype, weights: tuple[int, bool, bool], impl: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(GridCase(dtype, 372, *weights), impl, device, monkeypatch)


def test_dtypes_and_layout_are_mambas() -> None:
    arguments = _draw(GridCase(torch.bfloat16, 31))
    output, state = selective_scan_fn(**arguments)
    assert (output.dtype, output.shape, output.is_contiguous()) == (torch.bfloat16, (2, 4, 31), True)
    assert (state.dtype, state.shape) == (torch.float32, (2, 4, 8))
    only_output = selective_scan_fn(**arguments | {"return_last_state": False})
    assert torch.equal(only_output, output)


def test_arguments_may_be_given_by_place() -> None:
    a = _draw(GridCase(torch.float32, 7))
    by_name = selective_scan_fn(**a)
    by_place = selective_scan_fn(
        a["u"], a["delta"], a["A"], a["B"], a["C"], a["D"], a["z"], a["delta_bias"], True, True
    )
    assert all(torch.equal(one, other) for one, other in zip(by_place, by_name, strict=True))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"A": torch.zeros(4, 8, dtype=torch.complex64)}, "A is complex"),
        ({"delta": torch.zeros(2, 31, 4)}, r"delta has the wrong shape; given \(2, 31, 4\); expected \(2, 4, 31\)"),
        ({"z": torch.zeros(2, 4, 30)}, "z has the wrong shape"),
        ({"u": torch.zeros(4, 31)}, "u or A has the wrong number of axes"),
        ({"u": torch.zeros(2, 5, 31)}, "u has the wrong shape"),
        ({"B": torch.zeros(8)}, "B has the wrong number of axes"),
        ({"C": torch.zeros(2, 3, 8, 31)}, "C's groups do not divide"),
    ],
)
def test_what_does_not_fit_is_named_in_mambas_layout(change: dict[str, Tensor], words: str) -> None:
    with pytest.raises(KernelError, match=words):
        selective_scan_fn(**_draw(GridCase(torch.float32, 31)) | change)


@pytest.fixture
def pretended_mamba(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """mamba-ssm's interface with our reference behind it; gives what it was called with."""
    calls: list[dict[str, Any]] = []
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

    def selective_scan_fn(*arguments: Any) -> Any:
        *tensors, softplus, wants_state = arguments
        calls.append(dict(zip(names, tensors, strict=True)))
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
        given = {name: tensor for name, tensor in calls[-1].items() if tensor is not None}
        return _scan_by_tokens_in_float64(**given, delta_softplus=softplus, return_last_state=wants_state)

    interface = types.ModuleType(mamba_ssm_impl._INTERFACE)
    interface.selective_scan_fn = selective_scan_fn  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "mamba_ssm", types.ModuleType("mamba_ssm"))
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops", types.ModuleType("mamba_ssm.ops"))
    monkeypatch.setitem(sys.modules, mamba_ssm_impl._INTERFACE, interface)
    return calls


def _peer_inputs(**options: Any) -> ScanInputs:
    inputs = make_scan(torch.Generator().manual_seed(3), 31, **EVERYTHING | {"initial_state": False} | options)
    inputs = {name: value.float() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    defaults = {"D": None, "z": None, "delta_bias": None, "initial_state": None, "reverse": False}
    return check_inputs(ScanInputs(**defaults | inputs))


@pytest.mark.parametrize(
    "options",
    [{}, {"reverse": True}, {"groups_b": 0}, {"groups_b": 2, "groups_c": 1, "reverse": True}, {"groups_c": 0}],
)
def test_mamba_as_a_peer_gets_what_it_understands(pretended_mamba: list[Any], options: dict[str, Any]) -> None:
    inputs = _peer_inputs(**options)
    output, state = mamba_ssm_impl.scan(inputs)
    expected, expected_state = scan_by_tokens(inputs)
    # The same loop on the same float32 numbers in the same order.
    assert torch.allclose(output, expected, atol=1e-6)
    assert torch.allclose(state, expected_state, atol=1e-6)
    (call,) = pretended_mamba
    assert call["u"].shape == (2, 4, 31)
    by_token = [call[name] for name in ("B", "C") if call[name].ndim == 4]
    assert len({tensor.shape[1] for tensor in by_token}) <= 1


@pytest.mark.usefixtures("pretended_mamba")
def test_mamba_as_a_peer_refuses_a_gradient_that_it_would_drop() -> None:
    inputs = _peer_inputs()
    inputs.u.requires_grad_()
    output, state = mamba_ssm_impl.scan(inputs)
    output.sum().backward()
    with pytest.raises(KernelError, match="no gradient of the last state"):
        state.sum().backward()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (_peer_inputs(initial_state=True), "no initial state"),
        (_peer_inputs()._replace(delta=torch.zeros(2, 31, 4, dtype=torch.bfloat16)), "wants delta as u"),
        (_peer_inputs(groups_b=0, groups_c=2), "no groups of C beside a constant B"),
        (_peer_inputs()._replace(u=torch.zeros(2, 31, 4, dtype=torch.float64)), "does not take u"),
    ],
)
def test_mamba_as_a_peer_names_what_it_does_not_take(inputs: ScanInputs, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        mamba_ssm_impl.scan(inputs)


def test_mamba_is_asked_for_by_name_and_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="CUDA only"):
        choose_implementation("mamba_ssm", torch.device("cpu"), torch.float32)
    with pytest.raises(KernelError, match="state in float32"):
        choose_implementation("mamba_ssm", torch.device("cuda"), torch.float64)
    broken = types.ModuleType("selective_scan_cuda")
    broken.__spec__ = types.SimpleNamespace()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", broken)
    monkeypatch.setitem(sys.modules, mamba_ssm_impl._INTERFACE, None)
    with pytest.raises(KernelError, match="cannot be imported"):
        choose_implementation("mamba_ssm", torch.device("cuda"), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
def test_mamba_itself_agrees_where_it_is_installed(reverse: bool) -> None:
    obstacle = mamba_ssm_impl.find_obstacle(torch.device("cuda"), torch.float32)
    if not torch.cuda.is_available() or obstacle is not None:
        pytest.skip(obstacle or "no CUDA device")
    inputs = make_scan(torch.Generator().manual_seed(4), 130, **EVERYTHING | {"initial_state": False})
    inputs = {n: v.float().cuda() if isinstance(v, Tensor) else v for n, v in inputs.items()} | {"reverse": reverse}
    for found, wanted in zip(run_scan(inputs, "mamba_ssm"), run_scan(inputs, "reference"), strict=True):
        assert torch.allclose(found, wanted, rtol=6e-4, atol=2e-3)
    both = {name: value for name, value in inputs.items() if name != "reverse"}
    assert torch.allclose(run_both(both, "mamba_ssm")[0], run_both(both, "reference")[0], rtol=6e-4, atol=2e-3)

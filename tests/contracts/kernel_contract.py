"""What every operation must do, written once: a subclass names its cases, its reference and one implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Inputs = dict[str, Any]

TOLERANCE = {
    # Relative to the largest reference value. Float32 sums of some hundred terms round at about 1e-6. One rounding to
    # bfloat16 is 2^-9 = 2e-3, to float16 2^-12 = 2.4e-4: a gradient passes through ten or so, and some terms cancel.
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}


class KernelContract:
    """Forward and gradients against the reference, over dtypes, odd sizes, strides and every option.

    `cases` maps a name to a function that makes the inputs (float64) from a seeded generator; `run` calls the
    implementation under test and `define` the reference; both give a tuple of tensors.
    """

    cases: ClassVar[dict[str, Callable[[torch.Generator], Inputs]]]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", sorted(self.cases))
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", self.dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))
        if "device" in metafunc.fixturenames:
            metafunc.parametrize("device", self.devices)

    def test_values_and_gradients_match_the_reference(self, case: str, dtype: torch.dtype, device: str) -> None:
        assert torch.empty(3).isnan().all(), "conftest fills torch.empty with NaN, so that unwritten output shows"
        inputs = _cast(self.make(case), dtype, device)
        expected, expected_gradients = _differentiate(self.define, _cast(inputs, torch.float64, "cpu"))
        given, given_gradients = _differentiate(self.run, inputs)
        for index, (value, wanted) in enumerate(zip(given, expected, strict=True)):
            _assert_near(value, wanted, dtype, f"output {index}")
        for name, gradient in given_gradients.items():
            _assert_near(gradient, expected_gradients[name], dtype, f"gradient of {name}")

    def test_strides_change_nothing(self, case: str, device: str) -> None:
        inputs = _cast(self.make(case), torch.float32, device)
        plain, plain_gradients = _differentiate(self.run, inputs)
        strided, strided_gradients = _differentiate(self.run, {name: _spread(value) for name, value in inputs.items()})
        for value, wanted in zip(strided, plain, strict=True):
            _assert_near(value, wanted, torch.float32, "output")
        for name, gradient in strided_gradients.items():
            _assert_near(gradient, plain_gradients[name], torch.float32, name)

    def test_under_a_checkpoint_gradients_are_the_same(self, case: str, device: str) -> None:
        """What was saved for the backward pass is dropped, computed again and given out once."""
        inputs = _cast(self.make(case), torch.float32, device)
        _, plain = _differentiate(self.run, inputs)
        _, again = _differentiate(lambda leaves: checkpoint(self.run, leaves, use_reentrant=False), inputs)
        assert all(torch.equal(again[name], gradient) for name, gradient in plain.items())

    def test_gradcheck_in_float64(self, case: str) -> None:
        inputs = self.make(case)
        names = [name for name, value in inputs.items() if _is_float(value) and value.numel() <= 200]
        leaves = [inputs[name].clone().requires_grad_() for name in names]

        def finite_outputs(*values: Tensor) -> tuple[Tensor, ...]:
            outputs = self.run({**inputs, **dict(zip(names, values, strict=True))})
            # -inf is a stated output (an empty volume); finite differences of it are not.
            return tuple(torch.where(torch.isfinite(output), output, 0.0) for output in outputs)

        assert torch.autograd.gradcheck(finite_outputs, leaves)

    def make(self, case: str) -> Inputs:
        return self.cases[case](torch.Generator().manual_seed(0))


def _differentiate(
    function: Callable[[Inputs], tuple[Tensor, ...]], inputs: Inputs
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs, and the gradients of one fixed weighted sum of all finite outputs."""
    # detach keeps the strides, which clone would smooth out.
    leaves = {name: value.detach().requires_grad_() if _is_float(value) else value for name, value in inputs.items()}
    outputs = function(leaves)
    loss = sum(_weigh(output) for output in outputs)
    names = [name for name, value in leaves.items() if _is_float(value)]
    wanted = [leaves[name] for name in names]
    # An output that depends on nothing (every row masked) has no graph at all.
    found = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else [None] * len(wanted)
    gradients = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(wanted, found, strict=True)]
    return tuple(output.detach() for output in outputs), dict(zip(names, gradients, strict=True))


def _weigh(output: Tensor) -> Tensor:
    factors = torch.sin(torch.arange(output.numel(), dtype=torch.float64) + 1).reshape(output.shape).to(output.device)
    return (torch.where(torch.isfinite(output), output, 0.0).double() * factors).sum()


def _assert_near(given: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> None:
    given, expected = given.cpu().double(), expected.cpu().double()
    assert given.shape == expected.shape, what
    infinite = torch.isinf(expected)
    assert torch.equal(given[infinite], expected[infinite]), what
    if infinite.all():
        return
    scale = max(expected[~infinite].abs().max().item(), 1e-3)
    error = (given - expected)[~infinite].abs().max().item() / scale
    assert error <= TOLERANCE[dtype], f"{what}: relative error {error:.2e}"


def _cast(inputs: Inputs, dtype: torch.dtype, device: str) -> Inputs:
    return {
        name: value.to(device, dtype if _is_float(value) else value.dtype) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def _spread(value: Any) -> Any:
    """The same numbers, every second place of a larger tensor whose other places hold junk."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    junk = torch.full((*value.shape[:-1], value.shape[-1] * 2), 7, dtype=value.dtype, device=value.device)
    junk[..., ::2] = value
    return junk[..., ::2]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()

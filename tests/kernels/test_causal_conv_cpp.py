"""The causal convolution in C++: the kernel contract, and what holds for columns of 16 channels, strips and threads."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.causal_conv_cases import CASES, make_inputs, run_conv
from contracts.kernel_contract import Inputs, KernelContract
from torch import Tensor

from neuroray.kernels import KernelError, extension
from neuroray.kernels.causal_conv import causal_conv, choose_implementation, cpp_impl

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _compiler() -> None:
    obstacle = cpp_impl.find_obstacle(CPU, torch.float32)
    if obstacle is not None:
        pytest.skip(obstacle)


@pytest.fixture(scope="class")
def general_vectors() -> Iterator[None]:
    """The library as it is on a processor without AVX-512 and without conversions of float16."""
    flags = (*extension.FLAGS, "-DNEURORAY_GENERAL_VECTORS")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpp_impl, "LIBRARY", cpp_impl.LIBRARY.afresh(flags=flags))
        yield


# Sizes at which columns of 16 channels, strips of 128 tokens and the 8 tokens taken at a time end unevenly.
EDGES = {
    "whole columns": lambda g: make_inputs(g, 8, channels=32),
    "a column and one channel": lambda g: make_inputs(g, 65, channels=17),
    "a whole strip": lambda g: make_inputs(g, 128, batch=1, channels=16),
    "two strips and one token": lambda g: make_inputs(g, 257, channels=18, taps=3),
    "a strip and fewer tokens than taps": lambda g: make_inputs(g, 131, channels=33, taps=8, reverse=True),
    "three strips, sum alone": lambda g: make_inputs(g, 300, channels=5, silu=False, bias=False),
}


class TestCpp(KernelContract):
    cases = CASES | EDGES
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "cpp")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "reference")

    def test_gradcheck_in_float64(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """It has no float64; the reference's gradients, which it is compared with, are checked so themselves."""
        assert cpp_impl.find_obstacle(CPU, torch.float64) == "it computes in float32, not torch.float64"


@pytest.mark.usefixtures("general_vectors")
class TestGeneralVectors(TestCpp):
    cases = EDGES | {name: CASES[name] for name in ("eight taps", "reverse", "one token")}


def differentiate(inputs: Inputs) -> list[Tensor]:
    leaves = {n: v.detach().requires_grad_() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    (output,) = run_conv(leaves, "cpp")
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.dtype)
    wanted = [value for value in leaves.values() if isinstance(value, Tensor)]
    return [output.detach(), *torch.autograd.grad(output, wanted, factors)]


def make(tokens: int, dtype: torch.dtype = torch.float32, **options: Any) -> Inputs:
    inputs = make_inputs(torch.Generator().manual_seed(1), tokens, **options)
    return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in inputs.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype) -> None:
    inputs = make(700, dtype, channels=100)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = differentiate(inputs)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert all(torch.equal(one, other) for one, other in zip(differentiate(inputs), alone, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_sums_over_many_tokens_keep_float32_accuracy() -> None:
    # 20,000 terms whose sum does not vanish: added up in float32 one by one they would be wrong by some 1e-4.
    inputs = make(20_000, batch=1, channels=2, silu=False)
    inputs["x"] = inputs["x"].abs()
    leaf = inputs["weight"].requires_grad_()
    causal_conv(**inputs, impl="cpp").sum().backward()
    assert leaf.grad is not None
    expected = inputs["x"][0].double().sum(0)
    # A strip's 128 terms are added in float32, 6e-8 each at worst and mostly far less; strips in double.
    assert ((leaf.grad[:, -1].double() - expected) / expected).abs().max() < 2e-6


def test_torchs_defaults_do_not_matter() -> None:
    inputs = make(31)
    expected = differentiate(inputs)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        leaf = inputs["x"].detach().requires_grad_()
        output = causal_conv(**{**inputs, "x": leaf}, impl="cpp")
        output.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(output, expected[0])


def test_rows_may_lie_further_apart_than_32_bits_count(tmp_path: Path) -> None:
    stride = 2**30 + 16
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate((3 * stride + 5) * 2)
    numbers = torch.from_file(str(sparse), shared=True, size=3 * stride + 5, dtype=torch.bfloat16)
    inputs = make(4, torch.bfloat16, batch=1, channels=5)
    far = numbers.as_strided((1, 4, 5), (0, stride, 1))
    far.copy_(inputs["x"])
    assert torch.equal(causal_conv(**{**inputs, "x": far}, impl="cpp"), causal_conv(**inputs, impl="cpp"))


def test_auto_without_a_compiler_takes_torch_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(cpp_impl, "LIBRARY", cpp_impl.LIBRARY.afresh())
    with caplog.at_level(logging.INFO, "neuroray.kernels"):
        assert [choose_implementation("auto", CPU, torch.float32) for _ in range(3)] == ["torch"] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(KernelError, match=r"cannot run 'cpp' here.*CXX=/nowhere/g\+\+"):
        causal_conv(**make(7), impl="cpp")


def test_it_runs_on_cpus_only() -> None:
    assert cpp_impl.find_obstacle(torch.device("cuda"), torch.float32) == "it runs on CPUs only, not on cuda"


def test_both_sides_mean_the_same_call() -> None:
    library = cpp_impl.LIBRARY.open()
    assert isinstance(library, ctypes.CDLL)
    assert library.neuroray_conv_call_bytes() == ctypes.sizeof(cpp_impl._Call)

"""The selective scan in C++: the kernel contract, and what holds for blocks of 16 channels, chunks and threads."""

from __future__ import annotations

import ctypes
import logging
import math
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from contracts.kernel_contract import Inputs, KernelContract
from contracts.scan_cases import BOTH_CASES, CASES, EVERYTHING, Case, make_both, make_scan, run_both, run_scan
from torch import Tensor

from neuroray.kernels import KernelError, extension
from neuroray.kernels.selective_scan import choose_implementation, cpp_impl

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


# Sizes at which blocks of 16 channels, chunks of 64 tokens and the four states taken at a time end unevenly.
EDGES: dict[str, Case] = {
    "a block and one channel": lambda g: make_scan(g, 65, channels=17, states=4, **EVERYTHING),
    "groups of a block each": lambda g: make_scan(g, 7, channels=48, groups_b=3, groups_c=3, states=5, **EVERYTHING),
    "groups that end within blocks": lambda g: make_scan(g, 70, channels=60, groups_b=3, groups_c=5, **EVERYTHING),
    "a block over eight groups": lambda g: make_scan(g, 7, channels=34, groups_b=17, groups_c=34, reverse=True),
    "groups of blocks for B, parts of them for C": lambda g: make_scan(g, 7, channels=32, groups_b=2, groups_c=4),
    "constant B over blocks": lambda g: make_scan(g, 65, channels=33, groups_b=0, groups_c=3, **EVERYTHING),
    "256 states": lambda g: make_scan(g, 5, batch=1, channels=2, states=256, **EVERYTHING),
    "seven states": lambda g: make_scan(g, 130, batch=3, channels=18, states=7, reverse=True, **EVERYTHING),
}


class TestCpp(KernelContract):
    cases = CASES | EDGES
    dtypes = (torch.float32, torch.float16, torch.bfloat16)

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, "cpp")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, "reference")

    def test_gradcheck_in_float64(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """It has no float64; the reference's gradients, which it is compared with, are checked so themselves."""
        assert cpp_impl.find_obstacle(CPU, torch.float64) == "it computes in float32, not torch.float64"


class TestBothCpp(TestCpp):
    cases = BOTH_CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, "cpp")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, "reference")


@pytest.mark.usefixtures("general_vectors")
class TestGeneralVectors(TestCpp):
    cases = EDGES | {name: CASES[name] for name in ("everything", "softplus of large steps", "a state that grows")}


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def weigh(outputs: tuple[Tensor, ...]) -> Tensor:
    """One fixed weighted sum of all numbers."""
    weights = torch.Generator().manual_seed(1)
    sums = [(one.double() * torch.randn(one.shape, generator=weights, dtype=torch.float64)).sum() for one in outputs]
    return torch.stack(sums).sum()


def differentiate(inputs: Inputs, impl: str = "cpp") -> dict[str, Tensor]:
    """Output, last state and every gradient of a weighted sum of both, by name."""
    run = run_both if "back_A" in inputs else run_scan
    leaves = {n: v.detach().requires_grad_() if isinstance(v, Tensor) else v for n, v in inputs.items()}
    outputs = run(leaves, impl)
    loss = weigh(outputs)
    names = [name for name, value in leaves.items() if isinstance(value, Tensor)]
    gradients = torch.autograd.grad(loss, [leaves[name] for name in names])
    return dict(zip(("output", "last state"), outputs, strict=False)) | dict(zip(names, gradients, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("both", [False, True], ids=["one direction", "both"])
def test_the_error_stays_near_rounding_over_many_chunks(dtype: torch.dtype, tolerance: float, both: bool) -> None:
    # Measured: at most 7e-7 in float32, whose rounding is 6e-8, and 3.4e-3 in bfloat16, whose rounding is 4e-3 at most.
    generator = torch.Generator().manual_seed(2)
    gated = {"D": True, "z": True, "delta_bias": True, "softplus": True}
    make = (
        (lambda: make_both(generator, 321, ("A", "B"), batch=1, channels=33, states=16, **gated))
        if both
        else (lambda: make_scan(generator, 321, batch=1, channels=33, states=16, initial_state=True, **gated))
    )
    inputs = cast(make(), dtype)
    expected = differentiate(cast(inputs, torch.float64), "reference")
    for name, value in differentiate(inputs).items():
        error = (value.double() - expected[name]).norm() / expected[name].norm()
        assert error < tolerance, f"{name}: {error:.1e}"


def test_the_sum_of_two_directions_is_rounded_once() -> None:
    gated = {"D": True, "z": True, "delta_bias": True, "softplus": True}
    inputs = cast(make_both(torch.Generator().manual_seed(11), 130, ("A",), channels=33, **gated), torch.bfloat16)
    (rounded,), (exact,) = run_both(inputs, "cpp"), run_both(cast(inputs, torch.float32), "cpp")
    assert torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize("case", ["plain", "grouped", "constant", "both"])
def test_one_thread_and_three_give_the_same_bits(case: str) -> None:
    generator = torch.Generator().manual_seed(3)
    options = {"channels": 100, "batch": 2, "states": 6, **EVERYTHING}
    inputs = {
        "plain": lambda: make_scan(generator, 700, **options),
        "grouped": lambda: make_scan(generator, 200, groups_b=5, groups_c=2, **options),
        "constant": lambda: make_scan(generator, 200, groups_b=0, groups_c=0, reverse=True, **options),
        "both": lambda: make_both(generator, 200, ("A", "B"), **{**options, "initial_state": False}),
    }[case]()
    inputs = cast(inputs, torch.float32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = differentiate(inputs)
        torch.set_num_threads(3)
        for _ in range(3):
            together = differentiate(inputs)
            assert all(torch.equal(together[name], value) for name, value in alone.items())
    finally:
        torch.set_num_threads(threads)


def test_dtypes_may_differ_between_inputs() -> None:
    inputs = cast(make_scan(torch.Generator().manual_seed(4), 31, channels=20, **EVERYTHING), torch.float32)
    inputs |= {"u": inputs["u"].bfloat16(), "z": inputs["z"].half(), "B": inputs["B"].bfloat16()}
    given, expected = differentiate(inputs), differentiate(inputs, "reference")
    for name, value in given.items():
        assert value.dtype == expected[name].dtype
        # Both compute in float32 and round once, so that they differ by one rounding to bfloat16, 2^-8, where any.
        scale = expected[name].float().abs().max()
        assert (value.float() - expected[name].float()).abs().max() / scale < 2**-8, name


def test_torchs_defaults_do_not_matter() -> None:
    inputs = cast(make_scan(torch.Generator().manual_seed(10), 31, **EVERYTHING), torch.float32)
    expected = differentiate(inputs)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        leaf = inputs["u"].detach().requires_grad_()
        output, last_state = run_scan({**inputs, "u": leaf}, "cpp")
        output.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(output, expected["output"])
    assert torch.equal(last_state, expected["last state"])


def test_steps_and_rates_beyond_the_range_of_floats_forget_all_and_make_no_nan() -> None:
    inputs = cast(make_scan(torch.Generator().manual_seed(5), 7, initial_state=True), torch.float32)
    inputs["delta"][:, 3] = 1e30
    inputs["A"] = inputs["A"] * 1e15
    inputs["u"][:, 3] = 1e-30
    output, state = run_scan(inputs, "cpp")
    expected, expected_state = run_scan(inputs, "reference")
    assert output.isfinite().all()
    assert torch.allclose(output, expected, rtol=1e-5)
    assert torch.allclose(state, expected_state, rtol=1e-5)


def test_a_state_that_outgrows_floats_is_infinite() -> None:
    one = torch.ones(1, 3, 1)
    inputs = {"u": one, "delta": one * 60, "A": torch.ones(1, 1), "B": one, "C": one}
    output, _ = run_scan(inputs, "cpp")
    # The second is 60 (1 + e^60), whose exponent rounds by up to 60 * 6e-8.
    assert output.flatten().tolist() == [60, pytest.approx(60 * (1 + math.exp(60)), rel=1e-5), math.inf]


def test_a_nan_stays_in_its_channel_and_after_its_token() -> None:
    inputs = cast(make_scan(torch.Generator().manual_seed(6), 70, channels=20), torch.float32)
    clean, _ = run_scan(inputs, "cpp")
    inputs["u"][1, 66, 18] = torch.nan
    output, _ = run_scan(inputs, "cpp")
    struck = torch.zeros(2, 70, 20, dtype=torch.bool)
    struck[1, 66:, 18] = True
    assert output[struck].isnan().all()
    assert torch.equal(output[~struck], clean[~struck])


def test_softplus_keeps_its_relative_precision_where_it_is_tiny() -> None:
    # With A = 0 and B = C = u = 1 the output after one token is the step itself.
    raw = torch.cat([torch.linspace(-80, 80, 16000), torch.linspace(-1, 1, 1000)])[:, None, None]
    one = torch.ones_like(raw)
    inputs = {"u": one, "delta": raw, "A": torch.zeros(1, 1), "B": one, "C": one, "delta_softplus": True}
    step, _ = run_scan(inputs, "cpp")
    expected = torch.nn.functional.softplus(raw.double())
    assert ((step - expected) / expected).abs().max() < 3e-7


def test_decays_keep_their_relative_precision() -> None:
    # The state after one token without input is the decay itself; 6e-8 for each unit of the exponent is rounding of it.
    exponent = torch.linspace(-80, 80, 16001)[:, None, None]
    one, zero = torch.ones_like(exponent), torch.zeros_like(exponent)
    inputs = {"u": zero, "delta": exponent, "A": torch.ones(1, 1), "B": one, "C": one, "initial_state": one}
    _, decay = run_scan(inputs, "cpp")
    error = (decay / exponent.double().exp() - 1).abs()
    assert (error < 1.5e-7 + 1.5e-7 * exponent.abs()).all()


def test_only_wanted_gradients_are_made_and_they_do_not_change() -> None:
    inputs = cast(make_scan(torch.Generator().manual_seed(7), 31, groups_b=2, **EVERYTHING), torch.float32)
    everything = differentiate(inputs)
    for name in (name for name, value in inputs.items() if isinstance(value, Tensor)):
        leaf = inputs[name].detach().requires_grad_()
        gradient = torch.autograd.grad(weigh(run_scan({**inputs, name: leaf}, "cpp")), leaf)[0]
        assert torch.equal(gradient, everything[name]), name


def test_a_second_derivative_is_refused() -> None:
    inputs = cast(make_scan(torch.Generator().manual_seed(8), 3), torch.float32)
    inputs["u"].requires_grad_()
    gradient = torch.autograd.grad(run_scan(inputs, "cpp")[0].square().sum(), inputs["u"], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_rows_may_lie_further_apart_than_32_bits_count(tmp_path: Path) -> None:
    stride = 2**30 + 16
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate((3 * stride + 5) * 2)
    numbers = torch.from_file(str(sparse), shared=True, size=3 * stride + 5, dtype=torch.bfloat16)
    inputs = cast(make_scan(torch.Generator().manual_seed(9), 4, batch=1, channels=5), torch.bfloat16)
    far = numbers.as_strided((1, 4, 5), (0, stride, 1))
    far.copy_(inputs["u"])
    assert torch.equal(run_scan({**inputs, "u": far}, "cpp")[0], run_scan(inputs, "cpp")[0])


def test_memory_grows_with_tokens_not_with_states_of_every_token() -> None:
    # Its own process: peak memory of this one is that of the test that took most. 16 states of every token in float32
    # would be 64 bytes for each number of u; inputs, output and gradients of u and delta in bfloat16 are 10.
    script = textwrap.dedent(
        """
        import resource, torch
        from neuroray.kernels.selective_scan import selective_scan

        def run(tokens):
            make = lambda *shape: torch.zeros(*shape, dtype=torch.bfloat16).requires_grad_()
            u, delta, B, C = make(1, tokens, 64), make(1, tokens, 64), make(1, tokens, 16), make(1, tokens, 16)
            selective_scan(u, delta, torch.zeros(64, 16), B, C, impl="cpp", check_values=False).sum().backward()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        few = run(64)
        print((run(40_000) - few) / (40_000 * 64))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20


def test_auto_without_a_compiler_takes_torch_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(cpp_impl, "LIBRARY", cpp_impl.LIBRARY.afresh())
    with caplog.at_level(logging.INFO, "neuroray.kernels"):
        assert [choose_implementation("auto", CPU, torch.float32) for _ in range(3)] == ["torch"] * 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no C++ compiler" in caplog.text
    with pytest.raises(KernelError, match=r"cannot run 'cpp' here.*CXX=/nowhere/g\+\+"):
        choose_implementation("cpp", CPU, torch.float32)


def test_what_it_cannot_take_is_named() -> None:
    assert cpp_impl.find_obstacle(torch.device("cuda"), torch.float32) == "it runs on CPUs only, not on cuda"
    inputs = cast(make_scan(torch.Generator(), 3), torch.float32)
    with pytest.raises(KernelError, match=r"delta has a dtype that no scan in C\+\+ reads; given torch.float8"):
        run_scan({**inputs, "delta": inputs["delta"].to(torch.float8_e5m2), "check_values": False}, "cpp")


def test_both_sides_mean_the_same_call() -> None:
    library = cpp_impl.LIBRARY.open()
    assert isinstance(library, ctypes.CDLL)
    assert library.neuroray_scan_call_bytes() == ctypes.sizeof(cpp_impl._Call)

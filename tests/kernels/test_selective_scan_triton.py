"""The selective scan's Triton kernels: the contract in the interpreter and on a GPU, memory, and where they run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from contracts.kernel_contract import Inputs, KernelContract
from contracts.scan_cases import BOTH_CASES, CASES, EVERYTHING, make_both, make_scan, run_both, run_scan
from torch import Tensor

from neuroray.kernels import KernelError
from neuroray.kernels.selective_scan import selective_scan, triton_impl, triton_plan
from neuroray.kernels.selective_scan.inputs import ScanInputs

pytest.importorskip("triton")

# Triton reads this when the kernels are defined, so a process either interprets or compiles.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiled = pytest.mark.skipif(INTERPRETED, reason="this process interprets")
# The interpreter takes about a millisecond for each token and program, so that not every case is run there.
SLOW_INTERPRETED = {"130 tokens", "130 tokens, sixteen states", "31 tokens in groups", "65 tokens reverse"}
HALF_INTERPRETED = {"reverse everything", "constant B and C", "all shared, gated"}

# Several chunks where only these kernels have a way of their own: one summary for both directions, and groups.
_GATED = {"D": True, "z": True, "delta_bias": True, "softplus": True}
SCAN_CASES = CASES | {"two chunks in groups": lambda g: make_scan(g, 31, batch=1, channels=2, groups_b=2, groups_c=1)}
SHARED_CASES = BOTH_CASES | {
    "one summary": lambda g: make_both(g, 31, ("B", "C", "D"), **_GATED),
    "one summary, constant B": lambda g: make_both(g, 31, ("B",), batch=1, groups_b=0),
}


class ScanContract(KernelContract):
    cases = SCAN_CASES
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float16, torch.bfloat16)
    # The kernels know no float64, and the reference that they are held against has passed this.
    test_gradcheck_in_float64 = None  # pyright: ignore[reportAssignmentType]

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, "triton")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_scan(inputs, "reference")


class BothContract(ScanContract):
    cases = SHARED_CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, "triton")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_both(inputs, "reference")


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 tokens in two runs: 31 tokens make two chunks, the second not full, and 130 make nine."""
    monkeypatch.setattr(triton_plan, "RUN", 8)
    monkeypatch.setattr(triton_plan, "MAX_RUNS", 2)


if INTERPRETED:

    @pytest.mark.usefixtures("_short_chunks")
    class TestInterpreted(ScanContract):
        cases: ClassVar = {name: case for name, case in SCAN_CASES.items() if name not in SLOW_INTERPRETED}
        dtypes: ClassVar = (torch.float32,)
        test_strides_change_nothing = None  # pyright: ignore[reportAssignmentType]

    @pytest.mark.usefixtures("_short_chunks")
    class TestBothInterpreted(BothContract):
        cases: ClassVar = {
            name: case for name, case in SHARED_CASES.items() if name not in SLOW_INTERPRETED | {"65 tokens"}
        }
        dtypes: ClassVar = (torch.float32,)
        test_strides_change_nothing = None  # pyright: ignore[reportAssignmentType]

    @pytest.mark.usefixtures("_short_chunks")
    class TestHalfInterpreted(ScanContract):
        cases: ClassVar = {name: case for name, case in SCAN_CASES.items() if name in HALF_INTERPRETED}
        dtypes: ClassVar = (torch.float16, torch.bfloat16)

    @pytest.mark.usefixtures("_short_chunks")
    class TestHalfBothInterpreted(BothContract):
        cases: ClassVar = {name: case for name, case in SHARED_CASES.items() if name in HALF_INTERPRETED}
        dtypes: ClassVar = (torch.bfloat16,)
        test_strides_change_nothing = None  # pyright: ignore[reportAssignmentType]

    def test_runs_as_long_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
        suite = TestInterpreted()
        case = {"": lambda g: make_scan(g, 130, batch=1, states=16, **EVERYTHING)}
        monkeypatch.setattr(suite, "cases", case, raising=False)
        suite.test_values_and_gradients_match_the_reference("", torch.float32, "cpu")

    def test_a_view_of_wider_rows_needs_no_copy() -> None:
        wide = torch.randn(2, 7, 6)
        u, z = wide.chunk(2, dim=-1)
        constant = torch.ones(3, 2)
        inputs = ScanInputs(u, u, -constant, constant, constant, None, z, None, None, True, False)
        operands = triton_plan.make_operands(inputs, triton_plan.make_plan(inputs))
        assert operands.u.data_ptr() == u.data_ptr()
        assert operands.z.data_ptr() == z.data_ptr()
        given = triton_impl.scan(inputs)[0]
        plain = triton_impl.scan(inputs._replace(u=u.contiguous(), delta=u.contiguous(), z=z.contiguous()))[0]
        assert torch.equal(given, plain)


@compiled
@pytest.mark.slow
def test_the_contract_holds_in_the_interpreter() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not gpu",
        "-k",
        "(nterpreted or chunks) and not checkpoint",  # of which a GPU sees all: one here takes seconds
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, __file__], env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 0, result.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", result.stdout)[-1]) >= 45


def make_inputs(tokens: int, *, batch: int = 1, channels: int = 1024, states: int = 16) -> ScanInputs:
    """All that a scan takes, in bfloat16 and without memory: as a layer of BrainMT has it."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    by_channel = empty(batch, tokens, channels)
    by_state = empty(batch, tokens, 1, states)
    rates = empty(channels, states)
    skip = empty(channels)
    return ScanInputs(by_channel, by_channel, rates, by_state, by_state, skip, by_channel, skip, None, True, False)


@pytest.mark.parametrize("batch", [1, 2])
def test_backward_needs_at_most_twice_the_inputs_and_the_output(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_plan, "count_processors", lambda device: 132)
    inputs = make_inputs(50_401, batch=batch)
    tensors = [field for field in (*inputs, inputs.u) if isinstance(field, Tensor)]
    in_and_out = sum(tensor.nbytes for tensor in tensors)
    plan = triton_plan.make_plan(inputs)
    scratch = sum(4 * torch.Size(shape).numel() for shape in triton_impl.list_scratch(inputs, plan).values())
    # Kept since the forward pass: the state that enters each chunk. Then B and C in float32, and three gradients.
    kept = 4 * plan.batch * plan.num_chunks * plan.padded_states * plan.num_columns
    copies = 2 * (inputs.B.nbytes + inputs.C.nbytes)
    gradients = 3 * inputs.u.nbytes
    print(f"scratch {scratch:,} + {kept:,} + {copies:,} + gradients {gradients:,}; in and out {in_and_out:,} bytes")
    assert scratch + kept + copies + gradients <= 2 * in_and_out


@pytest.mark.parametrize(
    ("tokens", "batch", "channels"), [(1, 1, 1), (7, 3, 66), (130, 1, 5), (50_401, 1, 1024), (400_000, 64, 8192)]
)
def test_chunks_cover_all_tokens_and_offsets_within_one_fit_in_32_bits(
    tokens: int, batch: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_plan, "count_processors", lambda device: 132)
    plan = triton_plan.make_plan(make_inputs(tokens, batch=batch, channels=channels))
    assert (plan.num_chunks - 1) * plan.length < tokens <= plan.num_chunks * plan.length
    assert plan.length % plan.run == 0
    assert plan.num_columns >= channels
    # Four times the channels: u may be a slice of wider rows.
    assert plan.length * 4 * channels < 2**31
    assert plan.num_programs < 2**31


@compiled
@pytest.mark.parametrize(
    ("device", "dtype", "words"),
    [("cpu", torch.float32, "lie on cpu"), ("cuda", torch.float64, "float32, not float64")],
)
def test_it_says_why_it_cannot_run(device: str, dtype: torch.dtype, words: str) -> None:
    obstacle = triton_impl.find_obstacle(torch.device(device), dtype)
    assert obstacle is not None
    assert words in obstacle


@compiled
def test_named_on_a_cpu_it_raises_rather_than_falling_back() -> None:
    one = torch.ones(1, 1, 1)
    with pytest.raises(KernelError, match="lie on cpu"):
        selective_scan(one, one, one[0], one, one, impl="triton")


def test_without_triton_the_obstacle_is_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert triton_impl.find_obstacle(torch.device("cuda"), torch.float32) == "triton is not installed"


@pytest.mark.gpu
class TestOnGpu(ScanContract):
    devices: ClassVar = ("cuda",)


@pytest.mark.gpu
class TestBothOnGpu(BothContract):
    devices: ClassVar = ("cuda",)


@pytest.mark.gpu
def test_two_runs_agree_to_the_last_bit() -> None:
    options = {"channels": 66, "states": 16, "D": True, "z": True, "softplus": True}
    inputs = make_both(torch.Generator().manual_seed(1), 5041, ("A",), **options)

    def run() -> list[Tensor]:
        leaves = {
            name: value.cuda().float().requires_grad_() if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        (output,) = run_both(leaves, "triton")
        wanted = [value for value in leaves.values() if isinstance(value, Tensor)]
        return [output, *torch.autograd.grad(output.square().sum(), wanted)]

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
def test_a_long_odd_sequence_keeps_float32_accuracy(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_scan(torch.Generator().manual_seed(2), 5041, channels=65, states=16, reverse=reverse, **EVERYTHING)
    suite = TestOnGpu()
    monkeypatch.setattr(suite, "cases", {"long": lambda _: inputs}, raising=False)
    suite.test_values_and_gradients_match_the_reference("long", torch.float32, "cuda")


@pytest.mark.gpu
def test_forward_and_backward_take_no_more_memory_than_is_counted() -> None:
    shape, states = (1, 20_001, 512), 16
    by_channel = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    by_state = [torch.randn(1, shape[1], states, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    rates = -torch.rand(shape[2], states, device="cuda")
    dout = torch.ones(shape, device="cuda", dtype=torch.bfloat16)
    u, delta, z = by_channel
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = selective_scan(u, delta, rates, *by_state, z=z, delta_softplus=True, impl="triton")
    assert isinstance(out, Tensor)
    out.backward(dout)
    grown = torch.cuda.max_memory_allocated() - before
    in_and_out = 4 * u.nbytes + 2 * by_state[0].nbytes + rates.nbytes
    assert grown <= 2 * in_and_out

"""The causal convolution's Triton kernels: the suites in the interpreter, code for two GPUs, the suites on a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from contracts.causal_conv_cases import CASES, make_inputs, run_conv
from contracts.kernel_contract import Inputs, KernelContract
from torch import Tensor

from neuroray.kernels import KernelError
from neuroray.kernels.causal_conv import causal_conv, choose_implementation, triton_impl

triton = pytest.importorskip("triton")

# Triton reads this when the kernels are defined, so a process either interprets or compiles.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiled = pytest.mark.skipif(INTERPRETED, reason="this process interprets")


class TritonContract(KernelContract):
    cases = CASES
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.float16, torch.bfloat16)
    # The kernels know no float64, and the reference that they are held against has passed this.
    test_gradcheck_in_float64 = None  # pyright: ignore[reportAssignmentType]

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "triton")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return run_conv(inputs, "reference")


if INTERPRETED:

    @pytest.fixture
    def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton_impl, "SHORTEST", 8)
        monkeypatch.setattr(triton_impl, "LONGEST", 8)

    # The interpreter takes some milliseconds for each token and program, so that not every case is run there.
    class TestInterpreted(TritonContract):
        cases: ClassVar = {name: case for name, case in CASES.items() if "130 tokens" not in name}
        dtypes: ClassVar = (torch.float32,)
        test_strides_change_nothing = None  # pyright: ignore[reportAssignmentType]

    class TestHalfInterpreted(TritonContract):
        cases: ClassVar = {name: CASES[name] for name in ("plain", "eight taps", "sum alone, reverse")}
        dtypes: ClassVar = (torch.float16, torch.bfloat16)

    @pytest.mark.usefixtures("_short_chunks")
    class TestInterpretedInShortChunks(TritonContract):
        cases: ClassVar = {name: CASES[name] for name in ("five taps", "eight taps", "31 tokens")}
        dtypes: ClassVar = (torch.float32,)

    def test_chunks_change_no_output_and_gradients_by_rounding_only(monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = make_inputs(torch.Generator().manual_seed(3), 33, batch=1, channels=130)
        found = []
        for length in (8, 128):
            monkeypatch.setattr(triton_impl, "SHORTEST", length)
            monkeypatch.setattr(triton_impl, "LONGEST", length)
            leaves = {n: v.float().requires_grad_() if isinstance(v, Tensor) else v for n, v in inputs.items()}
            (output,) = run_conv(leaves, "triton")
            found.append([output, *torch.autograd.grad(output.square().sum(), [leaves["x"], leaves["weight"]])])
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        # Sums of 33 terms, in two orders: 6e-8 each, at worst.
        assert torch.allclose(found[0][2], found[1][2], rtol=1e-5, atol=1e-4)


@compiled
@pytest.mark.slow
@pytest.mark.skipif(
    triton.__version__.startswith("3.6."),
    reason="its interpreter cannot count to a number known at run time (numpy 2.4)",
)
def test_the_suites_pass_in_the_interpreter() -> None:
    folder = Path(__file__).parent
    files = [str(folder / name) for name in ("test_causal_conv_triton.py", "test_causal_conv.py")]
    chosen = ["-m", "not gpu", "-k", "triton or nterpreted or chunks"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder.parents[1])
    assert result.returncode == 0, result.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", result.stdout)[-1]) >= 60


IN_AND_OUT = {"x_ptr", "out_ptr", "dout_ptr", "dx_ptr"}
UNSPECIALISED = {"tokens", "length", "num_chunks"}
# Registers with four taps: 128 leave room for 16 programs of one warp on a multiprocessor of 65,536 twice over.
MOST_REGISTERS = {"convolve": 128, "differentiate": 168}


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("taps", [2, 4, 8])
@pytest.mark.parametrize("name", ["convolve", "differentiate"])
def test_a_kernel_compiles_without_spills(name: str, taps: int, dtype: str, capability: int) -> None:
    usage, wide = _compile(name, taps, dtype, capability)
    print(f"sm_{capability} {dtype} {name}, {taps} taps: {usage['REG']} registers")
    assert (usage["STACK"], usage["LOCAL"], usage["SHARED"]) == (0, 0, 0)
    assert taps > 4 or usage["REG"] <= MOST_REGISTERS[name]
    # Each thread reads and writes its four channels at once: the tokens fetched together, and those before them.
    assert wide >= triton_impl.AT_ONCE[name] + taps - 1


@compiled
@pytest.mark.parametrize("name", ["convolve", "differentiate"])
def test_a_kernel_compiles_where_every_size_is_one(name: str) -> None:
    # Triton makes a constant of every integer argument that is 1.
    ones = {"x_batch": 1, "x_token": 1, "channels": 1}
    if name == "differentiate":
        ones |= {"dout_batch": 1, "dout_token": 1}
    _compile(name, 4, "fp32", 90, **ones)


def _compile(name: str, taps: int, dtype: str, capability: int, **fixed: int) -> tuple[dict[str, int], int]:
    """Registers, stack, local and shared bytes; how many instructions read more than one number."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from neuroray.kernels.causal_conv import triton_kernels

    kernel = getattr(triton_kernels, name)
    constants: dict[str, Any] = {
        "TAPS": taps,
        "BLOCK": triton_impl.BLOCK,
        "AT_ONCE": triton_impl.AT_ONCE[name],
        "SILU": True,
        "REVERSE": True,
        **fixed,
    }
    if name == "differentiate":
        constants["NEEDS_X"] = True
    names = kernel.arg_names
    kinds = {n: f"*{dtype if n in IN_AND_OUT else 'fp32'}" if n.endswith("_ptr") else "i32" for n in names}
    kinds |= dict.fromkeys(constants, "constexpr")
    aligned = [at for at, n in enumerate(names) if kinds[n] != "constexpr" and n not in UNSPECIALISED]
    source = ASTSource(
        kernel,
        kinds,
        {(names.index(n),): value for n, value in constants.items()},
        {(at,): [["tt.divisibility", 16]] for at in aligned},
    )
    options = {"num_warps": 1, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    usage = {kind: int(size) for kind, size in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", listing.stdout)}
    return usage, len(re.findall(r"ld\.global\S*\.v[24]\.", compiled.asm["ptx"]))


@pytest.mark.parametrize(
    ("tokens", "programs_of_chunk", "processors", "length"),
    [(1, 1, 132, 16), (2048, 4, 132, 16), (50_401, 8, 132, 64), (400_000, 64, 132, 128), (130, 1, 1, 16)],
)
def test_chunks_keep_processors_busy_and_are_neither_short_nor_long(
    tokens: int, programs_of_chunk: int, processors: int, length: int
) -> None:
    assert triton_impl.choose_length(tokens, programs_of_chunk, processors) == length


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
    with pytest.raises(KernelError, match="lie on cpu"):
        causal_conv(torch.ones(1, 1, 1), torch.ones(1, 2), impl="triton")


def test_without_triton_the_obstacle_is_its_absence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert triton_impl.find_obstacle(torch.device("cuda"), torch.float32) == "triton is not installed"


@pytest.mark.gpu
class TestOnGpu(TritonContract):
    devices: ClassVar = ("cuda",)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_long_odd_sequence_keeps_float32_accuracy(self, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        inputs = make_inputs(torch.Generator().manual_seed(4), 5041, channels=257, reverse=reverse)
        monkeypatch.setattr(self, "cases", {"long": lambda _: inputs}, raising=False)
        self.test_values_and_gradients_match_the_reference("long", torch.float32, "cuda")

    def test_two_runs_agree_to_the_last_bit(self) -> None:
        inputs = make_inputs(torch.Generator().manual_seed(5), 5041, channels=66)

        def run() -> list[Tensor]:
            leaves = {n: v.cuda().float().requires_grad_() if isinstance(v, Tensor) else v for n, v in inputs.items()}
            (output,) = run_conv(leaves, "triton")
            wanted = [value for value in leaves.values() if isinstance(value, Tensor)]
            return [output, *torch.autograd.grad(output.square().sum(), wanted)]

        assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))

    def test_auto_takes_it(self) -> None:
        assert choose_implementation("auto", torch.device("cuda"), torch.float32) == "triton"

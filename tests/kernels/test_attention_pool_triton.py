"""Attention pooling's Triton kernels: the suites in the interpreter, code for two GPUs, and the suites on a GPU."""

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
from contracts.attention_pool_cases import CASES, make_inputs
from contracts.kernel_contract import Inputs, KernelContract
from torch import Tensor

from neuroray.kernels.attention_pool import attention_pool

triton = pytest.importorskip("triton")

# Triton reads this when the kernels are defined, so a process either interprets or compiles.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiled = pytest.mark.skipif(INTERPRETED, reason="this process interprets")


class TritonContract(KernelContract):
    cases = CASES

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="triton")

    def define(self, inputs: Inputs) -> tuple[Tensor, ...]:
        return attention_pool(**inputs, impl="reference")


if INTERPRETED:

    class TestInterpreted(TritonContract):
        # Gradients in float64 equal the reference's to 1e-12, and the reference is held against finite differences;
        # those would take minutes here.
        test_gradcheck_in_float64 = None

    def test_many_tiles_of_several_volumes_merge(monkeypatch: pytest.MonkeyPatch) -> None:
        from neuroray.kernels.attention_pool import projections, triton_impl

        monkeypatch.setattr(triton_impl, "SMALLEST_TILE", 2)
        monkeypatch.setattr(triton_impl, "MERGED_TILES", 4)
        monkeypatch.setattr(projections, "KEPT_BYTES", 0)
        inputs = make_inputs(torch.Generator().manual_seed(2), [31, 0, 1, 7], head=2, gated=True, masked=0.2)
        suite = TestInterpreted()
        suite.cases = {"tiles": lambda _: inputs}
        suite.test_values_and_gradients_match_the_reference("tiles", torch.float64, "cpu")

    def test_more_channels_than_one_block_holds_are_scored_once() -> None:
        inputs = make_inputs(torch.Generator().manual_seed(3), [5, 2], channel=1025, hidden=65)
        suite = TestInterpreted()
        suite.cases = {"wide": lambda _: inputs}
        suite.test_values_and_gradients_match_the_reference("wide", torch.float64, "cpu")

    def test_small_projections_keep_their_digits() -> None:
        # tanh by a sigmoid would lose 4 of float32's 7 digits here: 2 sigmoid(2e-4) - 1.
        inputs = make_inputs(torch.Generator().manual_seed(4), [7])
        inputs["h"] = inputs["h"] * 1e-4
        inputs["w"] = inputs["w"] * 1e4
        suite = TestInterpreted()
        suite.cases = {"small": lambda _: inputs}
        suite.test_values_and_gradients_match_the_reference("small", torch.float32, "cpu")


@compiled
@pytest.mark.slow
@pytest.mark.skipif(
    triton.__version__.startswith("3.6."),
    reason="its interpreter cannot count to a number known at run time (numpy 2.4)",
)
def test_the_suites_pass_in_the_interpreter() -> None:
    folder = Path(__file__).parent
    files = [str(folder / name) for name in ("test_attention_pool_triton.py", "test_attention_pool.py")]
    chosen = ["-m", "not gpu", "-k", "triton or Interpreted"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *files]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder.parents[1])
    assert result.returncode == 0, result.stdout[-4000:]
    assert int(re.findall(r"(\d+) passed", result.stdout)[-1]) >= 60


IN_AND_OUT = ("h", "projected", "w", "bias_w", "pooled", "d_pooled", "d_h", "d_projected")
SCORES = ("scores", "peaks", "totals", "sums", "weights", "log_sum_exp", "d_log_sum_exp")
GRADIENTS = ("gains", "means", "d_weights", "d_scores", "d_w")
CONSTANTS: dict[str, Any] = {"GATED": True, "HAS_BIAS": True, "HAS_MASK": True, "NEEDS_H": True, "BLOCK_TILES": 32}
KERNELS = {
    "score_tiles": ({"BLOCK_ROWS": 16, "BLOCK_HIDDEN": 64, "BLOCK_CHANNEL": 1024}, 8),
    "merge_tiles": ({"BLOCK_ROWS": 64, "BLOCK_CHANNEL": 128}, 4),
    "differentiate_weights": ({"BLOCK_ROWS": 8, "BLOCK_CHANNEL": 512}, 8),
    "differentiate_scores": ({"BLOCK_ROWS": 16, "BLOCK_HIDDEN": 32}, 8),
}
"""Block sizes and warps as for 768 channels and 256 hidden units."""


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_without_spills(name: str, dtype: str, capability: int) -> None:
    from neuroray.kernels.attention_pool import triton_kernels

    blocks, num_warps = KERNELS[name]
    constants = {**CONSTANTS, **blocks, "STATE": triton.language.float32}
    usage = _compile(getattr(triton_kernels, name), constants, dtype, capability, num_warps)
    assert (usage["STACK"], usage["LOCAL"]) == (0, 0)
    # 128 registers leave room for 16 warps on a multiprocessor of 65,536.
    assert usage["REG"] <= 128


def _compile(kernel: Any, constants: dict[str, Any], dtype: str, capability: int, num_warps: int) -> dict[str, int]:
    """Registers, stack and local bytes per thread, read from the machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = dict.fromkeys((*SCORES, *GRADIENTS), "*fp32") | dict.fromkeys(IN_AND_OUT, f"*{dtype}")
    kinds |= {"mask": "*i1", "offsets": "*i64"} | dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: kinds.get(name, "i32") for name in names},
        {(names.index(name),): value for name, value in constants.items() if name in names},
        {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if kinds.get(name, "i32") != "constexpr"},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps})
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        listing = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", listing.stdout)}


@pytest.mark.gpu
class TestOnGpu(TritonContract):
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def run(self, inputs: Inputs) -> tuple[Tensor, ...]:
        moved = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in inputs.items()}
        return super().run(moved)

    def test_two_runs_agree_to_the_last_bit(self) -> None:
        inputs = make_inputs(torch.Generator().manual_seed(5), [130, 0, 700], channel=65, hidden=31, head=2, gated=True)
        names = [name for name, value in inputs.items() if value.is_floating_point()]

        def run() -> list[Tensor]:
            leaves = {name: inputs[name].cuda().float().requires_grad_() for name in names}
            output = self.run({**inputs, **leaves})
            return [*output, *torch.autograd.grad(output[0].square().sum(), list(leaves.values()))]

        assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))

    @pytest.mark.parametrize("impl", ["triton", "torch"])
    def test_one_huge_volume_agrees_with_a_softmax_over_it(self, impl: str) -> None:
        inputs = make_inputs(torch.Generator().manual_seed(6), [300_001, 1], channel=64, hidden=32, gated=True)
        inputs = {name: value.cuda() for name, value in inputs.items()}
        output = attention_pool(**inputs, impl=impl)
        h = inputs["h"][:-1]
        hidden = torch.tanh(h @ inputs["V"].T) * torch.sigmoid(h @ inputs["U"].T)
        weights = torch.softmax(hidden @ inputs["w"].T, 0)
        # Sums of 300,001 terms in float64, 1e-16 each, at most.
        assert torch.allclose(output.weights[:-1], weights, atol=1e-12)
        assert torch.allclose(output.pooled[0], weights.T @ h, atol=1e-10)

    def test_auto_takes_it(self) -> None:
        from neuroray.kernels.attention_pool.api import choose_implementation

        assert choose_implementation("auto", torch.device("cuda"), torch.float32) == "triton"

"""The selective scan's Triton kernels as machine code for two GPUs: no spills, few registers, few instructions."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets")

STATES, BLOCK = 16, 32
COMMON = {"STATES": STATES, "BLOCK": BLOCK, "SOFTPLUS": True, "B_FIXED": False}
ONE_WAY = {**COMMON, "REVERSE": True}
FULL = {**ONE_WAY, "C_FIXED": False, "GATED": True}
# Name: constants, the most registers, and for the loop over tokens the most instructions for each token, channel and
# state: mamba-ssm's have 22.7 forward and 71 backward, counted alike, where the length is a multiple of 2,048, and
# 39.7 and 90.6 elsewhere. 128 registers leave room for 16 warps on a multiprocessor of 65,536, 255 for 8.
KERNELS: dict[str, tuple[dict[str, Any], int, float]] = {
    "summarise": (ONE_WAY, 128, 8),
    "summarise_both": ({**COMMON, "BACK_B_FIXED": False}, 160, 11),
    "emit": ({**FULL, "ADDED": False}, 112, 11),
    "retrace": ({**FULL, "RUN": 32, "KEEP_Y": False, "ADD_Y": False}, 200, 16),
    "walk_back": ({**FULL, "RUN": 32, "ADD_DU": False, "ADD_DDELTA": False}, 255, 25),
}
CARRY = {"STATES": STATES, "BLOCK": BLOCK, "ROWS": 16, "REVERSE": True}
# Pointers to what has the dtype of the inputs; all others point to float32.
TENSORS = {"u_ptr", "delta_ptr", "z_ptr", "out_ptr", "dout_ptr", "du_ptr", "ddelta_ptr", "dz_ptr"}
UNSPECIALISED = {"stride", "length", "num_chunks", "tokens"}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_to_short_loops_without_spills(name: str, dtype: str, capability: int) -> None:
    constants, most_registers, most_instructions = KERNELS[name]
    usage, loops = _compile(name, constants, dtype, capability)
    # The innermost loops; `walk_back` takes four tokens at a time, its longest.
    per_element = max(loops) / (STATES * BLOCK / 32) / (4 if name == "walk_back" else 1)
    print(f"sm_{capability} {dtype} {name}: {per_element:.1f} instructions an element, {usage['REG']} registers")
    assert (usage["STACK"], usage["LOCAL"]) == (0, 0)
    assert usage["REG"] <= most_registers
    assert per_element <= most_instructions


@pytest.mark.parametrize("capability", [80, 90])
def test_the_carry_between_chunks_compiles_without_spills(capability: int) -> None:
    usage, _ = _compile("carry", CARRY, "fp32", capability)
    assert (usage["STACK"], usage["LOCAL"]) == (0, 0)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_where_every_size_is_one(name: str) -> None:
    # Triton makes a constant of every integer argument that is 1.
    constants, _, _ = KERNELS[name]
    sizes = [other for other in _names(name) if not other.endswith("_ptr") and other not in constants]
    ones = dict.fromkeys(set(sizes) - UNSPECIALISED, 1)
    _compile(name, {**constants, **ones}, "fp32", 90)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("states", [1, 256])
def test_a_kernel_compiles_for_few_and_many_states(name: str, states: int) -> None:
    constants, _, _ = KERNELS[name]
    _compile(name, {**constants, "STATES": states}, "bf16", 90, num_warps=max(1, states // 16))


def _names(name: str) -> list[str]:
    return list(_find_kernel(name).arg_names)


def _find_kernel(name: str) -> Any:
    from neuroray.kernels.selective_scan import triton_backward, triton_forward

    return getattr(triton_backward, name) if name in ("retrace", "walk_back") else getattr(triton_forward, name)


def _compile(
    name: str, constants: dict[str, Any], dtype: str, capability: int, num_warps: int = 1
) -> tuple[dict[str, int], list[int]]:
    """Registers, stack and local bytes per thread; the lengths of innermost loops in instructions."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = _find_kernel(name)
    names = _names(name)
    # As launched for 1,024 channels and one group.
    constants = {**{other: 1 for other in names if other.endswith("_groups")}, **constants}
    kinds = {other: f"*{dtype if other in TENSORS else 'fp32'}" if other.endswith("_ptr") else "i32" for other in names}
    kinds |= dict.fromkeys(constants, "constexpr")
    aligned = [at for at, other in enumerate(names) if kinds[other] != "constexpr" and other not in UNSPECIALISED]
    source = ASTSource(
        kernel,
        kinds,
        {(names.index(other),): value for other, value in constants.items()},
        {(at,): [["tt.divisibility", 16]] for at in aligned},
    )
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run_tool("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run_tool("nvdisasm", "-c", file.name)
    return {kind: int(size) for kind, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}, _measure_loops(listing)


def _run_tool(name: str, *arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _measure_loops(listing: str) -> list[int]:
    """Instructions of every innermost loop: from a label to the branch back to it, with no such branch between."""
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    count = 0
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L\w+):", line):
            labels[label[1]] = count
        if instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*);", line):
            target = re.search(r"\bBRA\b.*?(\.L\w+)", instruction[1])
            # A branch to itself pads the end of the code.
            if target and target[1] in labels and labels[target[1]] < count:
                loops.append((labels[target[1]], count + 1))
            count += 1
    inner = [
        one for one in loops if not any(one != other and one[0] <= other[0] < other[1] <= one[1] for other in loops)
    ]
    return [end - begin for begin, end in inner]

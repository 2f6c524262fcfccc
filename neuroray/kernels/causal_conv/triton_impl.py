"""The causal convolution by the Triton kernels: launches, gradients, and where it can run.

Triton itself is imported with the first call, so that this module can be asked for its obstacle on any machine.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuroray.kernels.causal_conv.inputs import ConvInputs

# Channels of a program of one warp: four for each thread, which it reads in one instruction.
BLOCK = 128
# Tokens fetched together; backward fetches two tensors, and keeps twice as much.
AT_ONCE = {"convolve": 8, "differentiate": 4}
# Tokens of a chunk: the least makes the taps - 1 that are read twice few; the most, the parts that backward sums.
SHORTEST, LONGEST = 16, 128
# Programs to give each multiprocessor, where there are tokens enough: what is resident together.
PROGRAMS_OF_PROCESSOR = 32


def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot run for a device and a dtype of arithmetic; None: they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if dtype != torch.float32:
        return f"the Triton kernels compute in float32, not {str(dtype).removeprefix('torch.')}"
    if device.type != "cuda" and not _is_interpreted():
        return f"the inputs lie on {device.type}; the Triton kernels run on a CUDA device"
    return None


def convolve(inputs: ConvInputs) -> Tensor:
    """Output in x's dtype, differentiable once in x, weight and bias."""
    return _Convolution.apply(*inputs)  # pyright: ignore[reportReturnType] - apply's own annotation is Any


def choose_length(tokens: int, programs_of_chunk: int, processors: int) -> int:
    """Tokens of a chunk: a power of two that gives every processor enough programs, where it can.

    Args:
        tokens: Of the sequence.
        programs_of_chunk: Programs that share a chunk: batch times blocks of channels.
        processors: Of the device.
    """
    wanted = tokens * programs_of_chunk / (processors * PROGRAMS_OF_PROCESSOR)
    return min(LONGEST, max(SHORTEST, 2 ** math.floor(math.log2(max(1, wanted)))))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *fields: Any) -> Tensor:
        inputs = ConvInputs(*fields)
        out = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
        x = _join_channels(inputs.x)
        with _on_device(x):
            programs, sizes = _plan(inputs)
            _load().convolve[(programs,)](
                *(x, _lay_weights(inputs), out, *x.stride()[:2], *sizes), **_list_options(inputs, "convolve")
            )
        ctx.save_for_backward(inputs.x, inputs.weight, inputs.bias)
        ctx.silu, ctx.reverse = inputs.silu, inputs.reverse
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - once_differentiable's own
        x, weight, bias = ctx.saved_tensors
        inputs = ConvInputs(x, weight, bias, ctx.silu, ctx.reverse)
        x, dout = _join_channels(x), _join_channels(grad_outputs[0])
        needs_x = ctx.needs_input_grad[0]
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
        with _on_device(x):
            programs, sizes = _plan(inputs)
            channels, _, _, num_chunks = sizes
            sums = x.new_empty(len(x) * num_chunks, inputs.num_taps + 1, channels, dtype=torch.float32)
            _load().differentiate[(programs,)](
                *(x, _lay_weights(inputs), dout, x if dx is None else dx, sums),
                *(*x.stride()[:2], *dout.stride()[:2], *sizes),
                **_list_options(inputs, "differentiate"),
                NEEDS_X=needs_x,
            )
        # One sum of fixed order, so that two runs agree to the last bit.
        total = sums.sum(0)
        by_bias = None if bias is None else total[-1].to(bias.dtype)
        return dx, total[:-1].t().to(weight.dtype).contiguous(), by_bias, None, None


def _plan(inputs: ConvInputs) -> tuple[int, tuple[int, int, int, int]]:
    """Number of programs; channels, tokens, tokens of a chunk and chunks, as the kernels take them."""
    batch, tokens, channels = inputs.x.shape
    device = inputs.x.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    blocks = -(-channels // BLOCK)
    length = choose_length(tokens, batch * blocks, processors)
    num_chunks = -(-tokens // length)
    return batch * num_chunks * blocks, (channels, tokens, length, num_chunks)


def _lay_weights(inputs: ConvInputs) -> Tensor:
    """Taps and then biases, float32, a row each."""
    rows = inputs.weight.to(torch.float32).t()
    bias = rows.new_zeros(rows.shape[1]) if inputs.bias is None else inputs.bias.to(torch.float32)
    return torch.cat([rows, bias[None]])


def _list_options(inputs: ConvInputs, kernel: str) -> dict[str, Any]:
    return {
        "TAPS": inputs.num_taps,
        "BLOCK": BLOCK,
        "AT_ONCE": AT_ONCE[kernel],
        "SILU": inputs.silu,
        "REVERSE": inputs.reverse,
        "num_warps": 1,
        "enable_fp_fusion": True,
    }


def _join_channels(tensor: Tensor) -> Tensor:
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _load() -> Any:
    # With the first call and not before: triton may be absent.
    return importlib.import_module("neuroray.kernels.causal_conv.triton_kernels")


def _on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    # Triton launches on the current device, whatever the tensors are on.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")

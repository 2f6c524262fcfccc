"""The causal convolution in C++ for CPUs: hands tensors to `conv.cpp`, which does the work, and gradients to autograd.

Vectors, number formats and memory are those of the selective scan's C++.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from neuroray.kernels.causal_conv.inputs import ConvInputs
from neuroray.kernels.cpu_library import LANES, CpuLibrary, Rows, point_rows

_HERE = Path(__file__).parent
_SHARED = _HERE.parent / "selective_scan"
_SOURCES = (_HERE / "conv.cpp", _SHARED / "scan_memory.h", _SHARED / "scan_vector.h")


def convolve(inputs: ConvInputs) -> Tensor:
    """Output in x's dtype, differentiable once in x, weight and bias."""
    return _Convolution.apply(*inputs)  # pyright: ignore[reportReturnType] - apply's own annotation is Any


def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this cannot run; the first time it may build the library, which takes some seconds."""
    return LIBRARY.find_obstacle(device, dtype)


_SIZES = ("batch", "tokens", "channels", "taps", "silu", "reverse", "threads")


class _Call(ctypes.Structure):
    """`ConvCall` of `conv.cpp`, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, Rows) for name in ("x", "out")),
        ("weights", ctypes.c_void_p),
        *((name, Rows) for name in ("grad_out", "grad_x")),
        ("grad_weights", ctypes.c_void_p),
    )


LIBRARY = CpuLibrary(
    "causal_conv", _SOURCES, functions=("neuroray_conv",), call_bytes="neuroray_conv_call_bytes", call=_Call
)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *fields: Any) -> Tensor:
        inputs = ConvInputs(*fields)
        out = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
        _call_library(inputs, out=out)
        ctx.save_for_backward(inputs.x, inputs.weight, inputs.bias)
        ctx.silu, ctx.reverse = inputs.silu, inputs.reverse
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] - once_differentiable's own
        x, weight, bias = ctx.saved_tensors
        inputs = ConvInputs(x, weight, bias, ctx.silu, ctx.reverse)
        needs_x = ctx.needs_input_grad[0]
        by_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_x else None
        by_weights = _call_library(inputs, grad_out=grad_outputs[0], grad_x=by_x)[:, : weight.shape[0]]
        by_bias = None if bias is None else by_weights[-1].to(bias.dtype)
        # A copy, as the view would keep the rows that fill up and the biases.
        return by_x, by_weights[:-1].t().to(weight.dtype).contiguous(), by_bias, None, None


def _call_library(
    inputs: ConvInputs, *, out: Tensor | None = None, grad_out: Tensor | None = None, grad_x: Tensor | None = None
) -> Tensor:
    """Writes the output, or with its gradient that of x; gives the latter's gradients of taps and bias as laid out."""
    batch, tokens, channels = inputs.x.shape
    sizes = (batch, tokens, channels, inputs.num_taps, inputs.silu, inputs.reverse, torch.get_num_threads())
    call = _Call(*sizes)
    # Named, as the call holds addresses only: copies must outlive it.
    x, weights = _line_up(inputs.x), _lay_weights(inputs)
    by_weights = torch.empty_like(weights)
    grad_out = None if grad_out is None else _line_up(grad_out)
    call.x, call.out, call.grad_out, call.grad_x = (point_rows(rows) for rows in (x, out, grad_out, grad_x))
    call.weights, call.grad_weights = weights.data_ptr(), by_weights.data_ptr()
    LIBRARY.call("neuroray_conv", call)
    return by_weights


def _line_up(tensor: Tensor) -> Tensor:
    """The same numbers with neighbouring channels next to each other; other strides may be any."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _lay_weights(inputs: ConvInputs) -> Tensor:
    """Taps and then biases, float32, a row each, filled up with zeros to whole vectors."""
    rows = inputs.weight.to(torch.float32).t()
    bias = rows.new_zeros(rows.shape[1]) if inputs.bias is None else inputs.bias.to(torch.float32)
    return functional.pad(torch.cat([rows, bias[None]]), (0, -rows.shape[1] % LANES)).contiguous()

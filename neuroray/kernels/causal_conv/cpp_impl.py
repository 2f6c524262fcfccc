"""The causal convolution in C++ for CPUs: hands tensors to `conv.cpp`, which does the work, and gradients to autograd.

Vectors, number formats and memory are those of the selective scan's C++.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from neuroray.kernels.causal_conv.inputs import ConvInputs
from neuroray.kernels.errors import KernelError
from neuroray.kernels.extension import open_library

logger = logging.getLogger("neuroray.kernels")

_LANES = 16
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_HERE = Path(__file__).parent
_SHARED = _HERE.parent / "selective_scan"
_SOURCES = (_HERE / "conv.cpp", _SHARED / "scan_memory.h", _SHARED / "scan_vector.h")
_opening = threading.Lock()


def convolve(inputs: ConvInputs) -> Tensor:
    """Output in x's dtype, differentiable once in x, weight and bias."""
    return _Convolution.apply(*inputs)  # pyright: ignore[reportReturnType] - apply's own annotation is Any


def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this cannot run; the first time it may build the library, which takes some seconds."""
    if device.type != "cpu":
        return f"it runs on CPUs only, not on {device}"
    if dtype != torch.float32:
        return f"it computes in float32, not {dtype}"
    with _opening:
        library = _open_once()
    return str(library) if isinstance(library, KernelError) else None


@functools.cache
def _open_once() -> ctypes.CDLL | KernelError:
    """The library, or why there is none: told in the log here, and so once in a process."""
    try:
        library = open_library("causal_conv", _SOURCES)
    except KernelError as error:
        logger.warning("causal_conv cannot run in C++ here, impl='auto' takes 'torch': %s", error)
        return error
    for name in ("neuroray_conv", "neuroray_conv_call_bytes"):
        getattr(library, name).restype = ctypes.c_int64
    assert library.neuroray_conv_call_bytes() == ctypes.sizeof(_Call)
    return library


class _Rows(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int64),
        ("batch_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
    )


_SIZES = ("batch", "tokens", "channels", "taps", "silu", "reverse", "threads")


class _Call(ctypes.Structure):
    """`ConvCall` of `conv.cpp`, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, _Rows) for name in ("x", "out")),
        ("weights", ctypes.c_void_p),
        *((name, _Rows) for name in ("grad_out", "grad_x")),
        ("grad_weights", ctypes.c_void_p),
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
    with _opening:
        library = _open_once()
    if isinstance(library, KernelError):
        raise KernelError("causal_conv cannot run in C++ here", given=library)
    batch, tokens, channels = inputs.x.shape
    sizes = (batch, tokens, channels, inputs.num_taps, inputs.silu, inputs.reverse, torch.get_num_threads())
    call = _Call(*sizes)
    # Named, as the call holds addresses only: copies must outlive it.
    x, weights = _line_up(inputs.x), _lay_weights(inputs)
    by_weights = torch.empty_like(weights)
    grad_out = None if grad_out is None else _line_up(grad_out)
    call.x, call.out, call.grad_out, call.grad_x = (_point_rows(rows) for rows in (x, out, grad_out, grad_x))
    call.weights, call.grad_weights = weights.data_ptr(), by_weights.data_ptr()
    if library.neuroray_conv(ctypes.byref(call)):
        raise MemoryError("causal_conv has no memory for its sums")
    return by_weights


def _line_up(tensor: Tensor) -> Tensor:
    """The same numbers with neighbouring channels next to each other; other strides may be any."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _lay_weights(inputs: ConvInputs) -> Tensor:
    """Taps and then biases, float32, a row each, filled up with zeros to whole vectors."""
    rows = inputs.weight.to(torch.float32).t()
    bias = rows.new_zeros(rows.shape[1]) if inputs.bias is None else inputs.bias.to(torch.float32)
    return functional.pad(torch.cat([rows, bias[None]]), (0, -rows.shape[1] % _LANES)).contiguous()


def _point_rows(tensor: Tensor | None) -> _Rows:
    if tensor is None:
        return _Rows()
    return _Rows(tensor.data_ptr(), _KINDS[tensor.dtype], tensor.stride(0), tensor.stride(1))

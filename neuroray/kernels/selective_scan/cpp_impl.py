"""The selective scan in C++ for CPUs: hands tensors to `scan.cpp`, which does the work, and gradients to autograd."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuroray.kernels.cpu_library import KINDS, LANES, CpuLibrary, Rows, point_rows
from neuroray.kernels.errors import KernelError
from neuroray.kernels.selective_scan.inputs import ScanInputs

# As in `scan_memory.h` and `scan_vector.h`.
_CHUNK = 64

_SOURCES = tuple(Path(__file__).parent / name for name in ("scan.cpp", "scan_walk.h", "scan_memory.h", "scan_vector.h"))


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """One direction: output in u's dtype and last state in float32, differentiable once in every input."""
    return _run((inputs,))


def both(ahead: ScanInputs, back: ScanInputs) -> Tensor:
    """Both directions, the second adding to the first's output in float32; gated once.

    Nothing else is shared: decays, the costly part, are needed by the two directions at opposite ends of the sequence.
    """
    return _run((ahead, back))[0]


def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this cannot run; the first time it may build the library, which takes some seconds."""
    return LIBRARY.find_obstacle(device, dtype)


class _Mixing(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("groups", ctypes.c_int64),
        ("batch_stride", ctypes.c_int64),
        ("token_stride", ctypes.c_int64),
        ("group_stride", ctypes.c_int64),
    )


_SIZES = ("batch", "tokens", "channels", "states", "softplus", "reverse", "threads")
_WEIGHTS = ("A", "D", "bias", "initial_state")
_ADDED = ("add_to_u", "add_to_delta", "add_to_z")
_GRADIENT_ROWS = ("grad_out", "grad_u", "grad_delta", "grad_z")
_GRADIENT_WEIGHTS = ("grad_last_state", "grad_A", "grad_D", "grad_bias", "grad_initial_state")


class _Call(ctypes.Structure):
    """`Call` of `scan_memory.h`, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, Rows) for name in ("u", "delta", "z", "previous", "out")),
        *((name, ctypes.c_void_p) for name in _WEIGHTS),
        *((name, _Mixing) for name in ("B", "C")),
        *((name, ctypes.c_void_p) for name in ("last_state", "kept_states")),
        *((name, ctypes.c_int64) for name in _ADDED),
        *((name, Rows) for name in _GRADIENT_ROWS),
        *((name, ctypes.c_void_p) for name in _GRADIENT_WEIGHTS),
        *((name, _Mixing) for name in ("grad_B", "grad_C")),
    )


LIBRARY = CpuLibrary(
    "selective_scan",
    _SOURCES,
    functions=("neuroray_scan_forward", "neuroray_scan_backward"),
    call_bytes="neuroray_scan_call_bytes",
    call=_Call,
)


class _Direction(NamedTuple):
    """One direction's tensors, in the order in which autograd sees them."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    initial_state: Tensor | None


def _run(directions: tuple[ScanInputs, ...]) -> tuple[Tensor, Tensor]:
    first = directions[0]
    tensors: list[Tensor | None] = [first.z]
    for one in directions:
        # What is shared goes in once, so that its gradient is summed where it is made.
        shares = one is not first
        u = None if shares and one.u is first.u else one.u
        delta = None if shares and one.delta is first.delta else one.delta
        tensors += [u, delta, one.A, one.B, one.C, one.D, one.delta_bias, one.initial_state]
        _check_dtypes(one)
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    reverses = tuple(one.reverse for one in directions)
    return _Scan.apply(first.delta_softplus, reverses, differentiable, *tensors)


def _check_dtypes(inputs: ScanInputs) -> None:
    for name in ("u", "delta", "z"):
        tensor = getattr(inputs, name)
        if tensor is not None and tensor.dtype not in KINDS:
            expected = ", ".join(str(dtype) for dtype in KINDS)
            raise KernelError(f"{name} has a dtype that no scan in C++ reads", given=tensor.dtype, expected=expected)


class _Scan(torch.autograd.Function):
    """One direction, or two that are added and then gated; the last state is the first one's."""

    @staticmethod
    def forward(
        ctx: Any, softplus: bool, reverses: tuple[bool, ...], differentiable: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.softplus, ctx.reverses = softplus, reverses
        z, directions = _prepare(tensors)
        out = _make_like(directions[0].u)
        # The sum of two directions is rounded once: before, it is float32, in the output's own place where that is.
        alone = len(directions) == 1 or out.dtype == torch.float32
        sum_so_far = out if alone else _make_floats(out.shape)
        last_states, all_kept = [], []
        for index, direction in enumerate(directions):
            is_last = index == len(directions) - 1
            call = _describe(direction, softplus, reverses[index])
            call.out = point_rows(out if is_last else sum_so_far)
            call.previous = point_rows(sum_so_far if index else None)
            call.z = point_rows(z if is_last else None)
            last_states.append(_make_floats((call.batch, call.channels, call.states)))
            call.last_state = _point(last_states[-1])
            if differentiable:
                chunks, blocks = -(-call.tokens // _CHUNK), -(-call.channels // LANES)
                all_kept.append(_make_floats((call.batch, chunks, blocks, call.states, LANES)))
                call.kept_states = _point(all_kept[-1])
            LIBRARY.call("neuroray_scan_forward", call)
        if differentiable:
            ctx.save_for_backward(*tensors, *all_kept)
        return out, last_states[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_out, grad_last_state = grad_outputs
        count = len(ctx.reverses)
        saved = ctx.saved_tensors  # asked for once: a checkpoint gives them out once
        tensors, all_kept = saved[:-count], saved[-count:]
        z, directions = _prepare(tensors)
        needed = _split(ctx.needs_input_grad[3:])
        grad_out = torch.zeros_like(directions[0].u) if grad_out is None else grad_out
        grad_out, grad_last_state = _line_up(grad_out), _make_weights(grad_last_state)
        grad_z = _make_like(z) if z is not None and ctx.needs_input_grad[3] else None
        gradients: list[list[Tensor | None]] = []
        for index, (direction, given) in enumerate(zip(directions, _split(tensors), strict=True)):
            call = _describe(direction, ctx.softplus, ctx.reverses[index])
            call.kept_states = _point(all_kept[index])
            call.z, call.grad_out, call.grad_z = (point_rows(rows) for rows in (z, grad_out, grad_z))
            call.grad_last_state = _point(grad_last_state if index == 0 else None)
            own = [
                _make_like(tensor) if tensor is not None and wanted else None
                for tensor, wanted in zip(direction, needed[index], strict=True)
            ]
            # Where the first direction reads the same u, delta or z, this one adds to the gradient that is there.
            shares = [index > 0 and tensor is None for tensor in given[:2]]
            call.add_to_u, call.add_to_delta, call.add_to_z = *shares, index > 0
            rows = [gradients[0][i] if shared else own[i] for i, shared in enumerate(shares)]
            _point_gradients(call, [*rows, *own[2:]])
            LIBRARY.call("neuroray_scan_backward", call)
            gradients.append(own)
        pairs = zip((gradient for own in gradients for gradient in own), tensors[1:], strict=True)
        cast = (None if gradient is None else gradient.to(tensor.dtype) for gradient, tensor in pairs)
        return None, None, None, grad_z, *cast


def _prepare(tensors: tuple[Any, ...]) -> tuple[Tensor | None, list[_Direction]]:
    """The gate and the directions as the library reads them; a direction without u or delta has the first one's."""
    directions: list[_Direction] = []
    for u, delta, rates, B, C, skip, bias, initial_state in _split(tensors):  # noqa: N806 - the formula's letters
        directions.append(
            _Direction(
                directions[0].u if u is None else _line_up(u),
                directions[0].delta if delta is None else _line_up(delta),
                _make_weights(rates),
                _make_mixing(B),
                _make_mixing(C),
                _make_weights(skip),
                _make_weights(bias),
                _make_weights(initial_state),
            )
        )
    z = tensors[0]
    return None if z is None else _line_up(z), directions


def _split(values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """What belongs to each direction, of a sequence that z opens."""
    width = len(_Direction._fields)
    return [values[start : start + width] for start in range(1, len(values), width)]


def _line_up(tensor: Tensor) -> Tensor:
    """The same numbers with neighbouring channels (or states) next to each other; other strides may be any."""
    return tensor if tensor.shape[-1] == 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _make_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _make_floats(shape: Sequence[int]) -> Tensor:
    # Both named, as a user may have set other defaults.
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _make_weights(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.to(torch.float32).contiguous()


def _make_mixing(tensor: Tensor) -> Tensor:
    return _make_weights(tensor) if tensor.ndim == 2 else _line_up(tensor.to(torch.float32))


def _describe(direction: _Direction, softplus: bool, reverse: bool) -> _Call:
    """All of a call that forward and backward have in common. It holds addresses: the tensors must outlive it."""
    batch, tokens, channels = direction.u.shape
    call = _Call(batch, tokens, channels, direction.A.shape[1], softplus, reverse, torch.get_num_threads())
    call.u, call.delta = point_rows(direction.u), point_rows(direction.delta)
    call.B, call.C = _point_mixing(direction.B), _point_mixing(direction.C)
    for name in _WEIGHTS:
        setattr(call, name, _point(getattr(direction, name)))
    return call


def _point_gradients(call: _Call, gradients: list[Tensor | None]) -> None:
    u, delta, rates, B, C, skip, bias, initial_state = gradients  # noqa: N806 - the formula's letters
    call.grad_u, call.grad_delta = point_rows(u), point_rows(delta)
    call.grad_A, call.grad_D, call.grad_bias = _point(rates), _point(skip), _point(bias)
    call.grad_initial_state = _point(initial_state)
    call.grad_B, call.grad_C = _point_mixing(B), _point_mixing(C)


def _point(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _point_mixing(tensor: Tensor | None) -> _Mixing:
    if tensor is None:
        return _Mixing()
    if tensor.ndim == 2:
        return _Mixing(tensor.data_ptr())
    return _Mixing(tensor.data_ptr(), tensor.shape[2], *tensor.stride()[:3])

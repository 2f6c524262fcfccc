"""The checked inputs of a selective scan, as every implementation takes them, and the checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neuroray.kernels.errors import KernelError

if TYPE_CHECKING:
    # Names of shapes only: a bare GPU machine runs the kernels with torch alone.
    from jaxtyping import Float

MAX_STATES = 256
_AXES = {"u": "batch token channel", "delta": "batch token channel", "A": "channel state"}


class ScanInputs(NamedTuple):
    """One direction of a scan; `B` and `C` are `channel state`, or by token `batch token group state`.

    Group g serves the channels g * channel/group to (g + 1) * channel/group.
    """

    u: Float[Tensor, "batch token channel"]
    delta: Float[Tensor, "batch token channel"]
    A: Float[Tensor, "channel state"]
    B: Float[Tensor, ...]
    C: Float[Tensor, ...]
    D: Float[Tensor, " channel"] | None
    z: Float[Tensor, "batch token channel"] | None
    delta_bias: Float[Tensor, " channel"] | None
    initial_state: Float[Tensor, "batch channel state"] | None
    delta_softplus: bool
    reverse: bool

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the state and of all arithmetic: float32, or float64 where the inputs are."""
        return torch.promote_types(self.u.dtype, torch.float32)


def check_inputs(inputs: ScanInputs, *, check_values: bool = True) -> ScanInputs:
    """The same inputs with `B` and `C` brought to two or four axes.

    Raises:
        KernelError: shapes, dtypes or devices that do not fit together; NaN or infinity in `delta`.
    """
    for name, tensor in inputs._asdict().items():
        if not isinstance(tensor, Tensor) and name in ("u", "delta", "A", "B", "C"):
            raise KernelError(f"{name} is no tensor", given=type(tensor).__name__)
    for name, axes in _AXES.items():
        tensor = getattr(inputs, name)
        if tensor.ndim != len(axes.split()):
            raise KernelError(f"{name} has the wrong number of axes", given=tuple(tensor.shape), expected=axes)
    _check_sizes(inputs)
    inputs = inputs._replace(B=_name_groups("B", inputs), C=_name_groups("C", inputs))
    _check_shapes(inputs)
    _check_kinds(inputs)
    if check_values:
        _check_delta(inputs.delta)
    return inputs


def _check_sizes(inputs: ScanInputs) -> None:
    shape, num_states = tuple(inputs.u.shape), inputs.A.shape[1]
    if 0 in shape:
        raise KernelError("u is empty", given=shape, expected="batch token channel, each at least 1")
    if not 1 <= num_states <= MAX_STATES:
        fault = "A has a number of states that no scan takes"
        raise KernelError(fault, given=num_states, expected=f"1 to {MAX_STATES}")


def _name_groups(name: str, inputs: ScanInputs) -> Tensor:
    """B or C with its group axis written out; constant ones stay `channel state`."""
    tensor = getattr(inputs, name)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(2)
    if tensor.ndim not in (2, 4):
        expected = "channel state, batch token state, or batch token group state"
        raise KernelError(f"{name} has the wrong number of axes", given=tuple(tensor.shape), expected=expected)
    return tensor


def _check_shapes(inputs: ScanInputs) -> None:
    batch, tokens, channels = inputs.u.shape
    states = inputs.A.shape[1]
    expected: dict[str, tuple[int, ...]] = {
        "delta": (batch, tokens, channels),
        "A": (channels, states),
        "D": (channels,),
        "z": (batch, tokens, channels),
        "delta_bias": (channels,),
        "initial_state": (batch, channels, states),
    }
    for name in ("B", "C"):
        tensor = getattr(inputs, name)
        expected[name] = (channels, states) if tensor.ndim == 2 else (batch, tokens, tensor.shape[2], states)
        if tensor.ndim == 4 and (tensor.shape[2] == 0 or channels % tensor.shape[2]):
            given = f"{tensor.shape[2]} groups for {channels} channels"
            raise KernelError(f"{name}'s groups do not divide the channels", given=given, expected="a divisor")
    for name, shape in expected.items():
        tensor = getattr(inputs, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise KernelError(f"{name} does not fit u and A", given=tuple(tensor.shape), expected=shape)


def _check_kinds(inputs: ScanInputs) -> None:
    for name, tensor in inputs._asdict().items():
        if not isinstance(tensor, Tensor):
            continue
        if tensor.is_complex():
            raise KernelError(f"{name} is complex", given=tensor.dtype, expected="real numbers: this scan is real only")
        if not tensor.is_floating_point():
            raise KernelError(f"{name} holds no floating-point numbers", given=tensor.dtype)
        if tensor.device != inputs.u.device:
            raise KernelError(f"{name} and u lie on different devices", given=tensor.device, expected=inputs.u.device)
        if tensor.dtype == torch.float64 and inputs.u.dtype != torch.float64:
            fix = "convert it, or u to float64"
            raise KernelError(f"{name} is float64 and u is not", given=tensor.dtype, expected=inputs.u.dtype, fix=fix)


def _check_delta(delta: Tensor) -> None:
    # A sum reads it once and needs no memory; only where that is not finite (it may overflow) does it look closer.
    if torch.isfinite(delta.detach().sum(dtype=torch.promote_types(delta.dtype, torch.float32))):
        return
    bad = ~torch.isfinite(delta.detach())
    if bad.any():
        where = tuple(torch.nonzero(bad)[0].tolist())
        given = f"{float(delta[where])} at batch, token, channel {where}, {int(bad.sum())} such in all"
        raise KernelError("delta is not finite", given=given, expected="finite numbers", fix="look at what made delta")

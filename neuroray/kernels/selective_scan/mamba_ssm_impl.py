"""mamba-ssm's own CUDA scan, where it is installed: a peer to compare with, never taken by itself.

It lays tokens last, so every tensor is transposed to it and back, and it has no reverse: that one flips copies. Its
backward adds B's and C's gradients in the order in which threads finish, so it is not deterministic.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from neuroray.kernels.errors import KernelError
from neuroray.kernels.selective_scan.inputs import ScanInputs

_INTERFACE = "mamba_ssm.ops.selective_scan_interface"
_TAKES = (torch.float32, torch.float16, torch.bfloat16)


def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why mamba-ssm's scan cannot run for a device and a state dtype, None where it can."""
    if device.type != "cuda":
        return f"mamba-ssm's scan runs on CUDA only, not on {device.type}"
    if dtype != torch.float32:
        return f"mamba-ssm's scan keeps its state in float32, not {dtype}"
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return "mamba-ssm's compiled part (selective_scan_cuda) is not installed"
    try:
        importlib.import_module("selective_scan_cuda")
        importlib.import_module(_INTERFACE)
    except Exception as error:
        # Built for another torch, it fails in as many ways as there are linkers.
        return f"mamba-ssm is installed but cannot be imported: {error}"
    return None


def scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """One direction; differentiable in every input, the last state not.

    Raises:
        KernelError: an initial state, or dtypes or groups that mamba-ssm does not take.
    """
    _check(inputs)
    selective_scan_fn: Any = importlib.import_module(_INTERFACE).selective_scan_fn
    groups = math.lcm(*(tensor.shape[2] for tensor in (inputs.B, inputs.C) if tensor.ndim == 4))

    def turn(tensor: Tensor) -> Tensor:
        return tensor.flip(1) if inputs.reverse else tensor

    def weights(tensor: Tensor) -> Tensor:
        if tensor.ndim == 2:
            return tensor.float()
        # One number of groups serves both B and C there.
        return turn(tensor).repeat_interleave(groups // tensor.shape[2], dim=2).permute(0, 2, 3, 1).contiguous()

    output, last_state = selective_scan_fn(
        turn(inputs.u).transpose(1, 2).contiguous(),
        turn(inputs.delta).transpose(1, 2).contiguous(),
        inputs.A.float(),
        weights(inputs.B),
        weights(inputs.C),
        None if inputs.D is None else inputs.D.float(),
        None if inputs.z is None else turn(inputs.z).transpose(1, 2).contiguous(),
        None if inputs.delta_bias is None else inputs.delta_bias.float(),
        inputs.delta_softplus,
        True,
    )
    return turn(output.transpose(1, 2)), _WithoutGradient.apply(last_state)


def both(ahead: ScanInputs, back: ScanInputs) -> Tensor:
    """Both directions as code around mamba-ssm does it: two gated scans, one of flipped copies, added in u's dtype."""
    return scan(ahead)[0] + scan(back)[0]


def _check(inputs: ScanInputs) -> None:
    if inputs.initial_state is not None:
        raise KernelError("mamba-ssm's scan takes no initial state", fix='leave it out, or take impl="auto"')
    if inputs.u.dtype not in _TAKES:
        raise KernelError("mamba-ssm's scan does not take u", given=inputs.u.dtype, expected=_TAKES)
    for name in ("delta", "z", "B", "C"):
        tensor = getattr(inputs, name)
        if tensor is not None and tensor.dtype != inputs.u.dtype and tensor.ndim != 2:
            raise KernelError(f"mamba-ssm's scan wants {name} as u", given=tensor.dtype, expected=inputs.u.dtype)
    if inputs.B.ndim == 2 and inputs.C.ndim == 4 and inputs.C.shape[2] > 1:
        fault = "mamba-ssm's scan takes no groups of C beside a constant B"
        raise KernelError(fault, given=inputs.C.shape[2], expected=1)


class _WithoutGradient(torch.autograd.Function):
    """The last state as it is: mamba-ssm would drop its gradient without a word."""

    @staticmethod
    def forward(ctx: Any, last_state: Tensor) -> Tensor:
        del ctx
        return last_state.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        del ctx, gradients
        raise KernelError("mamba-ssm's scan has no gradient of the last state", fix='take impl="auto"')

"""Checks that hold for the tensors of any operation: real floating-point numbers, on one device, enough axes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neuroray.kernels.errors import KernelError


def check_floats(given: Mapping[str, Tensor | None]) -> None:
    """That all are tensors of real floating-point numbers on one device, and float64 only together with the first.

    Args:
        given: By name; the first decides device and dtype. None: not given, which only the first cannot be.

    Raises:
        KernelError: one is not.
    """
    first_name, first = next(iter(given.items()))
    for name, tensor in given.items():
        if tensor is None and name != first_name:
            continue
        if not isinstance(tensor, Tensor):
            raise KernelError(f"{name} is no tensor", given=type(tensor).__name__)
        if tensor.is_complex():
            raise KernelError(f"{name} is complex", given=tensor.dtype, expected="real numbers")
        if not tensor.is_floating_point():
            raise KernelError(f"{name} holds no floating-point numbers", given=tensor.dtype)
        assert isinstance(first, Tensor)
        if tensor.device != first.device:
            fault = f"{name} and {first_name} lie on different devices"
            raise KernelError(fault, given=tensor.device, expected=first.device)
        if tensor.dtype == torch.float64 and first.dtype != torch.float64:
            fault, fix = f"{name} is float64 and {first_name} is not", f"convert it, or {first_name} to float64"
            raise KernelError(fault, given=tensor.dtype, expected=first.dtype, fix=fix)


def check_axes(name: str, tensor: Tensor, axes: str) -> None:
    """That a tensor has as many axes as are named.

    Raises:
        KernelError: it has not.
    """
    if tensor.ndim != len(axes.split()):
        raise KernelError(f"{name} has the wrong number of axes", given=tuple(tensor.shape), expected=axes)

"""The checked inputs of a causal convolution, as every implementation takes them, and the checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neuroray.kernels.checks import check_axes, check_floats
from neuroray.kernels.errors import KernelError

if TYPE_CHECKING:
    # Names of shapes only: a bare GPU machine runs the kernels with torch alone.
    from jaxtyping import Float

MIN_TAPS, MAX_TAPS = 2, 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class ConvInputs(NamedTuple):
    """All that a convolution takes; the last tap multiplies the present token."""

    x: Float[Tensor, "batch token channel"]
    weight: Float[Tensor, "channel tap"]
    bias: Float[Tensor, " channel"] | None
    silu: bool
    reverse: bool

    @property
    def state_dtype(self) -> torch.dtype:
        """Of all arithmetic: float32, or float64 where x is."""
        return torch.promote_types(self.x.dtype, torch.float32)

    @property
    def num_taps(self) -> int:
        """Tokens that each output sees."""
        return self.weight.shape[1]


def check_inputs(inputs: ConvInputs) -> None:
    """That shapes, dtypes and devices fit together; no value is looked at, so a GPU is not waited for.

    Raises:
        KernelError: they do not.
    """
    if inputs.weight is None:
        raise KernelError("weight is no tensor", given="NoneType")
    check_floats({"x": inputs.x, "weight": inputs.weight, "bias": inputs.bias})
    if inputs.x.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise KernelError("x has a dtype that is not taken", given=inputs.x.dtype, expected=expected)
    check_axes("x", inputs.x, "batch token channel")
    if 0 in inputs.x.shape:
        raise KernelError("x is empty", given=tuple(inputs.x.shape), expected="batch token channel, each at least 1")
    _check_weight(inputs.weight)
    channels = inputs.x.shape[2]
    if inputs.weight.shape[0] != channels:
        expected = (channels, inputs.num_taps)
        raise KernelError("weight does not fit x", given=tuple(inputs.weight.shape), expected=expected)
    if inputs.bias is not None and tuple(inputs.bias.shape) != (channels,):
        raise KernelError("bias does not fit x", given=tuple(inputs.bias.shape), expected=(channels,))


def _check_weight(weight: Tensor) -> None:
    if weight.ndim == 3 and weight.shape[1] == 1:
        fault, fix = "weight has the axes of torch's conv1d", "take weight[:, 0]"
        raise KernelError(fault, given=tuple(weight.shape), expected="channel tap", fix=fix)
    check_axes("weight", weight, "channel tap")
    if not MIN_TAPS <= weight.shape[1] <= MAX_TAPS:
        fault = "weight has a number of taps that is not taken"
        raise KernelError(fault, given=weight.shape[1], expected=f"{MIN_TAPS} to {MAX_TAPS}")

"""What the implementations share: V and U as one matrix, and gradients in the order of the inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neuroray.kernels.errors import KernelError

if TYPE_CHECKING:
    from neuroray.kernels.attention_pool.api import PoolInputs


KEPT_BYTES = 256 * 2**20
"""Rows times [V; U] are kept for backward up to this size; beyond it they are computed again."""


class Projections(NamedTuple):
    """What the rows are multiplied by before the score.

    Attributes:
        weight: `width channel`: V, or V above U; width is the hidden size, or twice that.
        bias: `width`, zeros where only one of the two is given; None: neither is.
    """

    weight: Tensor
    bias: Tensor | None

    def apply(self, h: Tensor) -> Tensor:
        """`rows width` in the dtype of `h`."""
        return torch.nn.functional.linear(h, self.weight, self.bias)


def join_projections(inputs: PoolInputs) -> Projections:
    """V above U, and their biases."""
    if inputs.U is None:
        return Projections(inputs.V, inputs.bias_v)
    weight = torch.cat([inputs.V, inputs.U])
    if inputs.bias_v is None and inputs.bias_u is None:
        return Projections(weight, None)
    none = inputs.V.new_zeros(inputs.V.shape[0])
    return Projections(weight, torch.cat([none if bias is None else bias for bias in (inputs.bias_v, inputs.bias_u)]))


def refuse_second_derivative() -> None:
    """Called in a backward that autograd cannot see into; gradients are on there only for `create_graph`.

    Raises:
        KernelError: a graph of the gradients is asked for. Without this it would lack them, and nobody would be told.
    """
    if torch.is_grad_enabled():
        raise KernelError("attention_pool has no second derivative", given="create_graph", fix='take impl="reference"')


class InputGradients(NamedTuple):
    """Gradients in the order of `PoolInputs`, as autograd wants them back; None: not asked for, or there is none."""

    h: Tensor | None = None
    offsets: Tensor | None = None
    V: Tensor | None = None
    w: Tensor | None = None
    U: Tensor | None = None
    bias_v: Tensor | None = None
    bias_u: Tensor | None = None
    bias_w: Tensor | None = None
    mask: Tensor | None = None


def split_gradients(weight: Tensor | None, bias: Tensor | None, inputs: PoolInputs) -> InputGradients:
    """The gradients of V, U and their biases out of those of the joined ones, in the dtype of `h`."""
    hidden, dtype = inputs.V.shape[0], inputs.h.dtype
    found: dict[str, Tensor] = {}
    if weight is not None:
        found |= {"V": weight[:hidden].to(dtype)} | ({} if inputs.U is None else {"U": weight[hidden:].to(dtype)})
    if bias is not None:
        parts = {"bias_v": bias[:hidden], "bias_u": bias[hidden:]}
        found |= {name: part.to(dtype) for name, part in parts.items() if getattr(inputs, name) is not None}
    return InputGradients(**found)

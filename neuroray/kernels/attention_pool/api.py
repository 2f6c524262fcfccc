"""Attention pooling: checks the inputs once and hands them to one implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neuroray.kernels.attention_pool.reference import pool_by_loops
from neuroray.kernels.attention_pool.torch_impl import pool_by_segments
from neuroray.kernels.errors import KernelError

if TYPE_CHECKING:
    # Names of shapes only: a bare GPU machine runs the kernels with torch alone.
    from jaxtyping import Bool, Float, Int


class AttentionPoolOutput(NamedTuple):
    """What pooling gives; all three carry gradients.

    Attributes:
        pooled: `volumes head channel` in the dtype of `h`: the weighted sum of each volume's rows; zeros for a volume
            without rows.
        weights: `rows head`, float32 or float64: at least 0, summing to 1 over each volume, exactly 0 on masked rows.
        log_sum_exp: `volumes head`, dtype of `weights`: log of the sum of exp(score); -inf for a volume without rows.
    """

    pooled: Float[Tensor, "volumes head channel"]
    weights: Float[Tensor, "rows head"]
    log_sum_exp: Float[Tensor, "volumes head"]


class PoolInputs(NamedTuple):
    """The checked inputs, as every implementation takes them; `offsets` in int64."""

    h: Tensor
    offsets: Tensor
    V: Tensor
    w: Tensor
    U: Tensor | None
    bias_v: Tensor | None
    bias_u: Tensor | None
    bias_w: Tensor | None
    mask: Tensor | None


IMPLEMENTATIONS: dict[str, Callable[[PoolInputs], tuple[Tensor, Tensor, Tensor]]] = {
    "reference": pool_by_loops,
    "torch": pool_by_segments,
}
"""By name; `"auto"` stands for `"torch"`, which runs on every device."""


def attention_pool(
    h: Float[Tensor, "rows channel"],
    offsets: Int[Tensor, " volumes+1"],
    V: Float[Tensor, "hidden channel"],  # noqa: N803 - the formula's own letters (Ilse et al. 2018)
    w: Float[Tensor, "head hidden"],
    U: Float[Tensor, "hidden channel"] | None = None,  # noqa: N803 - as above
    *,
    bias_v: Float[Tensor, " hidden"] | None = None,
    bias_u: Float[Tensor, " hidden"] | None = None,
    bias_w: Float[Tensor, " head"] | None = None,
    mask: Bool[Tensor, " rows"] | None = None,
    impl: str = "auto",
) -> AttentionPoolOutput:
    """Weighs the rows (slices, patches) of each volume by learned scores and sums them.

    Row k of a volume scores `w . tanh(V h_k + bias_v) + bias_w`, with `U` given the gated form
    `w . (tanh(V h_k + bias_v) * sigmoid(U h_k + bias_u)) + bias_w` (Ilse et al. 2018, equations 8 and 9); a softmax
    over the volume's rows turns scores into weights. Softmax and sums run in float32 (float64 for float64 inputs).

    Args:
        h: All rows, one volume after another. A NaN stays within its volume, and within its row if the row is masked.
        offsets: Where each volume starts, and the end: 0, ..., rows; never falling. Two equal ones are an empty volume.
        V: Projection of rows to the hidden space.
        w: One score direction per head.
        U: Projection of the gate; None: not gated.
        bias_v: Bias of `V`.
        bias_u: Bias of `U`; only with `U`.
        bias_w: Bias of `w`: moves `log_sum_exp`, never a weight.
        mask: True where a row counts.
        impl: `"auto"`, or a name of `IMPLEMENTATIONS`, which then runs or raises.

    Raises:
        KernelError: shapes, dtypes or devices that do not fit together, offsets that fall, or an unknown `impl`.
    """
    run = _choose(impl)
    inputs = PoolInputs(h, offsets, V, w, U, bias_v, bias_u, bias_w, mask)
    _check_shapes(inputs)
    _check_kinds(inputs)
    _check_offsets(offsets, len(h))
    return AttentionPoolOutput(*run(inputs._replace(offsets=offsets.to(torch.int64))))


def choose_implementation(impl: str) -> str:
    """The name of what would run: `"auto"` is `"torch"` everywhere, any other name is itself."""
    return "torch" if impl == "auto" else impl


def _choose(impl: str) -> Callable[[PoolInputs], tuple[Tensor, Tensor, Tensor]]:
    name = choose_implementation(impl)
    if name not in IMPLEMENTATIONS:
        raise KernelError("attention_pool has no such implementation", given=impl, expected=f"auto, {_names()}")
    return IMPLEMENTATIONS[name]


def _names() -> str:
    return ", ".join(IMPLEMENTATIONS)


def _check_shapes(inputs: PoolInputs) -> None:
    for name, axes in (("h", "rows channel"), ("V", "hidden channel"), ("w", "head hidden"), ("offsets", "volumes+1")):
        tensor = getattr(inputs, name)
        if tensor.ndim != len(axes.split()) or (name != "h" and tensor.numel() == 0):
            raise KernelError(f"{name} has the wrong shape", given=tuple(tensor.shape), expected=axes)
    rows, channel = inputs.h.shape
    hidden, head = inputs.V.shape[0], inputs.w.shape[0]
    if channel == 0:
        raise KernelError("h has no channels", given=tuple(inputs.h.shape), expected="at least one channel")
    expected = {
        "V": (hidden, channel),
        "w": (head, hidden),
        "U": (hidden, channel),
        "bias_v": (hidden,),
        "bias_u": (hidden,),
        "bias_w": (head,),
        "mask": (rows,),
    }
    for name, shape in expected.items():
        tensor = getattr(inputs, name)
        if tensor is not None and tuple(tensor.shape) != shape:
            raise KernelError(f"{name} does not fit h, V and w", given=tuple(tensor.shape), expected=shape)
    if inputs.bias_u is not None and inputs.U is None:
        raise KernelError("bias_u is given without U", expected="both, or neither")


def _check_kinds(inputs: PoolInputs) -> None:
    if not inputs.h.is_floating_point():
        raise KernelError("h holds no floating-point numbers", given=inputs.h.dtype)
    for name in ("V", "w", "U", "bias_v", "bias_u", "bias_w"):
        tensor = getattr(inputs, name)
        if tensor is not None and tensor.dtype != inputs.h.dtype:
            raise KernelError(f"{name} and h differ in dtype", given=tensor.dtype, expected=inputs.h.dtype)
    if inputs.mask is not None and inputs.mask.dtype != torch.bool:
        raise KernelError("mask is not boolean", given=inputs.mask.dtype, expected=torch.bool)
    if inputs.offsets.dtype not in (torch.int32, torch.int64):
        raise KernelError("offsets are not integers", given=inputs.offsets.dtype, expected="int32 or int64")
    for name, tensor in inputs._asdict().items():
        if tensor is not None and tensor.device != inputs.h.device:
            raise KernelError(f"{name} and h lie on different devices", given=tensor.device, expected=inputs.h.device)


def _check_offsets(offsets: Tensor, num_rows: int) -> None:
    bounds = offsets.detach().cpu()
    if int(bounds[0]) != 0 or int(bounds[-1]) != num_rows:
        given = f"{int(bounds[0])} to {int(bounds[-1])}"
        raise KernelError("offsets do not cover the rows of h", given=given, expected=f"0 to {num_rows}")
    falls = torch.nonzero(bounds.diff() < 0)
    if len(falls):
        at = int(falls[0])
        given = f"{int(bounds[at])} before {int(bounds[at + 1])} at volume {at}"
        raise KernelError("offsets fall", given=given, expected="each at least the one before")

"""Attention pooling: checks the inputs once and hands them to one implementation."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from neuroray.kernels.attention_pool.reference import pool_by_loops
from neuroray.kernels.attention_pool.torch_impl import pool_by_segments
from neuroray.kernels.choice import call_when_used, choose, runs_anywhere
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


class Implementation(NamedTuple):
    """One way to pool.

    Attributes:
        pool: Pooled rows, weights and log-sum-exp, differentiable in every input.
        find_obstacle: Why it cannot run for a device and a state dtype here, in a sentence; None: it can.
    """

    pool: Callable[[PoolInputs], tuple[Tensor, Tensor, Tensor]]
    find_obstacle: Callable[[torch.device, torch.dtype], str | None]


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _find_triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    del dtype
    if not _has_triton():
        return "the package triton is not installed"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"triton needs a CUDA device, not {device.type!r}"
    if torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(device)} is older than compute capability {OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    return None


OLDEST_GPU = (8, 0)
"""Compute capability: the first with bfloat16, and the oldest that the kernels are compiled for in the tests."""

IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(pool_by_loops, runs_anywhere),
    "torch": Implementation(pool_by_segments, runs_anywhere),
    # Triton is large, and reads TRITON_INTERPRET when the kernels are made.
    "triton": Implementation(
        call_when_used("neuroray.kernels.attention_pool.triton_impl", "pool_by_tiles"), _find_triton_obstacle
    ),
}
_PREFERRED = {"cuda": ("triton", "torch")}


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
    check_values: bool = True,
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
        impl: `"auto"`, or a name of `IMPLEMENTATIONS`, which then runs or raises. `choose_implementation` says which.
        check_values: Look at the numbers in `offsets` first: on a GPU this waits for the device once. Without it wrong
            offsets give wrong answers.

    Raises:
        KernelError: shapes, dtypes or devices that do not fit together, offsets that fall, or an implementation that is
            not here.
    """
    inputs = PoolInputs(h, offsets, V, w, U, bias_v, bias_u, bias_w, mask)
    _check_shapes(inputs)
    _check_kinds(inputs)
    if check_values:
        _check_offsets(offsets, len(h))
    name = choose_implementation(impl, h.device, torch.promote_types(h.dtype, torch.float32))
    # Autocast would round the products of float32 inputs; a caller who wants that gives float16 or bfloat16.
    with torch.autocast(h.device.type, enabled=False):
        outputs = IMPLEMENTATIONS[name].pool(inputs._replace(offsets=offsets.to(torch.int64).contiguous()))
    return AttentionPoolOutput(*outputs)


def choose_implementation(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of what would run: `"auto"` is `"triton"` on a GPU that it runs on, else `"torch"`; a name is itself.

    Args:
        impl: `"auto"` or a name of `IMPLEMENTATIONS`.
        device: Of the inputs.
        dtype: Of the softmax and the sums: float32, or float64 where the inputs are.

    Raises:
        KernelError: no such implementation, or one that cannot run here.
    """
    preferred = _PREFERRED.get(device.type, ("torch",))
    obstacles = {name: one.find_obstacle for name, one in IMPLEMENTATIONS.items()}
    return choose("attention_pool", impl, obstacles, preferred, device, dtype)


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

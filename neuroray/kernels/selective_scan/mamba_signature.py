"""mamba-ssm's own signature and layout over this scan, so that code written for mamba-ssm runs as it is, on CPU too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from neuroray.kernels.errors import KernelError
from neuroray.kernels.selective_scan.api import selective_scan

if TYPE_CHECKING:
    from jaxtyping import Float


# ruff: noqa: N803 - A, B, C and D are the formula's own letters.
def selective_scan_fn(
    u: Float[Tensor, "batch channel token"],
    delta: Float[Tensor, "batch channel token"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, ...],
    C: Float[Tensor, ...],
    D: Float[Tensor, " channel"] | None = None,
    z: Float[Tensor, "batch channel token"] | None = None,
    delta_bias: Float[Tensor, " channel"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan as `mamba_ssm.ops.selective_scan_interface.selective_scan_fn` takes and gives it.

    Unlike mamba-ssm's, it differentiates the last state too, takes float64, and raises for a delta that is not finite.

    Args:
        u: Input.
        delta: Time steps before `delta_bias` and softplus.
        A: Decay rates, real: complex ones are not supported.
        B: `channel state`, or by token: `batch state token` or `batch group state token`.
        C: Shaped as B may be.
        D: Of u, straight to the output.
        z: The output is multiplied by silu(z).
        delta_bias: Added to delta.
        delta_softplus: Whether softplus makes the sum positive.
        return_last_state: Also give the state after the last token, `batch channel state`, float32.

    Returns:
        Output `batch channel token` in u's dtype, contiguous; with `return_last_state` also the state.

    Raises:
        KernelError: as `selective_scan`.
    """
    for name, tensor in (("u", u), ("delta", delta), ("z", z)):
        if tensor is not None and tuple(tensor.shape) != (expected := _read_shape(u, A)):
            raise KernelError(f"{name} has the wrong shape", given=tuple(tensor.shape), expected=expected)
    output, last_state = selective_scan(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        _put_tokens_first("B", B),
        _put_tokens_first("C", C),
        D,
        None if z is None else z.transpose(1, 2),
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        return_last_state=True,
    )
    output = output.transpose(1, 2).contiguous()
    return (output, last_state) if return_last_state else output


def _read_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """What u, delta and z must be: `batch channel token`, by u itself and A's channels."""
    if u.ndim != 3 or A.ndim != 2:
        given = f"u {tuple(u.shape)}, A {tuple(A.shape)}"
        expected = "batch channel token, channel state"
        raise KernelError("u or A has the wrong number of axes", given=given, expected=expected)
    return (u.shape[0], A.shape[0], u.shape[2])


def _put_tokens_first(name: str, tensor: Tensor) -> Tensor:
    """B or C with its token axis second; a constant one as it is."""
    if tensor.ndim not in (2, 3, 4):
        expected = "channel state, batch state token, or batch group state token"
        raise KernelError(f"{name} has the wrong number of axes", given=tuple(tensor.shape), expected=expected)
    return tensor if tensor.ndim == 2 else tensor.movedim(-1, 1)

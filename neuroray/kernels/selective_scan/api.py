"""The selective scan: checks its inputs once and hands them to one implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.kernels.choice import call_when_used, choose, find_obstacle_when_used, runs_anywhere
from neuroray.kernels.selective_scan.inputs import ScanInputs, check_inputs
from neuroray.kernels.selective_scan.reference import scan_by_tokens

if TYPE_CHECKING:
    from jaxtyping import Float


class Implementation(NamedTuple):
    """One way to run the scan.

    Attributes:
        scan: One direction: output and last state, differentiable in every input.
        both: Both directions, summed and gated once; takes the inputs from the first token on, then the others.
        find_obstacle: Why it cannot run for a device and a state dtype here, in a sentence; None: it can.
    """

    scan: Callable[[ScanInputs], tuple[Tensor, Tensor]]
    both: Callable[[ScanInputs, ScanInputs], Tensor]
    find_obstacle: Callable[[torch.device, torch.dtype], str | None]


def add_directions(scan: Callable[[ScanInputs], tuple[Tensor, Tensor]]) -> Callable[[ScanInputs, ScanInputs], Tensor]:
    """Both directions by two scans, for an implementation without a fused one; added and gated in the state's dtype."""

    def run(ahead: ScanInputs, back: ScanInputs) -> Tensor:
        dtype = ahead.state_dtype
        outputs = [scan(one._replace(u=one.u.to(dtype), z=None))[0] for one in (ahead, back)]
        total = outputs[0] + outputs[1]
        if ahead.z is not None:
            total = total * functional.silu(ahead.z.to(dtype))
        return total.to(ahead.u.dtype)

    return run


def _load_when_used(module: str) -> Implementation:
    """An implementation in a module of its own."""
    name = f"neuroray.kernels.selective_scan.{module}"
    return Implementation(call_when_used(name, "scan"), call_when_used(name, "both"), find_obstacle_when_used(name))


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(scan_by_tokens, add_directions(scan_by_tokens), runs_anywhere),
    "torch": _load_when_used("torch_impl"),
    "cpp": _load_when_used("cpp_impl"),
    "triton": _load_when_used("triton_impl"),
    "mamba_ssm": _load_when_used("mamba_ssm_impl"),
}
# `auto` takes the first that can run. Triton's interpreter on a CPU is for tests, so only its name gets it; the peer
# `mamba_ssm` and the reference, which is slow, are never taken by themselves.
_PREFERRED_ON = {"cuda": ("triton", "torch")}
_PREFERRED = ("cpp", "torch")


class ReverseDirection(NamedTuple):
    """What the direction from the last token to the first has of its own; None: the same as the other direction."""

    u: Float[Tensor, "batch token channel"] | None = None
    delta: Float[Tensor, "batch token channel"] | None = None
    A: Float[Tensor, "channel state"] | None = None
    B: Float[Tensor, ...] | None = None
    C: Float[Tensor, ...] | None = None
    D: Float[Tensor, " channel"] | None = None
    delta_bias: Float[Tensor, " channel"] | None = None


# ruff: noqa: N803 - A, B, C and D are the formula's own letters, here and in all that calls it.
def selective_scan(
    u: Float[Tensor, "batch token channel"],
    delta: Float[Tensor, "batch token channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, ...],
    C: Float[Tensor, ...],
    D: Float[Tensor, " channel"] | None = None,
    z: Float[Tensor, "batch token channel"] | None = None,
    *,
    delta_bias: Float[Tensor, " channel"] | None = None,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "batch channel state"] | None = None,
    reverse: bool = False,
    return_last_state: bool = False,
    impl: str = "auto",
    check_values: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs the selective state space recurrence over tokens (Gu and Dao 2023, algorithm 2; `reference.py` has it).

    Args:
        u: Input.
        delta: Time steps before `delta_bias` and softplus.
        A: Decay rates, real; negative for a state that fades.
        B: Into the state: `channel state`, or by token: `batch token state` or `batch token group state`.
        C: Out of the state; shaped as B may be, with groups of its own.
        D: Of u, straight to the output; None: nothing.
        z: The output is multiplied by silu(z); None: it is not.
        delta_bias: Added to delta.
        delta_softplus: Whether softplus makes the sum positive.
        initial_state: Before the first token (the last one with `reverse`); None: zeros.
        reverse: From the last token to the first, without flipped copies.
        return_last_state: Also give the state after the last token read, float32 (float64 for float64 inputs).
        impl: `"auto"`, or a name of `IMPLEMENTATIONS`, which then runs or raises. `choose_implementation` says which.
        check_values: Look for NaN and infinity in delta first: on a GPU this waits for the device once.

    Returns:
        Output `batch token channel` in u's dtype; with `return_last_state` also the state `batch channel state`.

    Raises:
        KernelError: inputs that do not fit together, delta that is not finite, or an implementation that is not here.
    """
    inputs = ScanInputs(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, reverse)
    inputs = check_inputs(inputs, check_values=check_values)
    output, last_state = _find(impl, inputs).scan(inputs)
    return (output, last_state) if return_last_state else output


def bidirectional_selective_scan(
    u: Float[Tensor, "batch token channel"],
    delta: Float[Tensor, "batch token channel"],
    A: Float[Tensor, "channel state"],
    B: Float[Tensor, ...],
    C: Float[Tensor, ...],
    D: Float[Tensor, " channel"] | None = None,
    z: Float[Tensor, "batch token channel"] | None = None,
    *,
    delta_bias: Float[Tensor, " channel"] | None = None,
    delta_softplus: bool = False,
    reverse: ReverseDirection = ReverseDirection(),  # noqa: B008 - a tuple: nothing can change it
    impl: str = "auto",
    check_values: bool = True,
) -> Tensor:
    """The sum of a scan from the first token to the last and one from the last to the first, gated once by silu(z).

    Args:
        u: Input, as everything here like its namesake in `selective_scan`.
        delta: Time steps.
        A: Decay rates.
        B: Into the state.
        C: Out of the state.
        D: Of u, straight to the output, once for each direction.
        z: Gates the sum.
        delta_bias: Added to delta.
        delta_softplus: Whether softplus makes the sum positive.
        reverse: What the other direction has of its own; None there: the same as here.
        impl: As there; `auto` decides once for both.
        check_values: Look for NaN and infinity in both deltas first.

    Returns:
        Output `batch token channel` in u's dtype.

    Raises:
        KernelError: as `selective_scan`.
    """
    ahead = ScanInputs(u, delta, A, B, C, D, z, delta_bias, None, delta_softplus, reverse=False)
    own = {name: value for name, value in reverse._asdict().items() if value is not None}
    back = ahead._replace(reverse=True, **own)
    ahead = check_inputs(ahead, check_values=check_values)
    back = check_inputs(back, check_values=check_values and "delta" in own)
    return _find(impl, ahead).both(ahead, back)


def choose_implementation(impl: str, device: torch.device, dtype: torch.dtype) -> str:
    """The name of what would run: `"auto"` takes the first of `_PREFERRED` that can, any other name is itself.

    Args:
        impl: `"auto"` or a name of `IMPLEMENTATIONS`.
        device: Of the inputs.
        dtype: Of the state, see `ScanInputs.state_dtype`.

    Raises:
        KernelError: no such implementation, or one that cannot run here.
    """
    preferred = _PREFERRED_ON.get(device.type, _PREFERRED)
    obstacles = {name: one.find_obstacle for name, one in IMPLEMENTATIONS.items()}
    return choose("selective_scan", impl, obstacles, preferred, device, dtype)


def _find(impl: str, inputs: ScanInputs) -> Implementation:
    return IMPLEMENTATIONS[choose_implementation(impl, inputs.u.device, inputs.state_dtype)]

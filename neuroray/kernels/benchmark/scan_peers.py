"""Other people's selective scans, called as they are or rewritten from their formula, and labelled which."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from neuroray.kernels.benchmark.cases import STATES, Inputs, ScanCase
from neuroray.kernels.benchmark.contestants import Contestant
from neuroray.kernels.benchmark.machine import count_free_bytes

PADDING = 2048
"""mamba-ssm's vectorised path needs a length divisible by this."""

LONGEST_QUADRATIC = 1024
BY_TOKEN = ("u", "delta", "z", "B", "C")


def list_scan_peers(case: ScanCase, device: torch.device) -> list[Contestant]:
    """Peers of one direction, or made to run both by flipped copies, as Vision Mamba does."""
    found = [_describe_loop(case, device), _describe_mambapy(case, device)]
    obstacle = _find_mamba_ssm_obstacle(device)
    found += [
        _describe_mamba_ssm(case, "at the true length", _run_mamba_ssm, obstacle),
        _describe_mamba_ssm(case, f"padded to {PADDING}, padding timed", _run_padded, obstacle),
        _describe_mamba_ssm(case, f"padded to {PADDING} beforehand", _run_mamba_ssm, obstacle, padded=True),
    ]
    return found


def _describe_loop(case: ScanCase, device: torch.device) -> Contestant:
    quadratic = case.tokens > LONGEST_QUADRATIC
    reason = f"quadratic in L: each step's backward writes a whole (B, D, L, N); not run above {LONGEST_QUADRATIC}"
    return Contestant(
        name="loop over tokens, as transformers' slow_forward (own rewrite)",
        run=_run_both(_run_loop, case, axis=-1),
        prepare=_put_channels_first,
        restore=_put_channels_last,
        obstacle=_find_memory_obstacle(case, device, num_tensors=4),
        backward_obstacle=reason if quadratic else None,
        remark="float32 state",
    )


def _describe_mambapy(case: ScanCase, device: torch.device) -> Contestant:
    absent = None if importlib.util.find_spec("mambapy") else "the package mambapy is not installed (extra bench)"
    return Contestant(
        name="mamba.py's parallel scan (its own pscan)",
        run=_run_both(_run_mambapy, case, axis=1),
        obstacle=absent or _find_memory_obstacle(case, device, num_tensors=7, power_of_two=True),
        remark="pads L to a power of two",
    )


def _describe_mamba_ssm(
    case: ScanCase, how: str, run: Callable[[Inputs], Tensor], obstacle: str | None, *, padded: bool = False
) -> Contestant:
    def prepare(inputs: Inputs) -> Inputs:
        turned = _put_channels_first(inputs)
        return _pad(turned) if padded else turned

    def restore(name: str, tensor: Tensor) -> Tensor:
        if padded and name in ("output", *BY_TOKEN):
            tensor = tensor[..., : case.tokens]
        return _put_channels_last(name, tensor)

    direction = ", twice with flips" if case.both else ""
    return Contestant(
        name=f"mamba-ssm {how}{direction}",
        run=_run_both(run, case, axis=-1),
        prepare=prepare,
        restore=restore,
        obstacle=obstacle,
    )


def _run_both(run: Callable[[Inputs], Tensor], case: ScanCase, axis: int) -> Callable[[Inputs], Tensor]:
    """The scan itself, or it and the scan of flipped copies, flipped back and added."""
    if not case.both:
        return run

    def run_twice(inputs: Inputs) -> Tensor:
        flipped = {name: value.flip(axis) if name in BY_TOKEN else value for name, value in inputs.items()}
        return run(inputs) + run(flipped).flip(axis)

    return run_twice


def _put_channels_first(inputs: Inputs) -> Inputs:
    """`batch channel token`, and `batch state token` for B and C, with tokens side by side in memory."""
    return {name: value.transpose(1, 2).contiguous() if name in BY_TOKEN else value for name, value in inputs.items()}


def _put_channels_last(name: str, tensor: Tensor) -> Tensor:
    return tensor.transpose(1, 2) if name in ("output", *BY_TOKEN) else tensor


def _run_loop(inputs: Inputs) -> Tensor:
    """Discretises all tokens at once, then steps through them: three tensors of (batch, channel, token, state)."""
    u, z = inputs["u"].float(), inputs["z"]
    B, C = (inputs[name].float().transpose(1, 2) for name in ("B", "C"))  # noqa: N806 - the formula's
    step = functional.softplus(inputs["delta"].float() + inputs["delta_bias"][:, None])
    decay = torch.exp(step[..., None] * inputs["A"][None, :, None, :])
    drive = step[..., None] * B[:, None] * u[..., None]
    state = u.new_zeros(u.shape[0], u.shape[1], B.shape[-1])
    outputs = []
    for token in range(u.shape[2]):
        state = decay[:, :, token] * state + drive[:, :, token]
        outputs.append(torch.matmul(state, C[:, token, :, None])[..., 0])
    y = torch.stack(outputs, -1) + u * inputs["D"][:, None]
    return (y * functional.silu(z.float())).to(z.dtype)


def _run_mambapy(inputs: Inputs) -> Tensor:
    """Its scan over time of (batch, token, channel, state), and around it what its Mamba block does."""
    pscan: Any = importlib.import_module("mambapy.pscan").pscan
    u, z = inputs["u"].float(), inputs["z"]
    step = functional.softplus(inputs["delta"].float() + inputs["delta_bias"])[..., None]
    states = pscan(torch.exp(step * inputs["A"]), step * inputs["B"].float()[:, :, None] * u[..., None])
    y = (states @ inputs["C"].float()[..., None])[..., 0] + inputs["D"] * u
    return (y * functional.silu(z.float())).to(z.dtype)


def _run_mamba_ssm(inputs: Inputs) -> Tensor:
    selective_scan_fn: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    return selective_scan_fn(*(inputs[name] for name in names), delta_softplus=True)


def _run_padded(inputs: Inputs) -> Tensor:
    return _run_mamba_ssm(_pad(inputs))[..., : inputs["u"].shape[-1]]


def _pad(inputs: Inputs) -> Inputs:
    missing = -inputs["u"].shape[-1] % PADDING
    return {name: functional.pad(value, (0, missing)) if name in BY_TOKEN else value for name, value in inputs.items()}


def _find_mamba_ssm_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "mamba-ssm runs on CUDA only"
    if importlib.util.find_spec("selective_scan_cuda") is None:
        return "mamba-ssm's CUDA extension is not installed (extra mamba)"
    try:
        importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception as error:
        return f"import mamba_ssm: {type(error).__name__}: {error}".splitlines()[0]
    return None


def _find_memory_obstacle(
    case: ScanCase, device: torch.device, *, num_tensors: int, power_of_two: bool = False
) -> str | None:
    """Counts whole (batch, token, channel, state) tensors in float32, of which these peers hold several."""
    tokens = 1 << (case.tokens - 1).bit_length() if power_of_two else case.tokens
    needed = num_tensors * case.batch * tokens * case.channels * STATES * 4
    free = count_free_bytes(device)
    if needed <= 0.8 * free:
        return None
    return f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are free"

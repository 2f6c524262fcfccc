"""Other ways to compute the same model: scans of other people, other attention kernels, other layouts, compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from neuroray.platform.models.brainmt.attention import Attention
from neuroray.platform.models.brainmt.mamba import MambaMixer, ScanDirection
from neuroray.platform.models.brainmt.model import BrainMT

Scan = Callable[..., Tensor]
"""From `batch channel token` u and delta, rates, `batch state token` B and C, D, gate and bias to the gated output."""

_QUICK = 300
"""Tokens up to which a step of the quadratic loop is soon done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One way to compute a step.

    Attributes:
        name: As the table shows it; ours begin so.
        change: What it makes of our model, which it may change in place.
        context: What surrounds a step.
        obstacle: Why it is left out; None: it runs.
        most_rounds: Fewer than asked for, for one that takes very long.
        remark: For the last column.
    """

    name: str
    change: Callable[[BrainMT], nn.Module] = lambda model: model
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    obstacle: str | None = None
    most_rounds: int | None = None
    remark: str = ""


def list_contestants(device: torch.device, *, num_tokens: int, longest_quadratic: int) -> list[Contestant]:
    """Ours first.

    Args:
        device: Where they run.
        num_tokens: Of the sequence.
        longest_quadratic: Tokens from which on the loop that is quadratic is left out.
    """
    quadratic = f"its backward is quadratic: not run above {longest_quadratic} tokens"
    found = [
        Contestant(name="ours"),
        Contestant(name="ours, no checkpoints", change=_keep_all, remark="the same numbers, more memory"),
        Contestant(
            name="loop over tokens, as transformers' slow_forward (own rewrite)",
            change=lambda model: _with_scan(model, scan_by_indexing),
            obstacle=quadratic if num_tokens > longest_quadratic else None,
            most_rounds=2 if num_tokens <= _QUICK else 1,
            remark="the same model, its scan replaced; both ways by flips"
            + ("" if num_tokens <= _QUICK else "; once, not warmed up"),
        ),
        Contestant(
            name="the same loop over unbound tokens",
            change=lambda model: _with_scan(model, scan_by_steps),
            remark="kinder than transformers: its backward is linear",
        ),
        Contestant(name="ours, convolutions channels-last", change=_put_channels_last),
        Contestant(name="ours, convolutions compiled", change=_compile_frames, obstacle=_find_compiler_obstacle()),
    ]
    return found + (_list_gpu_contestants() if device.type == "cuda" else [_leave_out_released()])


def _list_gpu_contestants() -> list[Contestant]:
    """The released design, and other attention kernels at its head size of 256."""
    named = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    named |= {"memory-efficient": SDPBackend.EFFICIENT_ATTENTION}
    found = [
        Contestant(name=f"ours, {name} attention", context=lambda backend=backend: sdpa_kernel(backend))
        for name, backend in named.items()
    ]
    obstacle = None if importlib.util.find_spec("mamba_ssm") else "mamba-ssm is not installed (extra mamba)"
    released = Contestant(
        name="released design: one way, mamba-ssm, no checkpoints",
        change=_as_released,
        obstacle=obstacle,
        remark="scans half as much as ours",
    )
    return [*found, Contestant(name="ours, flex attention", change=_with_flex_attention), released]


def _leave_out_released() -> Contestant:
    return Contestant(
        name="released design: one way, mamba-ssm, no checkpoints", obstacle="mamba-ssm runs on CUDA only"
    )


def scan_by_indexing(u: Tensor, delta: Tensor, rates: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> Tensor:  # noqa: N803 - the formula's
    """As transformers' `MambaMixer.slow_forward` does it: one token after another is taken out of two large tensors.

    The gradient of each such step is a tensor of all tokens again.
    """
    decay, drive = _discretise(u, delta, rates, B, rest[-1])
    state, outputs = u.new_zeros(decay.shape[0], decay.shape[1], decay.shape[-1], dtype=torch.float32), []
    for token in range(u.shape[2]):
        state = decay[:, :, token] * state + drive[:, :, token]
        outputs.append(torch.matmul(state, C[:, :, token, None].float())[..., 0])
    return _finish(torch.stack(outputs, -1), u, *rest)


def scan_by_steps(u: Tensor, delta: Tensor, rates: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> Tensor:  # noqa: N803 - the formula's
    """The same loop over tokens that were taken apart beforehand, so that their gradients are put together once."""
    decay, drive = _discretise(u, delta, rates, B, rest[-1])
    state, outputs = u.new_zeros(decay.shape[0], decay.shape[1], decay.shape[-1], dtype=torch.float32), []
    mixing = C.float().unbind(-1)
    for fading, coming, out in zip(decay.unbind(2), drive.unbind(2), mixing, strict=True):
        state = fading * state + coming
        outputs.append(torch.matmul(state, out[..., None])[..., 0])
    return _finish(torch.stack(outputs, -1), u, *rest)


def scan_by_mamba_ssm(u: Tensor, delta: Tensor, rates: Tensor, B: Tensor, C: Tensor, *rest: Tensor) -> Tensor:  # noqa: N803 - the formula's
    """mamba-ssm's own kernel, as the released code calls it."""
    run: Any = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    skip, gate, bias = rest
    return run(u, delta, rates, B, C, skip, gate, bias, delta_softplus=True)


class PeerMixer(nn.Module):
    """The maps of a mixer of ours with torch's own convolution and another scan; the way back by flipped copies."""

    def __init__(self, ours: MambaMixer, scan: Scan) -> None:
        super().__init__()
        self.project_in, self.project_out = ours.project_in, ours.project_out
        self.ahead, self.back = ours.ahead, ours.back
        self._scan = scan

    def forward(self, x: Tensor) -> Tensor:
        """As `MambaMixer`."""
        x, gate = self.project_in(x).transpose(1, 2).chunk(2, dim=1)
        scanned = self._run(self.ahead, x, gate)
        if self.back is not None:
            scanned = scanned + self._run(self.back, x.flip(-1), gate.flip(-1)).flip(-1)
        return self.project_out(scanned.transpose(1, 2))

    def _run(self, way: ScanDirection, x: Tensor, gate: Tensor) -> Tensor:
        u = functional.silu(way.conv(x)[..., : x.shape[-1]])
        selected = way.select(u.transpose(1, 2)).split([way.delta_rank, way.states, way.states], dim=-1)
        delta = functional.linear(selected[0], way.delta.weight).transpose(1, 2)
        mixing = (one.transpose(1, 2) for one in selected[1:])
        rates, bias = -way.log_decay.float().exp(), way.delta.bias.float()
        return self._scan(u, delta, rates, *mixing, way.skip.float(), gate, bias)


class _FlexAttention(nn.Module):
    def __init__(self, ours: Attention) -> None:
        super().__init__()
        from torch.nn.attention.flex_attention import flex_attention

        self.ours, self._attend = ours, torch.compile(flex_attention)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.ours.qkv(x).unflatten(-1, (3, self.ours.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Any = self._attend(*heads.unbind(0))
        return self.ours.project(mixed.transpose(1, 2).flatten(2))


def _discretise(u: Tensor, delta: Tensor, rates: Tensor, B: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803 - the formula's
    step = functional.softplus(delta.float() + bias[:, None])[..., None]
    return torch.exp(step * rates[None, :, None]), step * B.float().transpose(1, 2)[:, None] * u.float()[..., None]


def _finish(y: Tensor, u: Tensor, skip: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
    del bias  # it went into the steps
    return ((y + u.float() * skip[:, None]) * functional.silu(gate.float())).to(gate.dtype)


def _with_scan(model: BrainMT, scan: Scan) -> BrainMT:
    for layer in model.mamba_layers:
        given: Any = layer
        given.mixer = PeerMixer(given.mixer, scan)
    return model


def _as_released(model: BrainMT) -> BrainMT:
    """One way; all frames at once and nothing computed again, as its code does."""
    for layer in model.mamba_layers:
        given: Any = layer
        given.mixer.back = None
    return _keep_all(_with_scan(model, scan_by_mamba_ssm))


def _keep_all(model: BrainMT) -> BrainMT:
    model.config = dataclasses.replace(model.config, checkpoint=False)
    return model


def _put_channels_last(model: BrainMT) -> BrainMT:
    layout: Any = torch.channels_last_3d
    model.frame_encoder.to(memory_format=layout)
    return model


def _compile_frames(model: BrainMT) -> BrainMT:
    model.frame_encoder.compile(dynamic=False)
    return model


def _with_flex_attention(model: BrainMT) -> BrainMT:
    for layer in model.attention_layers:
        given: Any = layer
        given.attention = _FlexAttention(given.attention)
    return model


def _find_compiler_obstacle() -> str | None:
    return None if shutil.which("g++") or shutil.which("clang++") else "torch.compile finds no C++ compiler"

"""What is timed: shapes fixed before any was measured, and the numbers that fill them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
STATES = 16
TAPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanCase:
    """A selective scan with softplus, bias, D and gate, B and C by token.

    Attributes:
        both: Whether both directions are run and summed; their parameters are shared.
    """

    batch: int
    tokens: int
    channels: int
    dtype: torch.dtype
    both: bool

    @property
    def label(self) -> str:
        """As the table names it."""
        direction = "both directions" if self.both else "one direction"
        return f"scan B={self.batch} L={self.tokens} D={self.channels} N={STATES}, {direction}"

    def draw(self, generator: torch.Generator) -> Inputs:
        """On the CPU, in `dtype`; time steps are around softplus(-3), as trained ones are."""
        sizes = (self.batch, self.tokens, self.channels)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).double()

        inputs = {
            "u": draw(*sizes),
            "delta": draw(*sizes) / 2,
            "A": -torch.arange(1, STATES + 1).double() * torch.exp(draw(self.channels, STATES) / 10),
            "B": draw(self.batch, self.tokens, STATES),
            "C": draw(self.batch, self.tokens, STATES),
            "D": draw(self.channels),
            "z": draw(*sizes),
            "delta_bias": draw(self.channels) / 10 - 3,
        }
        # What has no token stays float32, as in mamba-ssm.
        kept = ("A", "D", "delta_bias")
        return {name: value.to(torch.float32 if name in kept else self.dtype) for name, value in inputs.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCase:
    """Gated attention pooling with one head.

    Attributes:
        lengths: Rows of each volume.
    """

    lengths: tuple[int, ...]
    channels: int
    hidden: int
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """Of all volumes."""
        return sum(self.lengths)

    @property
    def label(self) -> str:
        """As the table names it."""
        span = sorted({min(self.lengths), max(self.lengths)})
        volumes = "1 volume" if len(self.lengths) == 1 else f"{len(self.lengths)} volumes"
        return f"pool {volumes} x {'-'.join(map(str, span))} rows, D={self.channels} H={self.hidden}"

    def draw(self, generator: torch.Generator) -> Inputs:
        """On the CPU, in `dtype`; scores spread by about 1."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).double()

        inputs = {
            "h": draw(self.rows, self.channels),
            "V": draw(self.hidden, self.channels) / math.sqrt(self.channels),
            "U": draw(self.hidden, self.channels) / math.sqrt(self.channels),
            "w": draw(1, self.hidden) * 2 / math.sqrt(self.hidden),
            "bias_v": draw(self.hidden) / 10,
            "bias_u": draw(self.hidden) / 10,
        }
        rounded = {name: value.to(self.dtype) for name, value in inputs.items()}
        return rounded | {"offsets": torch.tensor([0, *self.lengths]).cumsum(0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvCase:
    """A causal convolution with bias and SiLU."""

    batch: int
    tokens: int
    channels: int
    dtype: torch.dtype

    @property
    def label(self) -> str:
        """As the table names it."""
        return f"conv B={self.batch} L={self.tokens} D={self.channels} K={TAPS}"

    def draw(self, generator: torch.Generator) -> Inputs:
        """On the CPU, in `dtype`; taps as torch's conv1d starts with them."""
        shapes = {"x": (self.batch, self.tokens, self.channels), "weight": (self.channels, TAPS)}
        drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        drawn["weight"] /= math.sqrt(TAPS)
        drawn["bias"] = torch.randn(self.channels, generator=generator) / math.sqrt(TAPS)
        return {name: value.to(self.dtype) for name, value in drawn.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCase:
    """One Mamba layer in one direction, whose parts are timed one by one.

    Attributes:
        width: Of what enters and leaves the layer; inside it is twice as wide.
    """

    batch: int
    tokens: int
    width: int
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        """Of convolution and scan."""
        return 2 * self.width

    @property
    def rank(self) -> int:
        """Of the projection to time steps."""
        return math.ceil(self.width / 16)

    @property
    def label(self) -> str:
        """As the report names it."""
        return f"layer B={self.batch} L={self.tokens} width {self.width}, D={self.channels} N={STATES} K={TAPS}"

    @property
    def kernels(self) -> tuple[ScanCase, ConvCase]:
        """What of it is ours."""
        batch, tokens, channels, dtype = self.batch, self.tokens, self.channels, self.dtype
        return (
            ScanCase(batch=batch, tokens=tokens, channels=channels, dtype=dtype, both=False),
            ConvCase(batch=batch, tokens=tokens, channels=channels, dtype=dtype),
        )


Case = ScanCase | PoolCase | ConvCase


def _spread(volumes: int, shortest: int, longest: int) -> tuple[int, ...]:
    """Lengths between two bounds, each once in turn, by a step that leaves no pattern."""
    return tuple(shortest + (37 * index) % (longest - shortest + 1) for index in range(volumes))


def list_cases(operation: str, device: str, *, quick: bool) -> list[Case]:
    """The shapes of kernels on this kind of machine.

    Args:
        operation: `"scan"`, `"pool"`, `"conv"`, `"layer"`, which has none of them, or `"all"`.
        device: `"cpu"` or `"cuda"`.
        quick: One small shape each, for tests of the benchmark itself.
    """
    if quick:
        scan: list[Case] = [_scan(1, 65, 32, both=both) for both in (False, True)]
        pool: list[Case] = [PoolCase(lengths=(7, 1, 31, 3), channels=33, hidden=16, dtype=torch.float32)]
        conv: list[Case] = [ConvCase(batch=1, tokens=65, channels=32, dtype=torch.float32)]
    else:
        scan = _list_gpu_scans() if device == "cuda" else _list_cpu_scans()
        pool = _list_gpu_pools() if device == "cuda" else _list_cpu_pools()
        conv = _list_gpu_convs() if device == "cuda" else _list_cpu_convs()
    return {"scan": scan, "pool": pool, "conv": conv, "layer": [], "all": scan + pool + conv}[operation]


def list_layers(operation: str, device: str, *, quick: bool) -> list[LayerCase]:
    """The layers whose parts are timed; arguments as for `list_cases`."""
    if operation not in ("layer", "all"):
        return []
    if quick:
        return [LayerCase(batch=1, tokens=65, width=16, dtype=torch.float32)]
    if device == "cuda":
        return [LayerCase(batch=1, tokens=50_401, width=512, dtype=torch.bfloat16)]
    return [LayerCase(batch=1, tokens=4096, width=512, dtype=torch.float32)]


def list_gate_cases(case: Case) -> list[Case]:
    """A small and a middle shape of the same kind and dtype, small enough for the float64 reference."""
    if isinstance(case, ScanCase | ConvCase):
        return [replace(case, batch=2, tokens=31, channels=7), replace(case, batch=1, tokens=257, channels=65)]
    return [
        replace(case, lengths=(7, 0, 1, 31), channels=33, hidden=17),
        replace(case, lengths=(130, 65, 300), channels=130, hidden=65),
    ]


def _scan(batch: int, tokens: int, channels: int, *, both: bool, dtype: torch.dtype = torch.float32) -> ScanCase:
    return ScanCase(batch=batch, tokens=tokens, channels=channels, dtype=dtype, both=both)


def _list_cpu_scans() -> list[Case]:
    one = [(1, 512, 512), (1, 4096, 512), (1, 10_000, 512), (1, 50_401, 512), (1, 50_401, 1024)]
    both = [(1, 4096, 512), (1, 50_401, 1024)]
    cases: list[Case] = [_scan(*sizes, both=False) for sizes in one]
    cases.append(_scan(1, 4096, 512, both=False, dtype=torch.bfloat16))
    return cases + [_scan(*sizes, both=True) for sizes in both]


def _list_gpu_scans() -> list[Case]:
    return [
        _scan(batch, tokens, channels, both=both, dtype=dtype)
        for dtype, both, tokens, channels, batch in product(
            (torch.bfloat16, torch.float32),
            (False, True),
            (2048, 10_000, 16_384, 50_401, 65_536),
            (512, 1024),
            (1, 2),
        )
    ]


def _list_cpu_pools() -> list[Case]:
    ragged = _spread(64, 120, 200)
    return [
        PoolCase(lengths=ragged, channels=384, hidden=128, dtype=torch.float32),
        PoolCase(lengths=ragged, channels=768, hidden=256, dtype=torch.float32),
        PoolCase(lengths=(65_536,), channels=384, hidden=128, dtype=torch.float32),
        PoolCase(lengths=_spread(4096, 1, 7), channels=384, hidden=128, dtype=torch.float32),
    ]


def _list_gpu_pools() -> list[Case]:
    shapes = [
        ((160,) * 64, 768, 256),
        (_spread(64, 120, 200), 768, 256),
        (_spread(64, 120, 200), 384, 128),
        ((262_144,), 384, 128),
        ((40_960,) * 64, 768, 256),
    ]
    return [
        PoolCase(lengths=lengths, channels=channels, hidden=hidden, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
        for lengths, channels, hidden in shapes
    ]


def _list_cpu_convs() -> list[Case]:
    sizes = [(4096, torch.float32), (4096, torch.bfloat16), (50_401, torch.float32)]
    return [ConvCase(batch=1, tokens=tokens, channels=1024, dtype=dtype) for tokens, dtype in sizes]


def _list_gpu_convs() -> list[Case]:
    return [
        ConvCase(batch=1, tokens=tokens, channels=channels, dtype=dtype)
        for dtype, tokens, channels in product((torch.bfloat16, torch.float32), (2048, 10_000, 50_401), (512, 1024))
    ]

"""The configuration of BrainMT, and what follows from it: the token grid and its length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from neuroray.config import Config, ConfigError, without_effect
from neuroray.platform.models.brainmt.moments import count_moments

if TYPE_CHECKING:
    from neuroray.platform.models.brainmt.model import BrainMT

DOWNSAMPLING = 16
"""A token spans this many voxels along each axis: four steps of two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainMTConfig(Config):
    """BrainMT; the defaults are the paper's model (40,567,233 parameters).

    Attributes:
        grid_shape: Voxels along x, y, z for which the spatial position table is made; other grids interpolate it.
        num_frames: Frames for which the temporal position table is made; other numbers interpolate it.
        num_outputs: Numbers per scan: one per regression target or binary logit, K for K classes.
        width: Channels of the first convolution stage; tokens have four times as many.
        frame_encoder: `conv`: two residual convolution stages; `patch`: one linear map of cubes of 16 voxels, the
            ablation without convolutions.
        mamba_depth: Mamba layers.
        attention_depth: Attention layers after them; 0 is the ablation without a transformer.
        bidirectional: Scan from both ends and add; the released code, unlike the paper, scans one way.
        halve_directions: Divide that sum by two (Vim's setting; neither paper nor release).
        state_size: Numbers of state per channel of a scan.
        conv_taps: Taps of the causal convolution in a Mamba layer.
        expansion: Channels in a Mamba layer per channel of a token.
        num_heads: Of each attention layer.
        mlp_ratio: Hidden channels of the MLP per channel of a token.
        shared_mlp: One LayerNorm and one MLP serve all attention layers, as released; else each has its own.
        pool: What the head takes: the CLS token, as released, or the mean of all others. Masked pretraining asks
            nothing of CLS, so a probe takes the mean. `moments`, which the paper has not: CLS and, centred on the
            training scans, correlations and variances over time of the tokens' principal components
            (`PrincipalMoments`), so that a hundred people are enough to learn what is told by fluctuating together.
            Their axes are of one grid.
        num_components: With `moments`, how many components.
        head: `linear`, as released; `mlp` on the normalised token, as the paper tells; `probe`: linear on channels
            whose mean and spread over the training scans are fixed before it learns.
        final_norm: Normalise the token before a linear head.
        time_steps: Of the scans, as drawn. `released`: about 0.7 (the released code sets their bias to 0), so that a
            state forgets within a few tokens; `mamba`: 0.001 to 0.1 (Gu and Dao 2023), so that states gather what
            tokens of many frames say.
        drop_path: Rate at which the deepest layers are skipped for a scan in training; earlier ones less.
        checkpoint: Keep only what enters a layer and compute the rest again in the backward pass.
        frames_at_once: Frames that go through the convolutions together, of all scans of a batch; None: all.
        scan_impl: Implementation of the selective scan and its convolution, see `neuroray.kernels`.
    """

    grid_shape: tuple[int, int, int] = (91, 109, 91)
    num_frames: int = 200
    num_outputs: int = 1
    width: int = 128
    frame_encoder: Literal["conv", "patch"] = "conv"
    mamba_depth: int = 12
    attention_depth: int = 8
    bidirectional: bool = True
    halve_directions: bool = False
    state_size: int = 16
    conv_taps: int = 4
    expansion: int = 2
    num_heads: int = 2
    mlp_ratio: float = 2.0
    shared_mlp: bool = True
    pool: Literal["cls", "mean", "moments"] = "cls"
    num_components: int = 16
    head: Literal["linear", "mlp", "probe"] = "linear"
    final_norm: bool = False
    time_steps: Literal["released", "mamba"] = "released"
    drop_path: float = 0.1
    checkpoint: bool = without_effect(True)
    frames_at_once: int | None = without_effect(8)
    scan_impl: str = without_effect("auto")

    def __post_init__(self) -> None:
        sizes = ("num_frames", "num_outputs", "width", "state_size", "expansion", "num_heads", "num_components")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", given=getattr(self, name), expected="1 or more")
        if min(self.grid_shape) < 1:
            raise ConfigError("a grid has voxels", given=self.grid_shape, expected="1 or more along each axis")
        if self.width % 2 or self.num_channels % self.num_heads:
            given = f"width {self.width}, num_heads {self.num_heads}"
            raise ConfigError(
                "widths do not divide", given=given, expected="an even width, 4 x width a multiple of heads"
            )
        if min(self.mamba_depth, self.attention_depth) < 0:
            given = f"{self.mamba_depth} Mamba and {self.attention_depth} attention layers"
            raise ConfigError("a depth is negative", given=given, expected="0 or more")
        if not self.bidirectional and self.attention_depth == 0:
            raise ConfigError(
                "the CLS token would see nothing",
                given="one direction from the CLS token on, and no attention",
                expected="bidirectional, or attention_depth of 1 or more",
            )
        if self.pool == "moments" and self.head == "mlp":
            raise ConfigError("moments are read linearly", given="pool moments, head mlp", expected="head linear")
        if self.pool == "moments" and self.num_components > self.num_channels * math.prod(self.token_grid):
            given = f"{self.num_components}, of {math.prod(self.token_grid)} tokens of {self.num_channels} channels"
            raise ConfigError("there are not so many components", given=given, fix="a smaller --model.num-components")
        if not 0 <= self.drop_path < 1:
            raise ConfigError("drop_path is no fraction", given=self.drop_path, expected="0 <= fraction < 1")
        if not 2 <= self.conv_taps <= 8:
            raise ConfigError("conv_taps is out of range", given=self.conv_taps, expected="2 to 8")
        if self.frames_at_once is not None and self.frames_at_once < 1:
            raise ConfigError("frames_at_once is too small", given=self.frames_at_once, expected="1 or more, or null")

    @property
    def num_channels(self) -> int:
        """Channels of a token."""
        return 4 * self.width

    @property
    def num_features(self) -> int:
        """Numbers that the head takes of a window."""
        return self.num_channels + (count_moments(self.num_components) if self.pool == "moments" else 0)

    @property
    def inner_channels(self) -> int:
        """Channels inside a Mamba layer."""
        return self.expansion * self.num_channels

    @property
    def delta_rank(self) -> int:
        """Rank of the map to the time steps (Gu and Dao 2023: a 16th of the channels)."""
        return math.ceil(self.num_channels / 16)

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens along y, x, z of one frame on the grid of the position table."""
        return token_grid(self.grid_shape)

    def num_tokens(self, num_frames: int | None = None, grid_shape: tuple[int, int, int] | None = None) -> int:
        """Length of the sequence, CLS included, for so many frames of a grid."""
        tokens = math.prod(token_grid(grid_shape or self.grid_shape))
        return 1 + tokens * (num_frames or self.num_frames)

    def drop_rates(self) -> tuple[float, ...]:
        """Drop-path rate of each Mamba layer's input, of the last Mamba output, then of each attention layer.

        The release ramps from 0 to `drop_path` over all layers; a Mamba layer's rate applies to what the layer before
        it gives, so that the first two are 0, and the sum after the last layer has the full rate.
        """
        depth = self.mamba_depth + self.attention_depth
        ramp = [self.drop_path * index / max(1, depth - 1) for index in range(depth)]
        into_mamba = ([0.0, *ramp])[: self.mamba_depth]
        return (*into_mamba, self.drop_path, *ramp[self.mamba_depth :])

    def build(self) -> BrainMT:
        """The model; initial weights are drawn from torch's global generator."""
        from neuroray.platform.models.brainmt.model import BrainMT

        return BrainMT(self)


def token_grid(grid_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens along y, x, z of a frame with so many voxels along x, y, z: each of four steps halves, rounding up."""
    x, y, z = (-(-length // DOWNSAMPLING) for length in grid_shape)
    return y, x, z

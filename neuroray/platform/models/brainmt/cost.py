"""What a window costs BrainMT: parameters and floating-point operations by part, by arithmetic on the configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuroray.platform.models.brainmt.config import DOWNSAMPLING, token_grid

if TYPE_CHECKING:
    from neuroray.platform.models.brainmt.config import BrainMTConfig

SCAN_OPERATIONS = 9
"""Per token, channel, state and direction: how Mamba's and Vision Mamba's authors count a selective scan."""

PARTS = ("conv stage", "scan", "attention", "linear maps")
"""A scan with its causal convolution; the products of attention itself; the maps of all layers, and the MLP."""

_CUBE = 27


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """One convolution of the frame encoder, seen from one frame.

    Attributes:
        voxels: Places of its output.
        inputs: Channels that enter.
        outputs: Channels that leave.
        taps: Voxels of its kernel.
    """

    name: str
    voxels: int
    inputs: int
    outputs: int
    taps: int = _CUBE

    @property
    def flops(self) -> int:
        """Of a forward pass."""
        return 2 * self.voxels * self.inputs * self.outputs * self.taps

    @property
    def size(self) -> int:
        """Numbers in its output."""
        return self.voxels * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """Floating-point operations of one training step, by part (`PARTS`, or those of another model).

    Attributes:
        forward: Of the forward pass.
        again: Of what checkpoints compute a second time.
        backward: Of the backward pass: twice the forward's, 2.5 times in attention, which forms its scores anew.
    """

    forward: dict[str, int]
    again: dict[str, int]
    backward: dict[str, int]

    @property
    def total(self) -> int:
        """Of the step."""
        return sum(sum(one.values()) for one in (self.forward, self.again, self.backward))

    @property
    def by_part(self) -> dict[str, int]:
        """All passes of each part."""
        return {part: count + self.again[part] + self.backward[part] for part, count in self.forward.items()}


def list_convolutions(config: BrainMTConfig, grid_shape: tuple[int, int, int]) -> list[Convolution]:
    """The frame encoder's convolutions in order, for one frame of a grid."""
    if config.frame_encoder == "patch":
        voxels, taps = math.prod(token_grid(grid_shape)), DOWNSAMPLING**3
        return [Convolution(name="project", voxels=voxels, inputs=1, outputs=config.num_channels, taps=taps)]
    width, grid, found = config.width, grid_shape, []
    for name, inputs, outputs, halves in (
        ("stem1", 1, width // 2, True),
        ("stem2", width // 2, width, True),
        ("unit1.conv1", width, width, False),
        ("unit1.conv2", width, width, False),
        ("down1", width, 2 * width, True),
        ("unit2.conv1", 2 * width, 2 * width, False),
        ("unit2.conv2", 2 * width, 2 * width, False),
        ("down2", 2 * width, 4 * width, True),
    ):
        grid = tuple(-(-length // 2) for length in grid) if halves else grid
        found.append(Convolution(name=name, voxels=math.prod(grid), inputs=inputs, outputs=outputs))
    return found


def count_parameters(config: BrainMTConfig) -> dict[str, int]:
    """Parameters by part: `frames`, `tables`, `mamba`, `attention`, `shared`, `head`; a layer's times their number."""
    channels = config.num_channels
    norms_and_heads = channels + (2 * channels if config.final_norm or config.head == "mlp" else 0)
    hidden_head = channels * (channels + 1) if config.head == "mlp" else 0
    mixing, depth = _mixing_parameters(config), config.attention_depth
    return {
        "frames": _frame_parameters(config),
        "tables": channels * (2 + math.prod(config.token_grid) + config.num_frames),
        "mamba": config.mamba_depth * mamba_layer_parameters(config),
        "attention": depth * attention_layer_parameters(config),
        "shared": mixing if config.shared_mlp and depth else 0,
        "head": norms_and_heads + hidden_head + config.num_outputs * (config.num_features + 1),
    }


def mamba_layer_parameters(config: BrainMTConfig) -> int:
    """Of one Mamba layer with its norm."""
    channels, inner, rank, states = config.num_channels, config.inner_channels, config.delta_rank, config.state_size
    conv, select, delta = inner * (config.conv_taps + 1), inner * (rank + 2 * states), inner * (rank + 1)
    direction = conv + select + delta + inner * (states + 1)
    return channels * (1 + 3 * inner) + direction * (2 if config.bidirectional else 1)


def attention_layer_parameters(config: BrainMTConfig) -> int:
    """Of one attention layer; with norm and MLP where they are its own."""
    channels = config.num_channels
    return 4 * channels * (channels + 1) + (0 if config.shared_mlp else _mixing_parameters(config))


def count_forward_flops(
    config: BrainMTConfig, num_frames: int | None = None, grid_shape: tuple[int, int, int] | None = None
) -> dict[str, int]:
    """Operations of one window's forward pass by part; a product and its addition count as two.

    Norms, activations and additions are left out, as everywhere: they cost memory traffic, not arithmetic.

    Args:
        config: The model.
        num_frames: Of the window; the configuration's when not given.
        grid_shape: Of a frame; the configuration's when not given.
    """
    grid, frames = grid_shape or config.grid_shape, num_frames or config.num_frames
    tokens = config.num_tokens(frames, grid)
    channels, inner = config.num_channels, config.inner_channels
    directions = 2 if config.bidirectional else 1
    scan = inner * (SCAN_OPERATIONS * config.state_size + 2 * config.conv_taps) * directions
    to_scan = inner * (2 * config.delta_rank + 2 * config.state_size) * directions
    maps = config.mamba_depth * 2 * (3 * channels * inner + to_scan)
    hidden = int(config.mlp_ratio * channels)
    maps += config.attention_depth * 2 * (4 * channels * channels + 2 * channels * hidden)
    return {
        "conv stage": frames * sum(one.flops for one in list_convolutions(config, grid)),
        "scan": tokens * config.mamba_depth * scan,
        "attention": config.attention_depth * 4 * tokens * tokens * channels,
        "linear maps": tokens * maps,
    }


def count_step_flops(
    config: BrainMTConfig,
    num_frames: int | None = None,
    grid_shape: tuple[int, int, int] | None = None,
    *,
    num_windows: int = 1,
) -> StepFlops:
    """Operations of a training step over so many windows; arguments as in `count_forward_flops`."""
    grid, frames = grid_shape or config.grid_shape, num_frames or config.num_frames
    forward = {part: num_windows * count for part, count in count_forward_flops(config, frames, grid).items()}
    backward = {part: (5 * count) // 2 if part == "attention" else 2 * count for part, count in forward.items()}
    # Voxels ask for no gradient, so the first convolution has one of its weights alone.
    backward["conv stage"] -= num_windows * frames * list_convolutions(config, grid)[0].flops
    again = forward if config.checkpoint else dict.fromkeys(forward, 0)
    return StepFlops(forward=forward, again=dict(again), backward=backward)


def _frame_parameters(config: BrainMTConfig) -> int:
    if config.frame_encoder == "patch":
        return config.num_channels * (DOWNSAMPLING**3 + 1)
    width = config.width
    weights = sum(_CUBE * one.inputs * one.outputs for one in list_convolutions(config, config.grid_shape))
    # Of the residual units alone, convolutions have biases and a norm: three numbers per channel, twice a unit.
    return weights + 2 * 3 * (width + 2 * width)


def _mixing_parameters(config: BrainMTConfig) -> int:
    channels, hidden = config.num_channels, int(config.mlp_ratio * config.num_channels)
    return 2 * channels + hidden * (channels + 1) + channels * (hidden + 1)

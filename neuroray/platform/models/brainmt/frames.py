"""The frame encoder of BrainMT: one volume after another through 3D convolutions, 16 voxels to a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from neuroray.platform.models.brainmt.config import DOWNSAMPLING

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroray.platform.models.brainmt.config import BrainMTConfig


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of `batch channel y x z`."""

    def forward(self, input: Tensor) -> Tensor:
        """The same shape, normalised at each place."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class ResidualUnit(nn.Module):
    """Convolution, norm, GELU (tanh form), convolution, norm, added to the input (released code, `ConvBlock`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = ChannelNorm(channels, eps=1e-5)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = ChannelNorm(channels, eps=1e-5)

    def forward(self, x: Float[Tensor, "frame channel y x z"]) -> Float[Tensor, "frame channel y x z"]:
        """The same shape."""
        hidden = functional.gelu(self.norm1(self.conv1(x)), approximate="tanh")
        return x + self.norm2(self.conv2(hidden))


def _halve(channels_in: int, channels_out: int) -> nn.Conv3d:
    return nn.Conv3d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)


class ConvFrameEncoder(nn.Module):
    """Stem without norm, then two residual stages, each followed by a halving (released code; the paper's figure 1)."""

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        width = config.width
        self.stem1 = _halve(1, width // 2)
        self.stem2 = _halve(width // 2, width)
        self.unit1 = ResidualUnit(width)
        self.down1 = _halve(width, 2 * width)
        self.unit2 = ResidualUnit(2 * width)
        self.down2 = _halve(2 * width, 4 * width)

    def forward(self, x: Float[Tensor, "frame 1 y x z"]) -> Float[Tensor, "frame channel y x z"]:
        """One token per 16 voxels along each axis, rounded up."""
        x = functional.relu(self.stem1(x))
        x = functional.relu(self.stem2(x))
        if not x.is_cuda:
            # So that norms over channels read what lies side by side; on a GPU this was not measured.
            x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.down1(self.unit1(x))
        return self.down2(self.unit2(x))


class PatchFrameEncoder(nn.Module):
    """One linear map of each cube of 16 voxels: the ablation without convolution stages."""

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.project = nn.Conv3d(1, config.num_channels, DOWNSAMPLING, stride=DOWNSAMPLING)

    def forward(self, x: Float[Tensor, "frame 1 y x z"]) -> Float[Tensor, "frame channel y x z"]:
        """One token per cube; the last ones are filled up with the frame's edge."""
        short = [-length % DOWNSAMPLING for length in x.shape[-3:]]
        padding = [side for missing in reversed(short) for side in (0, missing)]
        return self.project(functional.pad(x, padding, mode="replicate"))


def encode_frames(
    encoder: nn.Module,
    frames: Float[Tensor, "batch time x y z"],
    *,
    frames_at_once: int | None,
    is_checkpointed: bool,
) -> Float[Tensor, "batch time channel token"]:
    """Tokens of all frames, z fastest, then x, then y, computed some frames at a time.

    Frames do not meet here, so that the work of a chunk of them can be dropped and done again in the backward pass:
    what is kept is the voxels and the tokens, not the convolutions' outputs, a hundred times as large.

    Args:
        encoder: Frames to token grids.
        frames: Standardised voxels in RAS+ order. The authors' order is y, x, z, so axes are exchanged here.
        frames_at_once: Frames per chunk; None: all in one.
        is_checkpointed: Whether each chunk is computed again in the backward pass.
    """
    batch, time = frames.shape[:2]
    flat = frames.transpose(-3, -2).flatten(0, 1).unsqueeze(1)
    is_checkpointed = is_checkpointed and torch.is_grad_enabled()
    tokens = []
    for chunk in flat.split(frames_at_once or len(flat)):
        if is_checkpointed:
            encoded = checkpoint(encoder, chunk, use_reentrant=False)
            assert isinstance(encoded, Tensor)
        else:
            encoded = encoder(chunk)
        tokens.append(encoded.flatten(2))
    return torch.cat(tokens).unflatten(0, (batch, time))

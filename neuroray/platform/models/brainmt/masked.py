"""Masked prediction: a frame encoder learns, without labels, to say from a frame's shown cubes what the others hold.

What is hidden can be foretold only from what it shares with the rest of the frame, such as networks that span the
brain; noise of single voxels cannot. The paper names self-supervised pretraining as future work; this is a small one,
after masked autoencoders (He et al. 2022), of single frames, whose cubes are space-time patches one frame long.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.brainmt.config import DOWNSAMPLING, token_grid
from neuroray.platform.models.brainmt.frames import encode_frames

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from neuroray.platform.models.brainmt.config import BrainMTConfig

_BLOCK = 4  # voxels along each side of a block, whose mean is foretold
_SIDE = DOWNSAMPLING // _BLOCK


class MaskedFrames(nn.Module):
    """A frame encoder with a linear map from each place's token to the block means of its cube of 16 voxels.

    Args:
        encoder: Frames to token grids; what is to be trained.
        config: Of the model that it belongs to.
        grid_shape: Voxels of the frames along x, y, z.
    """

    def __init__(self, encoder: nn.Module, config: BrainMTConfig, grid_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.encoder, self.config, self.grid = encoder, config, token_grid(grid_shape)
        shape = (math.prod(self.grid), config.num_channels, _SIDE**3)
        self.decoder = nn.Parameter(torch.randn(shape) / math.sqrt(config.num_channels))

    def draw_hidden(
        self, num_frames: int, share: float, generator: torch.Generator | None = None
    ) -> Bool[Tensor, "frame place"]:
        """Which cubes of each frame are hidden; each with the probability `share`, by itself."""
        return torch.rand(num_frames, math.prod(self.grid), generator=generator) < share

    def forward(
        self,
        frames: Float[Tensor, "frame x y z"],
        brain: Bool[Tensor, "frame x y z"],
        hidden: Bool[Tensor, "frame place"],
        *,
        blank: float = 0.0,
    ) -> Float[Tensor, ""]:
        """The share of the hidden blocks' mean square that is not foretold; 1 for who says 0 of all.

        Args:
            frames: Standardised.
            brain: What is to be foretold.
            hidden: Which cubes are set to `blank` before the encoder sees them.
            blank: The score of background.
        """
        shown = self._spread(~hidden, frames.shape[-3:])
        tokens = encode_frames(
            self.encoder,
            frames.where(shown, blank)[None],
            frames_at_once=self.config.frames_at_once,
            is_checkpointed=self.config.checkpoint,
        )[0]
        foretold = torch.einsum("fck,kcb->fkb", tokens, self.decoder.to(tokens.dtype))
        means, sizes = self._blocks(frames, brain)
        weights = sizes * hidden[..., None]
        return (weights * (foretold - means).square()).sum() / (weights * means.square()).sum().clamp_min(1e-12)

    def _spread(self, cubes: Bool[Tensor, "frame place"], shape: torch.Size) -> Bool[Tensor, "frame x y z"]:
        """Each cube's flag at all of its voxels; places are in the order of tokens: y, x, z."""
        flags = cubes.unflatten(1, self.grid).transpose(1, 2)
        for axis in (1, 2, 3):
            flags = flags.repeat_interleave(DOWNSAMPLING, axis).narrow(axis, 0, shape[axis - 1])
        return flags

    def _blocks(
        self, frames: Float[Tensor, "frame x y z"], brain: Bool[Tensor, "frame x y z"]
    ) -> tuple[Float[Tensor, "frame place block"], Float[Tensor, "frame place block"]]:
        """Mean over the brain in each block of each cube, and the block's share of brain."""
        y, x, z = self.grid
        short = [DOWNSAMPLING * count - length for count, length in zip((x, y, z), frames.shape[-3:], strict=True)]
        padding = [side for missing in reversed(short) for side in (0, missing)]
        inside = functional.pad(brain.to(frames.dtype), padding)
        sums = functional.avg_pool3d(functional.pad(frames * brain, padding)[:, None], _BLOCK)[:, 0]
        sizes = functional.avg_pool3d(inside[:, None], _BLOCK)[:, 0]
        return self._by_place(sums / sizes.clamp_min(1e-6)), self._by_place(sizes)

    def _by_place(self, blocks: Float[Tensor, "frame x y z"]) -> Float[Tensor, "frame place block"]:
        y, x, z = self.grid
        cut = blocks.reshape(len(blocks), x, _SIDE, y, _SIDE, z, _SIDE)
        return cut.permute(0, 3, 1, 5, 2, 4, 6).reshape(len(blocks), y * x * z, _SIDE**3)

"""Position tables of BrainMT, interpolated for other grids and numbers of frames, and the order of the tokens."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float

    from neuroray.platform.models.brainmt.config import BrainMTConfig

logger = logging.getLogger(__name__)


class TokenEmbedding(nn.Module):
    """Adds place and time to tokens and puts the CLS token in front (released code; the paper's section 2.2).

    The CLS token has a place in the spatial table and none in time.
    """

    def __init__(self, config: BrainMTConfig) -> None:
        super().__init__()
        self.grid, channels = config.token_grid, config.num_channels
        self.cls = nn.Parameter(torch.zeros(1, 1, channels))
        self.space = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), channels))
        self.time = nn.Parameter(torch.zeros(1, config.num_frames, channels))
        nn.init.trunc_normal_(self.space, std=0.02)
        self._told: set[tuple[int, ...]] = set()

    def forward(
        self, tokens: Float[Tensor, "batch time channel place"], grid: tuple[int, int, int]
    ) -> Float[Tensor, "batch token channel"]:
        """The sequence: CLS, then all frames of the first place, all frames of the second, and so on.

        Args:
            tokens: Of each frame, places in the order of `grid`.
            grid: Tokens along y, x, z.
        """
        places, frames = self.resize(grid, tokens.shape[1])
        x = tokens.permute(0, 3, 1, 2) + places[:, 1:, None] + frames[:, None]
        cls = (self.cls + self.space[:, :1]).to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([cls, x.flatten(1, 2)], dim=1)

    def resize(
        self, grid: tuple[int, int, int], num_frames: int
    ) -> tuple[Float[Tensor, "1 place channel"], Float[Tensor, "1 time channel"]]:
        """The tables of places (CLS first) and of times, interpolated where they are of another size."""
        return self._places(grid), self._frames(num_frames)

    def _places(self, grid: tuple[int, int, int]) -> Float[Tensor, "1 place channel"]:
        if grid == self.grid:
            return self.space
        self._tell(grid, "the spatial position table of %s tokens is interpolated to %s", self.grid, grid)
        volume = self.space[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        resized = functional.interpolate(volume, grid, mode="trilinear", align_corners=False)
        return torch.cat([self.space[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)

    def _frames(self, num_frames: int) -> Float[Tensor, "1 time channel"]:
        known = self.time.shape[1]
        if num_frames == known:
            return self.time
        self._tell((num_frames,), "the temporal position table of %d frames is interpolated to %d", known, num_frames)
        return functional.interpolate(
            self.time.transpose(1, 2), num_frames, mode="linear", align_corners=False
        ).transpose(1, 2)

    def _tell(self, key: tuple[int, ...], text: str, *values: object) -> None:
        """Once for each size: what is interpolated was not trained so."""
        if key not in self._told:
            self._told.add(key)
            logger.info(text, *values)

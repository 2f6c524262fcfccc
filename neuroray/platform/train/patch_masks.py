"""Which space-time patches of a window are hidden, by a key and nothing else, and taking them out of its voxels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from neuroray.config import Config, ConfigError
from neuroray.platform.models.brainmt.config import DOWNSAMPLING

FILL = 0.0
"""What stands in hidden patches: the mean, for voxels are z-scores."""

_LEAST_SPREAD = 1e-5  # of a voxel over time, in standard deviations of the scan: float32 tells no less


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskConfig(Config):
    """What is hidden of a window. A patch is a token's: 16 voxels along each axis, in one frame.

    Attributes:
        shape: `block`: a place for `block_frames` frames on end, each place and time by itself; `tube`: a place in
            all frames; `frames`: all places for `block_frames` frames on end.
        ratio: Share of what could be hidden (blocks, places, or stretches of frames) that is.
        block_frames: Signals change so slowly that a single hidden frame is told by its neighbours; a block should
            last longer than the haemodynamic response, some 8 to 16 s.
        redraw: In training hide something else each time; else a window always has the same mask. In validation it
            always has.
    """

    shape: Literal["block", "tube", "frames"] = "block"
    ratio: float = 0.6
    block_frames: int = 8
    redraw: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ConfigError("a mask hides some and leaves some", given=self.ratio, expected="0 < mask.ratio < 1")
        if self.block_frames < 1:
            given, expected = self.block_frames, "mask.block_frames of 1 or more"
            raise ConfigError("a block has frames", given=given, expected=expected)


def draw_mask(
    places: Bool[Tensor, " place"], num_frames: int, config: MaskConfig, *, key: int
) -> Bool[Tensor, "place time"]:
    """True for patches that are hidden; at least one unit is, and at least one is not.

    Args:
        places: Which hold brain: only they are hidden, and counted by `ratio`.
        num_frames: Of the window.
        config: What to hide.
        key: All that the draw depends on; where blocks begin is a part of it.

    Raises:
        ConfigError: there is only one thing that could be hidden.
    """
    generator = torch.Generator().manual_seed(key)
    block = num_frames if config.shape == "tube" else config.block_frames
    phase = int(torch.randint(block, (), generator=generator)) if config.shape != "tube" else 0
    stretch = (torch.arange(num_frames) + phase) // block
    num_stretches = int(stretch[-1]) + 1
    num_places = 1 if config.shape == "frames" else int(places.sum())
    num_units = num_places * num_stretches
    if num_units < 2:
        raise ConfigError(
            "hiding anything of this window would hide all of it",
            given=f"{num_places} places, {num_frames} frames, {config.shape} of {block} frames",
            fix="a smaller --mask.block-frames, or --mask.shape block",
        )
    num_hidden = min(max(round(config.ratio * num_units), 1), num_units - 1)
    hidden = torch.zeros(num_units, dtype=torch.bool)
    hidden[torch.randperm(num_units, generator=generator)[:num_hidden]] = True
    units = hidden.view(num_places, num_stretches)[:, stretch]
    mask = torch.zeros(len(places), num_frames, dtype=torch.bool)
    mask[places.cpu()] = units
    return mask.to(places.device)


def find_places(brain: Bool[Tensor, "x y z"]) -> Bool[Tensor, " place"]:
    """Which patches hold a brain voxel, in the order of tokens: y, x, z."""
    x, y, z = brain.shape
    padding = [side for length in (z, y, x) for side in (0, -length % DOWNSAMPLING)]
    cubes = functional.max_pool3d(functional.pad(brain[None].float(), padding), DOWNSAMPLING)[0] > 0
    return cubes.transpose(0, 1).flatten()


def hide(
    scores: Float[Tensor, "time x y z"],
    mask: Bool[Tensor, "place time"],
    held: Bool[Tensor, " time"],
    *,
    by: Literal["scan", "voxel"],
) -> None:
    """Takes hidden patches out of a window, in place: `FILL` stands there, in place of the background too.

    By voxel, scores are made relative to each voxel's mean and spread over the frames in which its place is seen.
    Over all frames of the window, these two would tell of what is hidden.

    Args:
        scores: A window's z-scores by scan.
        mask: True for what is hidden.
        held: Frames that hold anything.
        by: Whether the scores stay those of the scan.
    """
    for cube, is_hidden in zip(_cut_cubes(scores), mask, strict=True):
        if by == "voxel":
            _standardise_voxels(cube, held & ~is_hidden)
        cube[is_hidden] = FILL


def _cut_cubes(scores: Float[Tensor, "time x y z"]) -> Iterator[Float[Tensor, "time i j k"]]:
    """The voxels of each place, as views, in the order of tokens; fewer where the grid ends."""
    x, y, z = (range(0, length, DOWNSAMPLING) for length in scores.shape[1:])
    for j, i, k in itertools.product(y, x, z):
        yield scores[:, i : i + DOWNSAMPLING, j : j + DOWNSAMPLING, k : k + DOWNSAMPLING]


def _standardise_voxels(cube: Float[Tensor, "time i j k"], seen: Bool[Tensor, " time"]) -> None:
    """In place; what does not change over the frames that are seen, background too, becomes 0, as do empty frames."""
    if not seen.any():
        cube.zero_()
        return
    std, mean = torch.std_mean(cube[seen], dim=0, correction=0)
    is_still = std < _LEAST_SPREAD
    cube.sub_(mean).div_(std.masked_fill(is_still, 1)).masked_fill_(is_still, 0)
    cube[~seen] = 0


def make_key(*parts: str | int) -> int:
    """A 63-bit key for `draw_mask`, far apart for neighbours."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

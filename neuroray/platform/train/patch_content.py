"""What patches hold, as means over cells of brain voxels; errors on the hidden ones; what is told without a model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from neuroray.platform.models.brainmt.config import DOWNSAMPLING

_FRAMES_AT_ONCE = 8
# Of a z-score: float32 means over a window stray by 1e-7, and a cell that changes less than this does not change.
_LEAST_SPREAD = 1e-5


class Content(NamedTuple):
    """The cells of a batch of windows.

    Attributes:
        values: Of each cell in each frame.
        weights: Brain voxels of each cell; 0 where there is nothing to tell.
    """

    values: Float[Tensor, "batch place time cell"]
    weights: Float[Tensor, "batch place cell"]


def pool_cells(
    scores: Float[Tensor, "batch time x y z"], brain: Bool[Tensor, "batch x y z"], cell_voxels: int
) -> Content:
    """The mean over the brain voxels of each cell; 0 where it has none. Places in the order y, x, z; cells in x, y, z.

    Cells at the upper ends are cut off where the grid ends.
    """
    x, y, z = scores.shape[2:]
    padding = [side for length in (z, y, x) for side in (0, -length % DOWNSAMPLING)]

    def add_up(volumes: Float[Tensor, "volume x y z"]) -> Float[Tensor, "volume i j k"]:
        return functional.avg_pool3d(functional.pad(volumes, padding), cell_voxels) * cell_voxels**3

    weights = add_up(brain.to(scores.dtype))
    rows = []
    for row, is_brain in zip(scores, brain, strict=True):
        chunks = row.split(_FRAMES_AT_ONCE)
        rows.append(torch.cat([add_up(chunk.masked_fill(~is_brain, 0)) for chunk in chunks]))
    values = torch.stack(rows) / weights[:, None].clamp(min=1)
    return Content(_by_place(values, cell_voxels), _by_place(weights[:, None], cell_voxels)[:, :, 0].round())


def standardise_cells(content: Content, held: Bool[Tensor, "batch time"]) -> Content:
    """Each cell's fluctuation: its mean over the window's held frames taken out, in units of its spread there.

    What stays is what anatomy does not tell. A cell that does not change has weight 0.
    """
    counted = held[:, None, :, None].to(content.values.dtype)
    number = counted.sum(2, keepdim=True).clamp(min=1)
    centred = content.values - (content.values * counted).sum(2, keepdim=True) / number
    spread = ((centred.square() * counted).sum(2, keepdim=True) / number).sqrt()
    weights = content.weights * (spread[:, :, 0] > _LEAST_SPREAD)
    return Content(centred / spread.clamp(min=_LEAST_SPREAD), weights)


def hidden_error(
    said: Float[Tensor, "batch place time cell"], content: Content, hidden: Bool[Tensor, "batch place time"]
) -> Float[Tensor, " batch"]:
    """Mean squared error of each window over the brain voxels of its hidden patches, and of no others."""
    weights = content.weights[:, :, None] * hidden[..., None]
    errors = (said.float() - content.values).square() * weights
    return errors.sum((1, 2, 3)) / weights.sum((1, 2, 3)).clamp(min=1)


def say_cell_mean(content: Content, seen: Bool[Tensor, "batch place time"]) -> Float[Tensor, "batch place time cell"]:
    """The mean of the same cell over the frames in which it is seen; 0 where it never is."""
    shown = seen[..., None].to(content.values.dtype)
    mean = (content.values * shown).sum(2, keepdim=True) / shown.sum(2, keepdim=True).clamp(min=1)
    return mean.expand_as(content.values)


def say_neighbours(content: Content, seen: Bool[Tensor, "batch place time"]) -> Float[Tensor, "batch place time cell"]:
    """The same cell between the nearest frames in which it is seen, in a straight line; 0 where it never is.

    Before the first and after the last it is as there.
    """
    last = seen.shape[2]
    frames = torch.arange(last, device=seen.device).expand_as(seen)
    before = torch.where(seen, frames, -1).cummax(2).values
    after = torch.where(seen, frames, last).flip(2).cummin(2).values.flip(2)
    before, after = torch.where(before < 0, after, before), torch.where(after == last, before, after)
    is_never = (before < 0) | (before == last)
    before, after = before.clamp(0, last - 1), after.clamp(0, last - 1)
    share = ((frames - before) / (after - before).clamp(min=1))[..., None]
    index = [at[..., None].expand_as(content.values) for at in (before, after)]
    left, right = (content.values.gather(2, at) for at in index)
    return (left + share * (right - left)).masked_fill(is_never[..., None], 0)


def say_frame_mean(content: Content, seen: Bool[Tensor, "batch place time"]) -> Float[Tensor, "batch place time cell"]:
    """The mean over the brain voxels that are seen in the same frame: the global signal; 0 where none is."""
    weights = content.weights[:, :, None] * seen[..., None]
    mean = (content.values * weights).sum((1, 3), keepdim=True) / weights.sum((1, 3), keepdim=True).clamp(min=1)
    return mean.expand_as(content.values)


TRIVIAL = {"cell_mean": say_cell_mean, "neighbours": say_neighbours, "frame_mean": say_frame_mean}
"""What a model must beat, each from what is seen of the window alone."""


def _by_place(cells: Float[Tensor, "batch time i j k"], cell_voxels: int) -> Float[Tensor, "batch place time cell"]:
    side = DOWNSAMPLING // cell_voxels
    split = cells.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(2, (-1, side))
    # batch time px cx py cy pz cz to batch py px pz time cx cy cz
    return split.permute(0, 4, 2, 6, 1, 3, 5, 7).flatten(5).flatten(1, 3)

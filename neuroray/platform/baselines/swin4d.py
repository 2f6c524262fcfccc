"""A small Swin transformer of runs, after SwiFT (Kim et al. 2023): attention within shifted blocks of space-time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.network_training import NetworkRecipe, Side, fit_network, num_outputs
from neuroray.platform.baselines.predictors import Features, Predict, Sample, Task
from neuroray.platform.baselines.voxel_windows import RunWindows

_PATCH = 4  # voxels along each axis of space; every frame is its own in time, as in SwiFT
_RECIPE = NetworkRecipe(num_epochs=20, patience=6, batch_size=4, lr=1e-3, weight_decay=1e-2)
_BLOCK = (4, 4, 4, 4)  # tokens along x, y, z, time in which attention is computed


class BlockAttention(nn.Module):
    """Pre-norm attention within blocks of tokens, every other time shifted by half a block, then an MLP."""

    def __init__(self, width: int, num_heads: int, *, is_shifted: bool) -> None:
        super().__init__()
        self.num_heads, self.is_shifted = num_heads, is_shifted
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Float[Tensor, "batch x y z time channel"]) -> Float[Tensor, "batch x y z time channel"]:
        """Tokens of the same grid."""
        tokens = tokens + self._attend(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))

    def _attend(self, tokens: Tensor) -> Tensor:
        grid = tuple(tokens.shape[1:5])
        block = tuple(min(size, length) for size, length in zip(_BLOCK, grid, strict=True))
        # Along an axis that is one block long there is nothing to shift to.
        shift = tuple(
            size // 2 if self.is_shifted and length > size else 0 for size, length in zip(block, grid, strict=True)
        )
        padded = _pad(tokens, block)
        moved = padded.roll([-step for step in shift], dims=(1, 2, 3, 4))
        blocks, full = _split(moved, block), tuple(padded.shape[1:5])
        mask = may_see(grid, full, block, shift).to(tokens.device)
        mixed = self._mix(blocks, mask.repeat(len(tokens), 1, 1))
        back = _join(mixed, block, full).roll(shift, dims=(1, 2, 3, 4))
        return back[:, : grid[0], : grid[1], : grid[2], : grid[3]]

    def _mix(self, blocks: Float[Tensor, "block token channel"], mask: Bool[Tensor, "block token token"]) -> Tensor:
        heads = self.to_qkv(blocks).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None])
        return self.project(mixed.transpose(1, 2).flatten(2))


class Swin4D(nn.Module):
    """Patches of 4 x 4 x 4 voxels of every frame, two stages of shifted blocks, space halved between; mean, linear."""

    def __init__(self, grid_shape: tuple[int, int, int], num_frames: int, num_outputs: int, *, width: int = 24) -> None:
        super().__init__()
        self.patch = nn.Conv3d(1, width, _PATCH, stride=_PATCH)
        x, y, z = (math.ceil(length / _PATCH) for length in grid_shape)
        self.place = nn.Parameter(torch.zeros(1, x, y, z, 1, width))
        self.moment = nn.Parameter(torch.zeros(1, 1, 1, 1, num_frames, width))
        nn.init.trunc_normal_(self.place, std=0.02)
        nn.init.trunc_normal_(self.moment, std=0.02)
        self.first = _stage(width, 2)
        self.merge = nn.Sequential(nn.LayerNorm(8 * width), nn.Linear(8 * width, 2 * width, bias=False))
        self.second = _stage(2 * width, 4)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, num_outputs)

    def forward(self, voxels: Float[Tensor, "batch time x y z"]) -> Float[Tensor, "batch output"]:
        """Logits, or a standardised measure."""
        tokens = self.first(self._embed(voxels) + self.place + self.moment)
        tokens = self.second(self.merge(_gather_neighbours(tokens)))
        return self.head(self.norm(tokens.mean(dim=(1, 2, 3, 4))))

    def _embed(self, voxels: Tensor) -> Tensor:
        fill = [(-length) % _PATCH for length in voxels.shape[-3:]]
        # Beyond the grid goes on what lies at its rim: background.
        filled = functional.pad(voxels, (0, fill[2], 0, fill[1], 0, fill[0]), mode="replicate")
        patches = self.patch(filled.flatten(0, 1)[:, None]).unflatten(0, voxels.shape[:2])
        return patches.permute(0, 3, 4, 5, 1, 2)


def fit_swin4d(train: Sample, val: Sample, task: Task) -> Predict:
    """Trains it on random windows of the training runs; answers are averaged over windows that leave no frame out.

    Raises:
        BaselineError: runs on several grids, or no runs to read.
    """
    learned, watched = _runs_of(train.features), _runs_of(val.features)
    generator = np.random.default_rng(task.seed)
    with torch.random.fork_rng():
        torch.manual_seed(task.seed)
        module = Swin4D(learned.grid_shape, learned.num_frames, num_outputs(task))
        predict = fit_network(
            module,
            Side(values=train.values, rows=lambda chosen: learned.draw(chosen, generator)),
            Side(values=val.values, rows=watched.middle),
            task,
            _RECIPE,
        )

    def answer(features: Features) -> Float[np.ndarray, "row output"]:
        runs = _runs_of(features)
        owners, read = runs.cover()
        told = predict(read, len(owners))
        sums = np.zeros((len(runs.scan_ids), told.shape[1]))
        np.add.at(sums, owners, told)
        return sums / np.bincount(owners, minlength=len(sums))[:, None]

    return answer


def _runs_of(features: Features) -> RunWindows:
    if features.runs is None:
        raise BaselineError("a model of voxels needs runs to read, not connectivity alone")
    return features.runs


def may_see(
    grid: tuple[int, ...], full: tuple[int, ...], block: tuple[int, ...], shift: tuple[int, ...]
) -> Bool[Tensor, "block token token"]:
    """Which tokens of a block may see each other: neighbours before the shift wrapped them round, and no padding.

    Args:
        grid: Tokens along each axis.
        full: The same with padding.
        block: Of attention.
        shift: By which tokens were rolled back.
    """
    labels = torch.zeros((1, *full, 1))
    for axis, (length, size, step) in enumerate(zip(full, block, shift, strict=True)):
        part = torch.zeros(length)
        if step:
            part[length - size : length - step], part[length - step :] = 1, 2
        shape = [1] * 6
        shape[axis + 1] = length
        labels = labels * 3 + part.view(shape)
    inside = functional.pad(torch.ones(grid), [fill for axis in (3, 2, 1, 0) for fill in (0, full[axis] - grid[axis])])
    inside = inside.roll([-step for step in shift], dims=(0, 1, 2, 3))[None, ..., None]
    parts, real = _split(labels, block)[..., 0], _split(inside, block)[..., 0] > 0
    same = (parts[:, :, None] == parts[:, None]) & real[:, None]
    # A padded token sees itself, for a row without any would give no number; nobody reads what it says.
    return same | torch.eye(same.shape[-1], dtype=torch.bool)


def _stage(width: int, num_heads: int) -> nn.Sequential:
    return nn.Sequential(*(BlockAttention(width, num_heads, is_shifted=shifted) for shifted in (False, True)))


def _gather_neighbours(tokens: Tensor) -> Tensor:
    """The eight tokens of every two by two by two in space, one after another in the channels."""
    padded = _pad(tokens, (2, 2, 2, 1))
    corners = itertools.product((0, 1), repeat=3)
    return torch.cat([padded[:, i::2, j::2, k::2] for i, j, k in corners], dim=-1)


def _pad(tokens: Tensor, block: tuple[int, ...]) -> Tensor:
    fill = [(-length) % size for length, size in zip(tokens.shape[1:5], block, strict=True)]
    return functional.pad(tokens, [0, 0, *(part for axis in (3, 2, 1, 0) for part in (0, fill[axis]))])


def _split(tokens: Tensor, block: tuple[int, ...]) -> Tensor:
    """Blocks, each with its tokens in order."""
    for axis, size in zip((1, 3, 5, 7), block, strict=True):
        tokens = tokens.unflatten(axis, (-1, size))
    return tokens.permute(0, 1, 3, 5, 7, 2, 4, 6, 8, 9).flatten(5, 8).flatten(0, 4)


def _join(blocks: Tensor, block: tuple[int, ...], full: tuple[int, ...]) -> Tensor:
    """The inverse of `_split`."""
    counts = [length // size for length, size in zip(full, block, strict=True)]
    tokens = blocks.unflatten(1, block).unflatten(0, (-1, *counts)).permute(0, 1, 5, 2, 6, 3, 7, 4, 8, 9)
    for axis in (1, 2, 3, 4):
        tokens = tokens.flatten(axis, axis + 1)
    return tokens

"""Weights and inputs drawn by a rule that needs only names and shapes, so that the release's numbers can be met."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def draw_weights(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Weights by the released names, each a function of its name and shape alone."""
    return {name: torch.from_numpy(_draw(name, tuple(shape))) for name, shape in shapes.items()}


def draw_normal(seed: int, *shape: int) -> Tensor:
    """Standard normal float32 numbers of numpy's legacy generator."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    numel = int(np.prod(shape))
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(numel).reshape(shape)
    last = name.split(".")[-1]
    if "A_log" in name or "A_b_log" in name:
        values = np.log(np.tile(np.arange(1, 17), numel // 16)).reshape(shape) + 0.05 * noise
    elif last in ("D", "D_b") or ("norm" in name and name.endswith("weight")):
        values = 1 + 0.1 * noise
    elif name in ("cls_token", "pos_embed", "temporal_pos_embedding") or len(shape) == 1:
        values = 0.02 * noise
    else:
        values = noise / np.sqrt(numel / shape[0])
    return values.astype(np.float32)

"""Sums and maxima over each volume's rows in an order that never changes, so that two runs agree to the last bit."""

from __future__ import annotations

import torch
from torch import Tensor

TILE_ROWS = 256
"""On a GPU one thread adds a column of a tile row by row; more rows: longer waits, fewer: more to add up afterwards."""


def name_volumes(offsets: Tensor, num_rows: int) -> Tensor:
    """The volume of each row."""
    volumes = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(volumes, offsets.diff(), output_size=num_rows)


def sum_segments(values: Tensor, offsets: Tensor, volume: Tensor) -> Tensor:
    """Sum of `rows ...` over each volume's rows, `volumes ...`; 0 for a volume without rows.

    Args:
        values: One row per row of the ragged batch.
        offsets: Where each volume starts, and the end.
        volume: Of each row, from `name_volumes`.
    """
    if values.device.type == "cpu":
        # One row after another here; on a GPU the same call adds in whatever order its threads arrive.
        return values.new_zeros(offsets.numel() - 1, *values.shape[1:]).index_add_(0, volume, values)
    return reduce_by_tiles(values, offsets, "sum")


def max_segments(values: Tensor, offsets: Tensor) -> Tensor:
    """Maximum of `rows ...` over each volume's rows, `volumes ...`; -inf for none, NaN where one is."""
    return reduce_by_tiles(values, offsets, "max")


def reduce_by_tiles(values: Tensor, offsets: Tensor, operation: str) -> Tensor:
    """Reduces tiles of at most `TILE_ROWS` rows, each within one volume, then each volume's tiles.

    Args:
        values: `rows ...`, float32 or float64.
        offsets: Where each volume starts, and the end.
        operation: `"sum"` or `"max"`.
    """
    num_rows = values.shape[0]
    every = torch.arange(0, num_rows, TILE_ROWS, device=offsets.device, dtype=offsets.dtype)
    # A tile starts at every volume and at every multiple of TILE_ROWS; two starts at one place make an empty tile.
    starts = torch.cat([offsets, every]).sort().values
    tiles = _reduce(values, starts, operation)
    # The first of equal starts: a volume may take its predecessor's empty tiles, never its rows.
    return _reduce(tiles, torch.searchsorted(starts, offsets), operation)


def _reduce(values: Tensor, offsets: Tensor, operation: str) -> Tensor:
    initial = 0.0 if operation == "sum" else -torch.inf
    return torch.segment_reduce(values, operation, offsets=offsets, axis=0, unsafe=True, initial=initial)

"""Maps of a tight box's pictures, laid back on the grid of the volume: the way of `resampled_slices`, backwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from neuroray.platform.models.layers.resampled_slices import Box, ResampledStackConfig
from neuroray.platform.models.layers.slices import AXES

if TYPE_CHECKING:
    from jaxtyping import Float


def deal_out(
    maps: Float[np.ndarray, "slice row column"], box: Box, grid_shape: Sequence[int], config: ResampledStackConfig
) -> Float[np.ndarray, "x y z"]:
    """Each patch's value, dealt out evenly over the voxels that it was made from: the sum over the volume is kept.

    A picture stands for the stretch of the box's axis around its place, a patch for its part of rows and columns; a
    voxel that lies in two gets its share of either. Where pictures show stored slices as they are, a picture's values
    stay in its slice.

    Args:
        maps: One per picture, at any resolution (that of the patches), covering the whole picture.
        box: What was cut out, as `resample_slices` gives it.
        grid_shape: x, y, z of the volume.
        config: The one that made the pictures.

    Returns:
        Float64; 0 outside the box.
    """
    axis = AXES[config.axis]
    depth, height, width = (_length(box[each]) for each in (axis, *(other for other in range(3) if other != axis)))
    along = share_slices(depth, config)
    down, across = share_patches(height, maps.shape[1]), share_patches(width, maps.shape[2])
    dealt = np.einsum("orc,os,ri,cj->sij", maps.astype(np.float64), along, down, across, optimize=True)
    placed = np.zeros(tuple(grid_shape))
    placed[box] = np.moveaxis(dealt, 0, axis)
    return placed


def paint(
    maps: Float[np.ndarray, "slice row column"], box: Box, grid_shape: Sequence[int], config: ResampledStackConfig
) -> Float[np.ndarray, "x y z"]:
    """Each voxel the mean of the patches that were made from it: for scores, whose sum means nothing."""
    total = deal_out(maps, box, grid_shape, config)
    share = deal_out(np.ones_like(maps, dtype=np.float64), box, grid_shape, config)
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)


def share_slices(depth: int, config: ResampledStackConfig) -> Float[np.ndarray, "wanted stored"]:
    """The share of each picture that goes to each stored slice of the box; rows sum to 1.

    The spline that makes a picture has negative weights, and its transpose would ring; what is dealt out instead is
    the stretch of the axis that a picture stands for, as far as it lies in the box.
    """
    places = np.linspace(0, depth - 1, config.num_slices)
    if config.sampling == "spread" or depth == 1 or config.num_slices == 1:
        return np.eye(depth)[np.floor(places).astype(int)]
    half = (depth - 1) / (config.num_slices - 1) / 2
    return _overlap(places - half, places + half, depth)


def share_patches(length: int, num_patches: int) -> Float[np.ndarray, "patch voxel"]:
    """The share of each patch that goes to each voxel along an axis stretched to the picture; rows sum to 1."""
    edges = np.linspace(-0.5, length - 0.5, num_patches + 1)
    return _overlap(edges[:-1], edges[1:], length)


def _overlap(
    low: Float[np.ndarray, " piece"], high: Float[np.ndarray, " piece"], length: int
) -> Float[np.ndarray, "piece voxel"]:
    """How much of each stretch lies in each voxel, of what lies in any."""
    middle = np.arange(length)
    inside = np.minimum(high[:, None], middle + 0.5) - np.maximum(low[:, None], middle - 0.5)
    inside = inside.clip(min=0)
    return inside / inside.sum(axis=1, keepdims=True)


def _length(part: slice) -> int:
    return part.stop - part.start

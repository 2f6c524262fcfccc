"""What was looked at: slice attention as a density over millimetres, alone or times the attention inside each slice."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from neuroray.platform.evaluate.slice_model import SliceModel
from neuroray.platform.explain.maps import ExplainError, SliceProfile
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.slices import AXES, place_maps, stack_slices
from neuroray.storage.scan import Scan

_MM3_PER_CM3 = 1000.0


def spread_slices(
    values: Float[np.ndarray, " slice"],
    slice_index: Int[np.ndarray, " slice"],
    grid_shape: tuple[int, int, int],
    axis: str,
) -> Float[np.ndarray, "x y z"]:
    """One value per slice on all voxels of that slice; a slice that is listed twice gets the sum, all others 0."""
    along = np.zeros(grid_shape[AXES[axis]])
    np.add.at(along, slice_index, values)
    shape = [1, 1, 1]
    shape[AXES[axis]] = -1
    return np.broadcast_to(along.reshape(shape), grid_shape).astype(np.float32)


def map_attention(scan: Scan, profile: SliceProfile) -> Float[np.ndarray, "x y z"]:
    """Attention per millimetre: times the slice distance, and summed over slices, it is 1."""
    density = profile.weight / profile.spacing_mm
    return spread_slices(density, profile.slice_index, scan.grid_shape, profile.axis)


def map_occlusion(scan: Scan, profile: SliceProfile) -> Float[np.ndarray, "x y z"]:
    """How much of the target's probability goes when a slice is left out, on all voxels of that slice."""
    return spread_slices(profile.probability_change, profile.slice_index, scan.grid_shape, profile.axis)


def map_patch_attention(model: SliceModel, scan: Scan, profile: SliceProfile) -> Float[np.ndarray, "x y z"]:
    """Slice attention times the class token's attention to each patch in the last block, per cubic centimetre.

    Within a slice the patches' attention is brought to a sum of 1, so that the whole map integrates to 1, and each
    slice to its own weight. What lies outside the encoder's picture is 0.

    Raises:
        ExplainError: the backbone has no class token that attends to patches.
    """
    images, mask, index = stack_slices(model.volume(scan), model.slices, spacing_mm=scan.zooms_mm)
    encoder: Any = model.module.encoder
    try:
        patches = encoder.attention_maps(images[mask])
    except ModelError as error:
        raise ExplainError(
            "attention inside slices needs a vision transformer",
            given=error.fault,
            expected="a backbone with a class token",
            fix="use --method occlusion or gradient_x_input, which work with every backbone",
        ) from error
    placed = place_maps(patches, index[mask], scan.grid_shape, model.slices, spacing_mm=scan.zooms_mm).cpu().numpy()
    in_plane = tuple(axis for axis in range(3) if axis != AXES[profile.axis])
    sums = placed.sum(axis=in_plane, keepdims=True, dtype=np.float64)
    share = np.divide(placed, sums, out=np.zeros_like(placed, dtype=np.float64), where=sums > 0)
    weights = spread_slices(profile.weight, profile.slice_index, scan.grid_shape, profile.axis)
    return (share * weights / (np.prod(scan.zooms_mm) / _MM3_PER_CM3)).astype(np.float32)

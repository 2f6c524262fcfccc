"""What parts of the head a map of a number lies in: tissues, functional networks and regions of MNI152 space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neuroray.platform.data.tissues import TISSUES, label_tissues
from neuroray.platform.explain.maps import SignedMap
from neuroray.platform.explain.runs import Share, share_by_label, share_by_network, share_by_region

PART_KINDS = ("tissues", "networks", "regions")
# The template's tissues are known to 2 mm, a patch is 10 mm wide: finer grids would cost time and say no more.
_SPACING_MM = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseMap:
    """A map summed over blocks of voxels.

    Attributes:
        values: Signed sums.
        magnitudes: Sums of magnitudes.
        affine: Voxel indices to world in mm.
    """

    values: Float[np.ndarray, "x y z"]
    magnitudes: Float[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]


def share_parts(found: SignedMap, affine: Float[np.ndarray, "4 4"]) -> Mapping[str, list[Share]]:
    """Shares of tissues, networks and regions, each largest density first.

    Only where the affine leads to MNI152 space; that is not checked, for no header says it reliably. Tissues cover the
    whole grid, so their totals add up to the map's sum.
    """
    coarse = coarsen(found, affine)
    x, y, z = coarse.values.shape
    return {
        "tissues": share_by_label(coarse, label_tissues((x, y, z), coarse.affine), TISSUES),
        "networks": share_by_network(coarse, coarse.affine),
        "regions": share_by_region(coarse, coarse.affine),
    }


def coarsen(found: SignedMap, affine: Float[np.ndarray, "4 4"]) -> CoarseMap:
    """Sums over blocks of about 2 mm; sums over the whole are kept, and grids of 2 mm and more stay as they are."""
    zooms_mm = np.linalg.norm(affine[:3, :3], axis=0)
    factors = [max(1, round(_SPACING_MM / zoom)) for zoom in zooms_mm]
    scale = np.diag([*factors, 1.0])
    scale[:3, 3] = [(factor - 1) / 2 for factor in factors]
    return CoarseMap(
        values=_sum_blocks(found.values, factors),
        magnitudes=_sum_blocks(found.magnitudes, factors),
        affine=affine @ scale,
    )


def _sum_blocks(values: Float[np.ndarray, "x y z"], factors: list[int]) -> Float[np.ndarray, "x y z"]:
    for axis, factor in enumerate(factors):
        edges = np.arange(0, values.shape[axis], factor)
        values = np.add.reduceat(values, edges, axis=axis, dtype=np.float64)
    return values

"""Soft volumes of ventricles, cortex, grey and white matter from a brain's own values, so that small changes count.

No label maps and no segmentation network are needed: three centres of the brain's values (k-means, each volume's own,
so that contrast and blur move no border) part every voxel into shares of fluid, grey and white matter, linearly between
neighbouring centres. Where scans are registered to MNI152, places of the template say which fluid is ventricle and
which grey matter is cortex.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64
from scipy import ndimage

from neuroray.storage.simulate.regions import REGION_SPACING_MM, load_regions
from neuroray.storage.simulate.template import load_template

Affine = tuple[float, ...]

VENTRICLES, FLUID = "ventricles", "fluid"
_TISSUES = ("fluid", "grey", "white")
# From the template's ventricles: all counts up to here, and nothing from there on. Ventricles of the old are wider than
# the template's; fluid of sulci lies further out.
_FULL_MM, _NONE_MM = 8.0, 12.0
_VENTRICLE_FROM = 0.3
_NUM_BINS = 400
# In units of the values' range from -1 to 1: nearer centres part nothing.
_LEAST_CONTRAST = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionMaps:
    """Where regions are on a grid.

    Attributes:
        places: Of each region: the tissue that counts, and its share of each voxel; None: everywhere in the brain.
        main: The region that widens with age.
        method: In a sentence.
    """

    places: Mapping[str, tuple[str, Float32[np.ndarray, "x y z"] | None]] = field(hash=False)
    main: str
    method: str

    def measure(
        self, volume: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"], *, voxel_ml: float
    ) -> dict[str, float]:
        """Volumes in ml; NaN for all where the values of the brain fall into less than three classes.

        Args:
            volume: In [-1, 1].
            brain: What is parted.
            voxel_ml: Of a voxel, in the person's own space.
        """
        shares = share_tissues(volume, brain)
        if shares is None:
            return dict.fromkeys(self.places, float("nan"))
        return {
            name: voxel_ml * float((shares[tissue] if place is None else shares[tissue] * place).sum(dtype=np.float64))
            for name, (tissue, place) in self.places.items()
        }


def map_regions(shape: tuple[int, int, int], affine: Affine, *, in_template: bool) -> RegionMaps:
    """Regions on a grid.

    Args:
        shape: Of the grid.
        affine: Voxel indices to world in mm, 16 numbers row by row.
        in_template: Whether that world is MNI152. If not, fluid, grey and white matter are told of the whole brain.
    """
    plain = {name: (name, None) for name in _TISSUES}
    parted = "soft shares between three k-means centres of each volume's own values in the brain"
    if not in_template:
        return RegionMaps(places=plain, main=FLUID, method=f"{parted}; not registered, so places are not told apart")
    ventricles, cortex = _place_template(shape, affine)
    return RegionMaps(
        places={VENTRICLES: ("fluid", ventricles), "cortex": ("grey", cortex), **plain},
        main=VENTRICLES,
        method=f"{parted}; ventricles: fluid within {_FULL_MM:g} to {_NONE_MM:g} mm of the ventricles of MNI152; "
        "cortex: grey matter where that of MNI152 is cortex",
    )


def share_tissues(
    volume: Float[np.ndarray, "x y z"], brain: Bool[np.ndarray, "x y z"]
) -> dict[str, Float32[np.ndarray, "x y z"]] | None:
    """Shares of fluid, grey and white matter, 0 outside the brain; None where the values fall into less classes."""
    fluid, grey, white = find_centres(volume[brain])
    if grey - fluid < _LEAST_CONTRAST or white - grey < _LEAST_CONTRAST:
        return None
    of_fluid = np.clip((grey - volume) / (grey - fluid), 0, 1) * brain
    of_white = np.clip((volume - grey) / (white - grey), 0, 1) * brain
    found = {"fluid": of_fluid, "grey": brain - of_fluid - of_white, "white": of_white}
    return {name: share.astype(np.float32) for name, share in found.items()}


def find_centres(values: Float[np.ndarray, " voxel"]) -> Float64[np.ndarray, " 3"]:
    """The three k-means centres of values in [-1, 1], rising: the best ones, not those that a start led to.

    In one dimension classes are parted by thresholds, so all pairs of them are tried, on a histogram (Otsu 1979 for
    several classes, which is the same criterion).
    """
    counts, edges = np.histogram(values, bins=_NUM_BINS, range=(-1, 1))
    middles = (edges[:-1] + edges[1:]) / 2
    # Up to each edge, from none to all.
    size, total = (np.concatenate([[0.0], np.cumsum(column)]) for column in (counts, counts * middles))
    first, second = np.meshgrid(np.arange(_NUM_BINS + 1), np.arange(_NUM_BINS + 1), indexing="ij")
    ends = (np.zeros_like(first), first, second, np.full_like(first, _NUM_BINS))
    sizes, sums = (
        np.stack([column[after] - column[before] for before, after in pairwise(ends)]) for column in (size, total)
    )
    means = sums / np.maximum(sizes, 1)
    # Least spread within classes is the most between them.
    between = np.where((sizes > 0).all(axis=0) & (first < second), (sizes * means**2).sum(axis=0), -np.inf)
    best = np.unravel_index(between.argmax(), between.shape)
    return means[(slice(None), *best)] if np.isfinite(between[best]) else np.zeros(3)


@functools.lru_cache(maxsize=4)
def _place_template(
    shape: tuple[int, int, int], affine: Affine
) -> tuple[Float32[np.ndarray, "x y z"], Float32[np.ndarray, "x y z"]]:
    """Where fluid is ventricle, and which share of grey matter is cortex."""
    template, regions = load_template(REGION_SPACING_MM), load_regions()
    distance_mm = REGION_SPACING_MM * np.asarray(ndimage.distance_transform_edt(regions.ventricles < _VENTRICLE_FROM))
    near = np.clip((_NONE_MM - distance_mm) / (_NONE_MM - _FULL_MM), 0, 1)
    # Of what is grey; beyond the template's own grey matter as in the nearest of it.
    is_grey = template.grey > 0.05
    share = np.where(is_grey, regions.cortex / np.maximum(template.grey, 1e-3), 0)
    nearest: Any = ndimage.distance_transform_edt(~is_grey, return_distances=False, return_indices=True)
    cortex = np.clip(share[tuple(nearest)], 0, 1)
    to_template = np.linalg.inv(template.affine) @ np.array(affine).reshape(4, 4)
    # One offset an axis is documented; the stub knows a number only.
    start: Any = to_template[:3, 3]
    placed = [
        ndimage.affine_transform(map_.astype(np.float32), to_template[:3, :3], start, shape, order=1)
        for map_ in (near, cortex)
    ]
    return placed[0], placed[1]

"""Regions of interest in MNI152 space, from the tables that come with nilearn: nothing is downloaded."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

AtlasName = Literal["seitzman", "power", "dosenbach"]
ATLASES: tuple[AtlasName, ...] = get_args(AtlasName)

_POWER_RADIUS_MM = 5.0  # Power et al. 2011: spheres of 10 mm across
_UNASSIGNED = "unassigned"
_SOURCES = {
    "seitzman": "Seitzman et al. 2020, 300 regions (doi 10.1016/j.neuroimage.2019.116290)",
    "power": "Power et al. 2011, 264 regions (doi 10.1016/j.neuron.2011.09.006)",
    "dosenbach": "Dosenbach et al. 2010, 160 regions (doi 10.1126/science.1194144)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiAtlas:
    """Spheres in the brain.

    Attributes:
        name: What it is called here.
        centres_mm: MNI152 world coordinates (RAS+).
        radius_mm: Of each sphere.
        networks: The functional network of each; empty where the table has none.
        source: Where it is from.
    """

    name: AtlasName
    centres_mm: Float[np.ndarray, "region 3"]
    radius_mm: Float[np.ndarray, " region"]
    networks: tuple[str, ...]
    source: str


@functools.lru_cache(maxsize=len(ATLASES))
def load_roi_atlas(name: AtlasName) -> RoiAtlas:
    """The spheres of a published set.

    Raises:
        KeyError: no such atlas.
    """
    from nilearn import datasets

    fetch = {
        "seitzman": datasets.fetch_coords_seitzman_2018,
        "power": datasets.fetch_coords_power_2011,
        "dosenbach": datasets.fetch_coords_dosenbach_2010,
    }[name]
    found = fetch()
    centres_mm = found["rois"][["x", "y", "z"]].to_numpy(dtype=np.float64)
    radius_mm = np.asarray(found.get("radius", _POWER_RADIUS_MM), dtype=np.float64)
    return RoiAtlas(
        name=name,
        centres_mm=centres_mm,
        radius_mm=np.broadcast_to(radius_mm, len(centres_mm)).copy(),
        networks=tuple(str(network) for network in found["networks"]) if "networks" in found else (),
        source=_SOURCES[name],
    )


def label_spheres(
    atlas: RoiAtlas, shape: tuple[int, int, int], affine: Float[np.ndarray, "4 4"]
) -> Int[np.ndarray, "x y z"]:
    """Which sphere each voxel lies in, counted from 1; 0 in none. Where spheres meet, the nearer centre has the voxel.

    A sphere that holds no voxel's middle gets the voxel that its centre lies in, so that coarse grids lose few; one
    whose centre lies beyond the grid, or in the only voxel of another, stays empty.
    """
    labels = np.zeros(shape, dtype=np.int16)
    nearest = np.full(shape, np.inf)
    to_index = np.linalg.inv(affine)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    for number, (centre, radius) in enumerate(zip(atlas.centres_mm, atlas.radius_mm, strict=True), start=1):
        middle = (to_index @ [*centre, 1.0])[:3]
        box = _box(middle, radius / spacing_mm, shape)
        index = np.stack(np.meshgrid(*(np.arange(part.start, part.stop) for part in box), indexing="ij"), axis=-1)
        distance_mm = np.linalg.norm(index @ affine[:3, :3].T + affine[:3, 3] - centre, axis=-1)
        taken = (distance_mm <= radius) & (distance_mm < nearest[box])
        labels[box][taken], nearest[box][taken] = number, distance_mm[taken]
    missing = np.setdiff1d(np.arange(1, len(atlas.centres_mm) + 1), labels)
    for number in missing:
        place = tuple(np.rint((to_index @ [*atlas.centres_mm[number - 1], 1.0])[:3]).astype(int))
        if all(0 <= at < length for at, length in zip(place, shape, strict=True)):
            owner = labels[place]
            if owner == 0 or np.count_nonzero(labels == owner) > 1:
                labels[place] = number
    return labels


def label_networks(
    shape: tuple[int, int, int], affine: Float[np.ndarray, "4 4"], *, reach_mm: float = 10.0
) -> tuple[Int[np.ndarray, "x y z"], tuple[str, ...]]:
    """The functional network of each voxel: that of the nearest Seitzman region within `reach_mm`; 0 where none is.

    Returns:
        The labels, counted from 1, and the networks' names in that order. Regions that the table leaves unassigned
        label nothing.
    """
    atlas = load_roi_atlas("seitzman")
    known = [index for index, network in enumerate(atlas.networks) if network != _UNASSIGNED]
    names = tuple(sorted({atlas.networks[index] for index in known}))
    number_of = np.array([0, *(names.index(atlas.networks[index]) + 1 for index in known)], dtype=np.int16)
    return number_of[_label_nearest(atlas.centres_mm[known], shape, affine, reach_mm)], names


def label_regions(
    shape: tuple[int, int, int], affine: Float[np.ndarray, "4 4"], *, reach_mm: float = 10.0
) -> tuple[Int[np.ndarray, "x y z"], tuple[str, ...]]:
    """The nearest Seitzman region of each voxel within `reach_mm`, counted from 1; 0 where none is.

    Returns:
        The labels, and names that say network and centre in MNI152 mm.
    """
    atlas = load_roi_atlas("seitzman")
    names = tuple(
        f"{network} ({x:.0f}, {y:.0f}, {z:.0f})"
        for network, (x, y, z) in zip(atlas.networks, atlas.centres_mm, strict=True)
    )
    return _label_nearest(atlas.centres_mm, shape, affine, reach_mm), names


def _label_nearest(
    centres_mm: Float[np.ndarray, "region 3"],
    shape: tuple[int, int, int],
    affine: Float[np.ndarray, "4 4"],
    reach_mm: float,
) -> Int[np.ndarray, "x y z"]:
    from scipy.spatial import KDTree

    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    distance_mm, nearest = KDTree(centres_mm).query(index @ affine[:3, :3].T + affine[:3, 3])
    return np.where(distance_mm <= reach_mm, nearest + 1, 0).reshape(shape).astype(np.int16)


def _box(middle: np.ndarray, reach: np.ndarray, shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    # A turned grid's box around a sphere is wider than the sphere by at most the root of three.
    low = np.floor(middle - 1.75 * reach).astype(int)
    high = np.ceil(middle + 1.75 * reach).astype(int) + 1
    i, j, k = (
        slice(min(max(0, first), length), max(0, min(length, last)))
        for first, last, length in zip(low, high, shape, strict=True)
    )
    return i, j, k

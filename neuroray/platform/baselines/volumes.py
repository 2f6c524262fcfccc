"""Volumes on one coarse grid, small enough for a linear model or a small network, whatever their own grids."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage

from neuroray.config import Config
from neuroray.platform.baselines.errors import BaselineError
from neuroray.storage.store import ScanStore

# Above this, a volume between 0 and 1 is no map of tissue.
_MAP_TOP = 1.05
# Of the brightest hundredth: what is darker is air, for finding the middle of a head.
_AIR_FRACTION = 0.2
_FWHM_TO_SIGMA = 1 / math.sqrt(8 * math.log(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConfig(Config):
    """How volumes are brought to one coarse grid.

    Attributes:
        spacing_mm: Of the coarse grid, along all axes.
        field_mm: Its extent along x, y, z.
        centre: `grid` puts its middle on the middle of the scan's own grid (scans in a template's space), `mass` on the
            middle of what is brighter than air (native grids, in which heads lie anywhere). `auto`: `grid` where all
            scans have one shape and affine, else `mass`.
        scale: `none` keeps values as they are, `mean` divides by the mean of what is brighter than air. `auto`: `none`
            where all values of all scans lie within 0 and 1 (maps of tissue, whose size is the signal), else `mean`.
    """

    spacing_mm: float = 6.0
    field_mm: tuple[float, float, float] = (168.0, 204.0, 168.0)
    centre: Literal["auto", "grid", "mass"] = "auto"
    scale: Literal["auto", "none", "mean"] = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.spacing_mm <= 32 or min(self.field_mm) < 4 * self.spacing_mm:
            raise BaselineError(
                "a coarse grid has at least four voxels along each axis, of 1 to 32 mm", given=self.to_json()
            )

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = (round(extent / self.spacing_mm) for extent in self.field_mm)
        return x, y, z


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeTable:
    """Coarse volumes of some scans.

    Attributes:
        volumes: By scan.
        method: How they were made, in a sentence.
    """

    volumes: Mapping[str, Float32[np.ndarray, "x y z"]]
    method: str

    def stack(self, scan_ids: Sequence[str]) -> Float32[np.ndarray, "row x y z"]:
        """Those of some scans."""
        return np.stack([self.volumes[scan_id] for scan_id in scan_ids])


def read_volumes(store: ScanStore, scan_ids: Iterable[str], config: VolumeConfig) -> VolumeTable:
    """Reads each scan once and brings it to the coarse grid; one whole scan is in memory at a time.

    Raises:
        StoreError: a scan cannot be read.
        BaselineError: a scan that is no volume, or without anything in it.
    """
    scan_ids = scan_ids if isinstance(scan_ids, Sequence) else tuple(scan_ids)
    records = {record.scan_id: record for record in store.records()}
    grids = {(records[scan_id].shape, records[scan_id].affine) for scan_id in scan_ids}
    centre = config.centre if config.centre != "auto" else "grid" if len(grids) == 1 else "mass"
    found, bright, are_maps = {}, {}, True
    for scan_id in scan_ids:
        scan = store.read(scan_id)
        if scan.voxels.ndim != 3:
            raise BaselineError(f"scan {scan_id} is no volume", given=f"{scan.voxels.ndim} axes", expected="x y z")
        values = np.nan_to_num(np.asarray(scan.voxels, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        inside = values > _AIR_FRACTION * np.quantile(values[values > 0], 0.99) if (values > 0).any() else None
        if inside is None:
            raise BaselineError(f"scan {scan_id} is empty", fix="look at it: neuroray qc")
        are_maps &= bool(values.min() >= 0 and values.max() <= _MAP_TOP)
        middle = ndimage.center_of_mass(inside) if centre == "mass" else (np.array(inside.shape) - 1) / 2
        found[scan_id] = coarsen(values, scan.affine, config, middle=np.array(middle))
        bright[scan_id] = float(values[inside].mean())
    scale = config.scale if config.scale != "auto" else "none" if are_maps else "mean"
    if scale == "mean":
        found = {scan_id: volume / np.float32(bright[scan_id]) for scan_id, volume in found.items()}
    return VolumeTable(volumes=found, method=_describe(config, centre, scale))


def coarsen(
    values: Float32[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    config: VolumeConfig,
    *,
    middle: Float[np.ndarray, " 3"],
) -> Float32[np.ndarray, "x y z"]:
    """Smooths to the coarse grid's voxels and samples there, linearly; 0 beyond the scan.

    Args:
        values: Of a canonical (RAS+) grid.
        affine: Voxel to world in mm.
        config: The coarse grid: it lies along the world's axes.
        middle: The place (i, j, k) in the scan that its middle falls on.
    """
    zooms_mm = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    # A Gaussian as wide as a coarse voxel, less what the fine voxel has smoothed already.
    widths_mm = np.sqrt(np.maximum(config.spacing_mm**2 - zooms_mm**2, 0))
    smooth = ndimage.gaussian_filter(values, widths_mm * _FWHM_TO_SIGMA / zooms_mm)
    to_voxel = np.linalg.inv(affine)
    turn = to_voxel[:3, :3] * config.spacing_mm
    offset = middle - turn @ ((np.array(config.grid_shape) - 1) / 2)
    # One offset an axis is documented; the stub knows a number only.
    start: Any = offset
    return ndimage.affine_transform(smooth, turn, start, config.grid_shape, order=1, output=np.float32)


def _describe(config: VolumeConfig, centre: str, scale: str) -> str:
    x, y, z = config.grid_shape
    where = (
        "around the middle of the scans' one grid"
        if centre == "grid"
        else "around the middle of what is brighter than air"
    )
    kept = "values as stored" if scale == "none" else "divided by the mean of what is brighter than air"
    return f"{x} x {y} x {z} voxels of {config.spacing_mm:g} mm {where}, along the world's axes, smoothed; {kept}"

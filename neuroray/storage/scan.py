"""Scan: the voxels of one recording with their place in the world, and the header it came with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from neuroray.errors import NeurorayError


class ScanError(NeurorayError, ValueError):
    """A file or array that cannot be taken as a scan: names the file, the fault and the likely fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How the voxels were kept in the file: `value = stored * slope + intercept`, stored as `dtype`."""

    dtype: str
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_identity(self) -> bool:
        """True when stored numbers and values are the same."""
        return self.slope == 1.0 and self.intercept == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGrid:
    """The grid of the file that a scan was read from, so that a result can be laid back on it.

    Attributes:
        format: The container, which says how `header` is to be read.
        header: The header's own bytes, extensions included.
        affine: Voxel to world (mm) of the file's own axes, 4 x 4.
        axis_order: For each canonical axis x, y, z: the file's axis it came from.
        axis_flip: For each canonical axis: whether the file ran the other way.
        had_time_axis: Whether the file was 4D (a single frame is read as 3D, and written back as 4D).
    """

    format: Literal["nifti1", "nifti2", "analyze", "mgh"]
    header: bytes
    affine: np.ndarray
    axis_order: tuple[int, int, int]
    axis_flip: tuple[bool, bool, bool]
    had_time_axis: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """One recording in canonical order: axes run to the Right, Anterior and Superior (RAS+).

    Attributes:
        voxels: Values, `x y z` or `time x y z`. The file's own dtype where the file needs no scaling, else float32
            (float64 where float32 could not hold the stored numbers exactly).
        affine: Voxel indices (i, j, k of x, y, z) to world in mm, 4 x 4 float64.
        repetition_time_s: Time between frames; None for 3D, or where the file does not say.
        encoding: How the file stored the numbers; None: as `voxels` are.
        source: The grid and header of the file; None for a scan made in memory.
        flags: Short sentences on what a person should know of it ("no orientation in the header").
    """

    voxels: np.ndarray
    affine: np.ndarray
    repetition_time_s: float | None = None
    encoding: Encoding | None = None
    source: SourceGrid | None = None
    flags: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.voxels.ndim not in (3, 4):
            raise ScanError("a scan has three axes, or four with time first", given=f"shape {self.voxels.shape}")
        if self.affine.shape != (4, 4):
            raise ScanError("an affine is 4 x 4", given=f"shape {self.affine.shape}")

    @property
    def is_timeseries(self) -> bool:
        """True for `time x y z`."""
        return self.voxels.ndim == 4

    @property
    def num_frames(self) -> int:
        """Frames along time; 1 for 3D."""
        return self.voxels.shape[0] if self.is_timeseries else 1

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self.voxels.shape[-3:]
        return x, y, z

    @property
    def zooms_mm(self) -> tuple[float, float, float]:
        """Voxel size along x, y, z in mm: the lengths of the affine's columns."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

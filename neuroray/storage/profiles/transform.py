"""The way from a person's own space to a template's, masks carried along it, and maps carried back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Num
from scipy import ndimage

from neuroray.storage.scan import Scan, ScanError, SourceGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeGrid:
    """The grid that a scan had before it was resampled.

    Attributes:
        shape: Voxels along x, y, z.
        affine: Voxel indices to world in mm, RAS+, 4 x 4.
        source: The file's own grid and header; None for a scan made in memory.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    source: SourceGrid | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateTransform:
    """How a resampled scan lies in its template.

    Attributes:
        template: The template's name.
        affine: World of the native scan to world of the template, both in mm, RAS+, 4 x 4.
        native: The grid that the scan had.
    """

    template: str
    affine: np.ndarray
    native: NativeGrid


def carry_back(
    values: Num[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"], transform: TemplateTransform
) -> Float[np.ndarray, "x y z"]:
    """A map over the template's grid, on the native grid: linear between voxels, 0 outside the map.

    Args:
        values: The map.
        affine: Its voxel indices to world (template) in mm.
        transform: As stored with the scan.

    Raises:
        ScanError: the map is not one volume.
    """
    if values.ndim != 3:
        raise ScanError("a map has three axes", given=f"shape {values.shape}", expected="x y z")
    # Native voxel -> native world -> template world -> voxel of the map.
    to_map = np.linalg.inv(affine) @ transform.affine @ transform.native.affine
    return ndimage.affine_transform(
        values.astype(np.float32), to_map, output_shape=transform.native.shape, order=1, mode="constant", cval=0.0
    )


def carry_mask(
    mask: Bool[np.ndarray, "x y z"],
    native_affine: Float[np.ndarray, "4 4"],
    affine: Float[np.ndarray, "4 4"],
    shape: tuple[int, int, int],
    transform: TemplateTransform | None,
) -> Bool[np.ndarray, "u v w"]:
    """A mask in the person's own space, on another grid: that of the nearest voxel, nothing outside the mask's grid.

    Args:
        mask: Along x y z.
        native_affine: Its voxel indices to the person's world in mm.
        affine: Voxel indices of the other grid to world in mm: the template's, or without a transform the person's.
        shape: Of the other grid.
        transform: As stored with the scan; None for one that lies where it was scanned.
    """
    to_native = np.eye(4) if transform is None else np.linalg.inv(transform.affine)
    # Voxel of the grid -> its world -> native world -> voxel of the mask.
    to_mask = np.linalg.inv(native_affine) @ to_native @ affine
    # "constant" would end at the middle of the outermost voxels.
    return (
        ndimage.affine_transform(mask.astype(np.uint8), to_mask, output_shape=shape, order=0, mode="grid-constant") > 0
    )


def lay_back(
    values: Num[np.ndarray, "x y z"],
    affine: Float[np.ndarray, "4 4"],
    transform: TemplateTransform,
    *,
    as_amounts: bool = False,
) -> Scan:
    """`carry_back`, as a scan on the native grid that `write_map` lays over the file the person's scan came from.

    Args:
        values: The map.
        affine: Its voxel indices to world (template) in mm.
        transform: As stored with the scan.
        as_amounts: Values are amounts in a voxel, whose sum means something: each is multiplied by how many voxels of
            the map a native one holds, so that the sum stays, but for what interpolation and the grid's edge take.
    """
    native = transform.native
    carried = carry_back(values, affine, transform)
    if as_amounts:
        carried = carried * np.float32(abs(np.linalg.det(np.linalg.inv(affine) @ transform.affine @ native.affine)))
    return Scan(voxels=carried, affine=native.affine, source=native.source)

"""From a file's own voxel axes to RAS+ and back: permutations and flips only, never an interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """How canonical axes x, y, z come from the file's axes i, j, k.

    Attributes:
        axis_order: For each canonical axis: the file's axis it came from.
        axis_flip: For each canonical axis: whether the file ran the other way.
    """

    axis_order: tuple[int, int, int]
    axis_flip: tuple[bool, bool, bool]

    @classmethod
    def from_affine(cls, affine: Float[np.ndarray, "4 4"]) -> Self:
        """The permutation and flips that bring an oblique grid closest to RAS+; its obliqueness stays in the affine.

        Args:
            affine: Voxel to world (RAS+ mm) of the file's own axes; must not be singular.
        """
        rows = nib.orientations.io_orientation(affine)
        file_axis_of = {int(canonical): axis for axis, (canonical, _) in enumerate(rows)}
        x, y, z = (file_axis_of[canonical] for canonical in range(3))
        return cls(axis_order=(x, y, z), axis_flip=(bool(rows[x, 1] < 0), bool(rows[y, 1] < 0), bool(rows[z, 1] < 0)))

    def to_canonical(self, voxels: Shaped[np.ndarray, "*time i j k"]) -> Shaped[np.ndarray, "*time x y z"]:
        """A view of the same memory in RAS+ order; leading axes stay where they are."""
        return self._flipped(_permuted(voxels, self.axis_order))

    def to_file(self, voxels: Shaped[np.ndarray, "*time x y z"]) -> Shaped[np.ndarray, "*time i j k"]:
        """The inverse of `to_canonical`, a view too."""
        i, j, k = (self.axis_order.index(axis) for axis in range(3))
        return _permuted(self._flipped(voxels), (i, j, k))

    def canonical_shape(self, file_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Voxels along x, y, z of a grid that has `file_shape` along i, j, k."""
        x, y, z = (file_shape[axis] for axis in self.axis_order)
        return x, y, z

    def file_shape(self, canonical_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Voxels along i, j, k of a grid that has `canonical_shape` along x, y, z."""
        i, j, k = (canonical_shape[self.axis_order.index(axis)] for axis in range(3))
        return i, j, k

    def canonical_affine(
        self, affine: Float[np.ndarray, "4 4"], file_shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "4 4"]:
        """Canonical voxel to world: every voxel keeps its place in the world."""
        to_file_index = np.zeros((4, 4))
        to_file_index[3, 3] = 1.0
        for canonical, (axis, flipped) in enumerate(zip(self.axis_order, self.axis_flip, strict=True)):
            to_file_index[axis, canonical] = -1.0 if flipped else 1.0
            to_file_index[axis, 3] = file_shape[axis] - 1 if flipped else 0.0
        return affine @ to_file_index

    def _flipped(self, voxels: np.ndarray) -> np.ndarray:
        return voxels[(..., *(slice(None, None, -1 if flipped else 1) for flipped in self.axis_flip))]


def _permuted(voxels: np.ndarray, order: tuple[int, int, int]) -> np.ndarray:
    num_leading = voxels.ndim - 3
    return voxels.transpose(*range(num_leading), *(num_leading + axis for axis in order))

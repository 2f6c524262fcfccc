"""How a head moved during a run: rigid realignment by linearised least squares, displacement from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroray.platform.quality.runs import Blocks, clean

RADIUS_MM = 50.0
"""Of the sphere on which a rotation becomes a length (Power et al. 2012)."""
# A rigid motion of a whole head is found on coarse and smooth voxels as well, and from farther away.
_COARSEST_MM = 4.0
_FWHM_MM = 6.0
_FWHM_PER_SIGMA = 2.3548
# Around the mask: the edge of the head says most.
_MARGIN_MM = 8.0
_MOST_POINTS = 20_000
_MOST_STEPS = 40
_SMALL_ENOUGH_MM = 1e-3
# Of the places that see the frame at all; with fewer, or with less likeness, nothing was found.
_FEWEST_SEEN, _LEAST_LIKENESS = 0.3, 0.5
_GRADIENT_STEP = 0.25
_ROUNDING = 1e-6


def estimate_motion(
    blocks: Blocks,
    reference: Float[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    mask: Bool[np.ndarray, "x y z"],
) -> Float[np.ndarray, "frame 6"]:
    """Where the head was in each frame against the reference: shifts of the mask's centre in mm, turns in radians.

    Along and about the axes of the grid, x, y, z (turns in this order about fixed axes). As SPM's realignment and
    AFNI's 3dvolreg (Friston et al. 1995; Cox and Jesmanowicz 1999): smoothed frames are matched to the smoothed
    reference, up to a factor, by least squares that are linearised again until nothing moves; here with the gradients
    of the reference (Baker and Matthews 2004), which are taken once. Each frame begins where the one before was.

    Args:
        blocks: The frames.
        reference: Their mean, or any frame.
        spacing_mm: Along x, y, z.
        mask: The head or the brain; not empty.

    Returns:
        NaN in the rows of frames that do not resemble the reference, as empty ones.
    """
    target = _prepare_target(reference, spacing_mm, mask)
    rows, place = [], _AT_REST
    for block in blocks():
        for frame in clean(block)[0]:
            coefficients = ndimage.spline_filter(_smooth(frame, spacing_mm), order=3)
            found = _align(target, coefficients, place) or _align(target, coefficients, _AT_REST)
            rows.append(np.full(6, np.nan) if found is None else found.to_row())
            place = found or _AT_REST
    return np.array(rows)


def framewise_displacement(motion: Float[np.ndarray, "frame 6"]) -> Float[np.ndarray, " step"]:
    """Sum of the six parameters' changes, rotations as arcs on a sphere of 50 mm, in mm (Power et al. 2012).

    NaN for the steps into and out of a frame that was not found.
    """
    steps = np.abs(np.diff(motion, axis=0))
    return steps[:, :3].sum(axis=1) + RADIUS_MM * steps[:, 3:].sum(axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The reference at chosen places.

    Attributes:
        centre_mm: Of the mask, from the middle of the first voxel.
        points_mm: From the centre.
        design: What a shift along and a turn about each axis (times 50 mm) changes there, and the value itself.
        spacing_mm: Of the coarse grid, whose first voxel lies at `origin_mm`.
    """

    centre_mm: Float[np.ndarray, " 3"]
    points_mm: Float[np.ndarray, "point 3"]
    design: Float[np.ndarray, "point 7"]
    spacing_mm: Float[np.ndarray, " 3"]
    origin_mm: Float[np.ndarray, " 3"]

    def to_index(self, points_mm: Float[np.ndarray, "point 3"]) -> Float[np.ndarray, "3 point"]:
        """Places from the centre as indices of the coarse grid."""
        return ((points_mm + self.centre_mm - self.origin_mm) / self.spacing_mm).T


@dataclass(frozen=True, slots=True)
class _Place:
    """A rigid motion about the centre: turned, then shifted."""

    turn: Rotation
    shift_mm: Float[np.ndarray, " 3"]

    def to_row(self) -> Float[np.ndarray, " 6"]:
        return np.concatenate([self.shift_mm, self.turn.as_euler("xyz")])


_AT_REST = _Place(Rotation.identity(), np.zeros(3))


def _prepare_target(
    reference: Float[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float], mask: Bool[np.ndarray, "x y z"]
) -> _Target:
    factors = np.array(_factors(spacing_mm))
    sizes = np.array(spacing_mm)
    centre_mm = np.array([np.mean(indices) for indices in np.nonzero(mask)]) * sizes
    target = _Target(
        centre_mm=centre_mm,
        points_mm=_choose_points(mask, sizes) - centre_mm,
        design=np.empty((0, 7)),
        spacing_mm=factors * sizes,
        origin_mm=(factors - 1) / 2 * sizes,
    )
    coefficients = ndimage.spline_filter(_smooth(clean(reference)[0], spacing_mm), order=3)
    steps = _GRADIENT_STEP * np.diag(target.spacing_mm)
    ahead, behind = (
        [_look(coefficients, target, target.points_mm + sign * step) for step in steps] for sign in (1, -1)
    )
    gradient = (np.stack(ahead, axis=1) - np.stack(behind, axis=1)) / (2 * _GRADIENT_STEP * target.spacing_mm)
    turning = np.cross(target.points_mm, gradient) / RADIUS_MM
    values = _look(coefficients, target, target.points_mm)
    return replace(target, design=np.column_stack([gradient, turning, values]))


def _choose_points(mask: Bool[np.ndarray, "x y z"], spacing_mm: np.ndarray) -> Float[np.ndarray, "point 3"]:
    """Places in and closely around the mask, some 4 mm apart, in mm from the middle of the first voxel."""
    reach = [max(1, round(_MARGIN_MM / size)) for size in spacing_mm]
    near = ndimage.maximum_filter(mask, size=[2 * length + 1 for length in reach])
    strides = [max(1, round(_COARSEST_MM / size)) for size in spacing_mm]
    chosen = np.argwhere(near[tuple(slice(stride // 2, None, stride) for stride in strides)])
    points = chosen * strides + [stride // 2 for stride in strides]
    # Of more than are needed every so many-th: rows of the grid are longer than such a step, so they stay spread.
    return points[:: -(-len(points) // _MOST_POINTS)] * spacing_mm


def _factors(spacing_mm: tuple[float, float, float]) -> list[int]:
    return [max(1, int(_COARSEST_MM / size + 1e-6)) for size in spacing_mm]


def _smooth(volume: Float[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float]) -> Float[np.ndarray, "i j k"]:
    """Whole voxels averaged to at most 4 mm, then a Gaussian of 6 mm."""
    factors = _factors(spacing_mm)
    for axis, factor in enumerate(factors):
        if factor > 1:
            whole = volume.shape[axis] // factor * factor
            starts = (slice(None),) * axis
            parts = [volume[(*starts, slice(offset, whole, factor))] for offset in range(factor)]
            volume = sum(parts[1:], parts[0]) / np.float32(factor)
    sigma = [_FWHM_MM / _FWHM_PER_SIGMA / (factor * size) for factor, size in zip(factors, spacing_mm, strict=True)]
    return ndimage.gaussian_filter(volume, sigma, mode="nearest")


def _look(coefficients: np.ndarray, target: _Target, points_mm: np.ndarray) -> Float[np.ndarray, " point"]:
    """Values at places from the centre, by cubic splines."""
    return ndimage.map_coordinates(coefficients, target.to_index(points_mm), order=3, mode="nearest", prefilter=False)


def _align(target: _Target, coefficients: Float[np.ndarray, "i j k"], start: _Place) -> _Place | None:
    """Where the head is in a smoothed frame, given as splines, from a first guess; None where it is not found."""
    last = np.array(coefficients.shape)[:, None] - 1 + _ROUNDING
    place = start
    for _ in range(_MOST_STEPS):
        points_mm = place.turn.apply(target.points_mm) + place.shift_mm
        index = target.to_index(points_mm)
        seen = np.all((index >= -_ROUNDING) & (index <= last), axis=0)
        if seen.mean() < _FEWEST_SEEN:
            return None
        design, values = target.design[seen], _look(coefficients, target, points_mm[seen])
        # values = factor * (reference + gradient * step): linear in factor * step and in factor.
        solved = np.linalg.lstsq(design.T @ design, design.T @ values, rcond=1e-9)[0]
        likeness = np.corrcoef(design[:, 6], values)[0, 1] if values.std() > 0 else 0.0
        if solved[6] <= 0 or likeness < _LEAST_LIKENESS:
            return None
        step = solved[:6] / solved[6]
        # The step was taken in the reference: its inverse comes first.
        turn = Rotation.from_rotvec(step[3:] / RADIUS_MM).inv()
        shift_mm = place.turn.apply(turn.apply(-step[:3])) + place.shift_mm
        place = _Place(place.turn * turn, shift_mm)
        if np.abs(step).max() < _SMALL_ENOUGH_MM:
            return place
    return None

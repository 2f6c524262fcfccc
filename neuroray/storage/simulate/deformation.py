"""Displacements: random ones that make heads differ, composed with atrophy into one map from scan to template."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage

from neuroray.storage.simulate.regions import REGION_SPACING_MM
from neuroray.storage.simulate.template import load_template

CONTROL_SPACING_MM = 12.0
_ORIGIN_MM = np.array([-122.0, -158.0, -96.0])  # the first control point, two beyond the template's corner
_CONTROL_SHAPE = (21, 24, 20)
_DENSE_FACTOR = 3  # the random field is laid out every 4 mm
_SCALES_MM = ((40.0, 1.4), (16.0, 0.5))  # width of the bumps and standard deviation of what they move, coarse and fine
_ATROPHY_STEPS = 4

SPACING_MM = 3.0  # every head's displacement is worked out once, on this grid about the undeformed template
SHAPE = (72, 84, 70)
AFFINE = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
AFFINE[:3, 3] = (-106.5, -141.5, -80.0)

Points = Float32[np.ndarray, "3 x y z"]
Controls = Float32[np.ndarray, "3 i j k"]


def draw_controls(*generators: np.random.Generator, shares: Sequence[float] = (1.0,)) -> Controls:
    """Control points (mm) of a random smooth field, a mixture of one part per generator.

    Args:
        generators: One stream per part, e.g. one of the family's and one of the person's own.
        shares: The part of the variance that each gives; they sum to one.
    """
    controls = np.zeros((3, *_CONTROL_SHAPE), dtype=np.float32)
    for generator, share in zip(generators, shares, strict=True):
        for width_mm, amplitude_mm in _SCALES_MM:
            noise = generator.standard_normal(controls.shape, dtype=np.float32)
            sigma = width_mm / 2 / CONTROL_SPACING_MM
            smooth = np.stack([ndimage.gaussian_filter(part, sigma, mode="wrap") for part in noise])
            controls += np.float32(np.sqrt(share) * amplitude_mm) * smooth / _spread_after_smoothing(sigma)
    return controls


def deform(controls: Controls, velocity: Float32[np.ndarray, "3 i j k"]) -> Points:
    """Displacement (mm) of one head, from the undeformed to the actual template: random field, then atrophy taken back.

    Args:
        controls: What `draw_controls` gave.
        velocity: What `atrophy.combine` gave; it points as tissue moves, so it is followed backwards.
    """
    start = affine_points(AFFINE, SHAPE)
    points = start + _sample_field(_lay_out(controls), start, _random_field_affine())
    region_affine = load_template(REGION_SPACING_MM).affine
    for _ in range(_ATROPHY_STEPS):
        points -= _sample_field(velocity, points, region_affine) / np.float32(_ATROPHY_STEPS)
    return points - start


def map_to_template(matrix: Float[np.ndarray, "4 4"], shape: tuple[int, int, int], displacement: Points) -> Points:
    """Template mm of every voxel of a grid.

    Args:
        matrix: Voxel indices of the grid to mm of the undeformed template.
        shape: Voxels of the grid.
        displacement: What `deform` gave.
    """
    points = affine_points(matrix, shape)
    return points + _sample_field(displacement, points, AFFINE)


def affine_points(matrix: Float[np.ndarray, "4 4"], shape: tuple[int, ...]) -> Points:
    """Where the voxels of a grid lie."""
    i, j, k = (np.arange(count, dtype=np.float64) for count in shape)
    rows = [
        (row[3] + row[0] * i[:, None, None] + row[1] * j[None, :, None] + row[2] * k[None, None, :]).astype(np.float32)
        for row in matrix[:3]
    ]
    return np.stack(rows)


def sample(volume: Float32[np.ndarray, "i j k"], index: Points) -> Float32[np.ndarray, "x y z"]:
    """A volume at fractional indices, trilinear; beyond its faces the nearest voxel goes on."""
    return ndimage.map_coordinates(volume, index, order=1, mode="nearest", prefilter=False, output=np.float32)


def to_index(points_mm: Points, affine: Float[np.ndarray, "4 4"]) -> Points:
    """Fractional voxel indices of points in mm, for an affine without rotation."""
    scale = np.diag(affine)[:3].astype(np.float32).reshape(3, 1, 1, 1)
    return (points_mm - affine[:3, 3].astype(np.float32).reshape(3, 1, 1, 1)) / scale


def jacobian(points_mm: Points, matrix: Float[np.ndarray, "4 4"]) -> Float32[np.ndarray, "x y z"]:
    """Template volume per volume of the grid: below 1 where tissue grew, above where it shrank, up to 0 in folds."""
    rows = [np.gradient(component) for component in points_mm]
    (a, b, c), (d, e, f), (g, h, i) = rows
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return (determinant / abs(np.linalg.det(matrix[:3, :3]))).astype(np.float32)


def _lay_out(controls: Controls) -> Points:
    """The field (mm) every 4 mm over the template's box, by cubic B-splines."""
    for axis in range(3):
        controls = _refine(np.moveaxis(controls, axis + 1, 0), axis)
    return controls


def _random_field_affine() -> Float[np.ndarray, "4 4"]:
    spacing_mm = CONTROL_SPACING_MM / _DENSE_FACTOR
    # Refining starts one control point in from the border, where a cubic spline has all four of its neighbours.
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = _ORIGIN_MM + CONTROL_SPACING_MM
    return affine


def _sample_field(field: Float32[np.ndarray, "3 i j k"], points_mm: Points, affine: Float[np.ndarray, "4 4"]) -> Points:
    index = to_index(points_mm, affine)
    return np.stack([sample(component, index) for component in field])


def _refine(controls: Float32[np.ndarray, "n ..."], axis: int) -> Controls:
    """Cubic B-spline values between control points along the first axis, which then goes back to `axis + 1`."""
    fraction = (np.arange(_DENSE_FACTOR) / _DENSE_FACTOR).astype(np.float32)
    weights = (
        (1 - fraction) ** 3 / 6,
        (3 * fraction**3 - 6 * fraction**2 + 4) / 6,
        (-3 * fraction**3 + 3 * fraction**2 + 3 * fraction + 1) / 6,
        fraction**3 / 6,
    )
    segments = len(controls) - 3
    shape = (segments, _DENSE_FACTOR, *controls.shape[1:])
    values = np.zeros(shape, dtype=np.float32)
    for offset, weight in enumerate(weights):
        column = weight.reshape(1, -1, *([1] * (controls.ndim - 1)))
        values += column * controls[offset : offset + segments, None]
    return np.moveaxis(values.reshape(segments * _DENSE_FACTOR, *controls.shape[1:]), 0, axis + 1)


def _spread_after_smoothing(sigma: float) -> np.float32:
    """Standard deviation that white noise of one keeps under a Gaussian of this width (in samples) along three axes."""
    reach = np.arange(-12, 13)
    kernel = np.exp(-(reach**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    return np.float32((kernel**2).sum() ** 1.5)

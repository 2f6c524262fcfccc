"""How a head moved during a run: rigid realignment by ANTs (the `ants` extra), displacement from frame to frame."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from neuroray.errors import NeurorayError
from neuroray.platform.quality.runs import Blocks, clean

RADIUS_MM = 50.0
"""Of the sphere on which a rotation becomes a length (Power et al. 2012)."""
# A rigid motion of a whole head is found on coarse voxels as well, in an eighth of the time of voxels half as long.
_COARSEST_MM = 4.0
_SEED = 1


class MotionError(NeurorayError, RuntimeError):
    """Motion that cannot be estimated here."""


def is_available() -> bool:
    """Whether ANTs is installed."""
    return importlib.util.find_spec("ants") is not None


def estimate_motion(
    blocks: Blocks,
    reference: Float[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    mask: Bool[np.ndarray, "x y z"],
) -> Float[np.ndarray, "frame 6"]:
    """Where the head was in each frame against the reference: shifts of the mask's centre in mm, turns in radians.

    Along and about the axes of the grid, x, y, z. Frames are reduced to voxels of at most 4 mm (whole voxels are
    averaged) and registered one at a time by ANTs' `BOLDRigid` (mutual information), which starts anew for each.

    Raises:
        MotionError: ANTs is not installed.
    """
    if not is_available():
        raise MotionError("motion was not estimated: ANTs is not installed", fix="pip install 'neuroray[ants]'")
    factors = tuple(max(1, int(_COARSEST_MM / spacing + 1e-6)) for spacing in spacing_mm)
    centre_mm = np.array([np.mean(indices) for indices in np.nonzero(mask)]) * spacing_mm
    fixed = _to_image(reference, factors, spacing_mm)
    rows = [
        _register(fixed, _to_image(frame, factors, spacing_mm), centre_mm)
        for block in blocks()
        for frame in clean(block)[0]
    ]
    return np.array(rows)


def framewise_displacement(motion: Float[np.ndarray, "frame 6"]) -> Float[np.ndarray, " step"]:
    """Sum of the six parameters' changes, rotations as arcs on a sphere of 50 mm, in mm (Power et al. 2012)."""
    steps = np.abs(np.diff(motion, axis=0))
    return steps[:, :3].sum(axis=1) + RADIUS_MM * steps[:, 3:].sum(axis=1)


def _to_image(volume: np.ndarray, factors: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> Any:
    """To ANTs the grid's axes are the world's: what moves against what does not depend on where the head lay."""
    import ants

    reduced = volume.astype(np.float32)
    for axis, factor in enumerate(factors):
        if factor > 1:
            length = reduced.shape[axis] // factor
            reduced = np.take(reduced, range(length * factor), axis=axis)
            shape = (*reduced.shape[:axis], length, factor, *reduced.shape[axis + 1 :])
            reduced = reduced.reshape(shape).mean(axis=axis + 1)
    spacing = [factor * size for factor, size in zip(factors, spacing_mm, strict=True)]
    origin = [(factor - 1) / 2 * size for factor, size in zip(factors, spacing_mm, strict=True)]
    top = float(reduced.max())
    # Mutual information is taken over bins: the frame's own scale must not move them.
    return ants.from_numpy(reduced / top if top > 0 else reduced, origin=origin, spacing=spacing)


def _register(fixed: Any, moving: Any, centre_mm: np.ndarray) -> Float[np.ndarray, " 6"]:
    import ants

    with _scratch() as prefix:
        found = ants.registration(
            fixed,
            moving,
            type_of_transform="BOLDRigid",
            outprefix=prefix,
            random_seed=_SEED,
            singleprecision=False,
        )
        transform = ants.read_transform(found["fwdtransforms"][0])
        origin = np.array(transform.apply_to_point((0.0, 0.0, 0.0)))
        matrix = np.stack([np.array(transform.apply_to_point(tuple(axis))) - origin for axis in np.eye(3)], axis=1)
        shift = matrix @ centre_mm + origin - centre_mm
    return np.concatenate([shift, Rotation.from_matrix(matrix).as_euler("xyz")])


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="neuroray-motion-") as folder:
        yield str(Path(folder, "to_"))

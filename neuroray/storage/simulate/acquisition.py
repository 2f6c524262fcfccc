"""From a head to stored numbers: how it lies in the scanner, the grid laid over it, coil shading, noise and storage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel
import numpy as np
from jaxtyping import Float, Float32
from nibabel import orientations

from neuroray.storage.simulate.anatomy import Affine
from neuroray.storage.simulate.template import Volume, load_template

_FIELD_OF_VIEW_MM = (198.0, 236.0, 192.0)
_CENTRE_MM = (0.0, -17.0, 22.0)  # of the head, in template mm
_AIM_MM = 0.5  # spread of how the field of view is centred on the head
_TURN_DEG, _SHIFT_MM = 1.0, 1.2  # spread of how people lie in the scanner


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where head and grid lie in the world.

    Attributes:
        head_to_world: Rigid: the head's own mm to scanner mm.
        affine: Voxel indices of the grid (axes about R, A, S) to scanner mm.
        shape: Voxels of the grid.
    """

    head_to_world: Affine
    affine: Affine
    shape: tuple[int, int, int]

    @property
    def voxels_to_head(self) -> Affine:
        """Voxel indices to the head's own mm."""
        return np.linalg.inv(self.head_to_world) @ self.affine


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A scan as it goes to disk, and where it was taken.

    Attributes:
        nifti: The file's bytes, not yet compressed.
        placement: Of head and grid, before the axes were put in the site's order.
        gain: Value of pure white matter, without shading.
    """

    nifti: bytes
    placement: Placement
    gain: float


def place_head(zooms_mm: tuple[float, float, float], tilt_deg: float, stream: np.random.Generator) -> Placement:
    """Lays a head into the scanner, not quite straight, and a grid over it, tilted as operators do."""
    head_to_world = np.eye(4)
    head_to_world[:3, :3] = _rotation(stream.normal(0, _TURN_DEG, 3))
    head_to_world[:3, 3] = stream.normal(0, _SHIFT_MM, 3)
    axes = _rotation(stream.normal(0, tilt_deg, 3))
    shape = tuple(math.ceil(extent / zoom) for extent, zoom in zip(_FIELD_OF_VIEW_MM, zooms_mm, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(zooms_mm)
    middle = (np.array(shape) - 1) / 2
    centre = (head_to_world @ [*_CENTRE_MM, 1.0])[:3] + stream.normal(0, _AIM_MM, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ middle
    x, y, z = shape
    return Placement(head_to_world=head_to_world, affine=affine, shape=(x, y, z))


def place_registered(spacing_mm: float) -> Placement:
    """Lays the template's own grid over a head that lies as the template does."""
    template = load_template(spacing_mm)
    x, y, z = template.grey.shape
    return Placement(head_to_world=np.eye(4), affine=template.affine, shape=(x, y, z))


def draw_bias(shape: tuple[int, int, int], spread: float, stream: np.random.Generator) -> Volume:
    """A smooth multiplicative shading with mean about 1: the exponential of a random quadratic."""
    x, y, z = (
        np.linspace(-1, 1, count, dtype=np.float32).reshape([-1 if axis == other else 1 for other in range(3)])
        for axis, count in enumerate(shape)
    )
    linear, square, cross = (stream.normal(0, spread, 3).astype(np.float32) for _ in range(3))
    log = linear[0] * x + linear[1] * y + linear[2] * z
    log = log + square[0] * (x**2 - 0.3) + square[1] * (y**2 - 0.3) + square[2] * (z**2 - 0.3)
    return np.exp(log + cross[0] * x * y + cross[1] * y * z + cross[2] * x * z)


def add_rician_noise(signal: Float32[np.ndarray, ...], sigma: float, stream: np.random.Generator) -> np.ndarray:
    """The magnitude of a complex signal with thermal noise of this standard deviation in each channel."""
    real = signal + np.float32(sigma) * stream.standard_normal(signal.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * stream.standard_normal(signal.shape, dtype=np.float32)
    return np.sqrt(real**2 + imaginary**2)


def store_as(
    values: np.ndarray, affine: Float[np.ndarray, "4 4"], axis_codes: tuple[str, str, str]
) -> tuple[np.ndarray, Affine]:
    """The same image in another order of axes (time, where there is one, stays last); world coordinates stay true."""
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(axis_codes))
    turned = orientations.apply_orientation(values, turn)
    return turned, affine @ orientations.inv_ornt_aff(turn, values.shape[:3])


def encode_int16(values: np.ndarray, *, slope: float, intercept: float) -> np.ndarray:
    """Stored numbers for `value = stored * slope + intercept`, rounded, at the ends clipped."""
    limits = np.iinfo(np.int16)
    return np.clip(np.rint((values - intercept) / slope), limits.min, limits.max).astype(np.int16)


def make_nifti(
    stored: np.ndarray, affine: Affine, *, slope: float, intercept: float, repetition_time_s: float | None
) -> bytes:
    """A NIfTI-1 file's bytes: numbers kept as they are, units stated, scanner coordinates in sform and qform."""
    image = nibabel.Nifti1Image(stored, affine)
    header = image.header
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    header.set_xyzt_units("mm", "sec" if repetition_time_s is not None else None)
    if repetition_time_s is not None:
        header["pixdim"][4] = repetition_time_s
    # nibabel works out a scaling of its own when it writes; header and numbers are laid down here instead.
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + b"\0\0\0\0" + stored.tobytes(order="F")


def _rotation(angles_deg: np.ndarray) -> Float[np.ndarray, "3 3"]:
    """Turns about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[second, first] = math.sin(angle)
        turn[first, second] = -math.sin(angle)
        matrix = turn @ matrix
    return matrix

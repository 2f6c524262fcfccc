"""The anatomy that every simulated person is grown from: the MNI152 maps in nilearn's wheel, and a head around them."""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from neuroray.errors import NeurorayError

Volume = Float32[np.ndarray, "x y z"]

MAP_FILES = {kind: f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")}
_WHITE_IN_T1 = 222 / 255  # mean of voxels that are all white matter in the T1 template
_TISSUE_IN_T1 = {"grey": 166 / 222, "white": 1.0, "csf": 58 / 222}  # relative to white matter, in the T1 template
_SHARPNESS = 1.6  # the maps are means over many people; a power > 1 brings their blurred borders closer to one person's
THINNING_SIGMA = 0.4  # in spacings: as sharp as a scanner's voxel, and hardly aliased
_CLOSING_MM = 24.0  # the hull passes over gaps up to twice as wide
_FLUID_MM = 4.0  # inside the hull, fluid reaches this far from the brain
_GAP_MM, _BONE_MM, _SCALP_MM = 2.0, 5.0, 5.5  # subarachnoid space, skull and scalp over the hull of the brain


class SimulationError(NeurorayError, ValueError):
    """A simulated cohort that cannot be made as asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Tissue fractions and T1 detail on one grid in MNI152 space; tissues and air sum to one in every voxel.

    Attributes:
        grey: Fraction of grey matter.
        white: Fraction of white matter.
        csf: Fraction of cerebrospinal fluid: ventricles, sulci, and the space between brain and skull.
        bone: Fraction of skull.
        scalp: Fraction of scalp and other soft tissue.
        detail: What the T1 template has beyond its tissues (brighter pallidum, darker cortex), white matter = 1.
        affine: Voxel indices to MNI mm.
    """

    grey: Volume
    white: Volume
    csf: Volume
    bone: Volume
    scalp: Volume
    detail: Volume
    affine: Float[np.ndarray, "4 4"]

    def coordinates_mm(self) -> Float32[np.ndarray, "3 x y z"]:
        """MNI mm of every voxel's centre."""
        axes = [
            np.arange(count, dtype=np.float32) * np.float32(self.affine[axis, axis]) + np.float32(self.affine[axis, 3])
            for axis, count in enumerate(self.grey.shape)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"))


def find_data_file(name: str) -> Path:
    """A file that nilearn ships, found without importing nilearn, which takes seconds in every worker process.

    Raises:
        SimulationError: nilearn is not installed, or ships no such file.
    """
    found = importlib.util.find_spec("nilearn")
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        path = Path(folder) / "datasets" / "data" / name
        if path.is_file():
            return path
    raise SimulationError(
        "a file that nilearn ships is not there",
        given=folders or "no nilearn",
        expected=f"datasets/data/{name}",
        fix="pip install 'nilearn>=0.12'",
    )


@functools.lru_cache(maxsize=6)
def load_template(spacing_mm: float) -> Template:
    """The template on a grid of this spacing, kept in memory; smoothed before it is thinned out.

    Raises:
        SimulationError: nilearn, or the maps that it ships, are not installed.
    """
    finest = _load_finest()
    if spacing_mm == 1.0:
        return finest
    return Template(
        **{name: thin_out(getattr(finest, name), spacing_mm) for name in ("grey", "white", "csf", "bone", "scalp")},
        detail=thin_out(finest.detail, spacing_mm),
        affine=finest.affine @ np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]),
    )


def thin_out(values: Volume, step: float) -> Volume:
    """Every `step`-th voxel of a map, as a Gaussian average of what lies around it."""
    sigma = THINNING_SIGMA * step
    reach = math.ceil(3 * sigma)
    for axis, count in enumerate(values.shape):
        centres = np.arange(math.ceil(count / step)) * step
        nearest = np.rint(centres).astype(int)
        taps = [nearest + offset for offset in range(-reach, reach + 1)]
        weights = np.exp([-0.5 * ((tap - centres) / sigma) ** 2 for tap in taps])
        weights /= weights.sum(axis=0)
        column = [-1 if axis == other else 1 for other in range(3)]
        total = np.float32(0)
        for tap, weight in zip(taps, weights, strict=True):
            part = np.take(values, np.clip(tap, 0, count - 1), axis=axis)
            total = total + part * weight.astype(np.float32).reshape(column)
        values = np.asarray(total)
    return values


def measure_depth(inside: np.ndarray) -> Volume:
    """Distance, in voxels, from the outside; 0 there."""
    return np.asarray(ndimage.distance_transform_edt(inside), dtype=np.float32)


def forget_finest_template() -> None:
    """Frees the template's 1 mm maps (200 MB) once all coarser grids that are wanted have been made."""
    _load_finest.cache_clear()


@functools.lru_cache(maxsize=1)
def _load_finest() -> Template:
    """The template at the 1 mm of its files."""
    images = {kind: Nifti1Image.from_filename(find_data_file(name)) for kind, name in MAP_FILES.items()}
    bytes_by_kind = {kind: np.asarray(image.dataobj) for kind, image in images.items()}
    brain = bytes_by_kind["t1"] > 0
    t1, grey, white = (bytes_by_kind[kind][brain].astype(np.float32) / 255 for kind in ("t1", "gm", "wm"))
    fractions = {"grey": grey, "white": white, "csf": np.clip(1 - grey - white, 0, 1)}
    detail = t1 / np.float32(_WHITE_IN_T1)
    for name, fraction in fractions.items():
        detail -= fraction * np.float32(_TISSUE_IN_T1[name])
    sharp = {name: fraction**_SHARPNESS for name, fraction in fractions.items()}
    total = sharp["grey"] + sharp["white"] + sharp["csf"]
    maps = {name: _fill_in(brain, part / total) for name, part in sharp.items()}
    gap, bone, scalp = _grow_head(brain)
    return Template(
        grey=maps["grey"],
        white=maps["white"],
        csf=maps["csf"] + gap,
        bone=bone,
        scalp=scalp,
        detail=_fill_in(brain, detail),
        affine=np.asarray(images["t1"].affine, dtype=np.float64),
    )


def _fill_in(mask: np.ndarray, values: np.ndarray) -> Volume:
    volume = np.zeros(mask.shape, dtype=np.float32)
    volume[mask] = values
    return volume


def _grow_head(brain: np.ndarray) -> tuple[Volume, Volume, Volume]:
    """Fractions of fluid, skull and scalp outside the brain, layer by layer over the closed hull of the brain."""
    step, margin = 3, 12  # distances vary slowly: every third voxel will do
    thin = np.pad(brain[::step, ::step, ::step], margin)
    below = np.arange(thin.shape[2]) < margin
    thin[:, :, below] = thin[:, :, margin, None]  # under the template's last slice the neck goes on; elsewhere is air
    from_brain = step * measure_depth(~thin)
    hull = step * measure_depth(from_brain <= _CLOSING_MM) > _CLOSING_MM
    # Inside the hull, what lies far from the brain is the skull's base, not fluid.
    height = np.maximum(step * measure_depth(~hull), from_brain - _FLUID_MM)
    height = ndimage.gaussian_filter(height, 1.0)[(slice(margin, -margin),) * 3]
    height = ndimage.affine_transform(height, np.full(3, 1 / step), output_shape=brain.shape, order=1, mode="nearest")
    borders = np.cumsum([_GAP_MM, _BONE_MM, _SCALP_MM])
    gap, to_bone, to_scalp = (np.clip(border - height + 0.5, 0, 1).astype(np.float32) * ~brain for border in borders)
    return gap, to_bone - gap, to_scalp - to_bone

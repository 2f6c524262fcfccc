"""The anatomy that every simulated person is grown from: the MNI152 maps inside nilearn's wheel, and a head around them."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float, Float32
from scipy import ndimage

from neuroray.errors import NeurorayError

Volume = Float32[np.ndarray, "x y z"]

_MAP_FILES = {kind: f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")}
_WHITE_IN_T1 = 222 / 255  # mean of voxels that are all white matter in the T1 template
_TISSUE_IN_T1 = {"grey": 166 / 222, "white": 1.0, "csf": 58 / 222}  # relative to white matter, in the T1 template
_SHARPNESS = 1.6  # the maps are means over many people; a power > 1 brings their blurred borders closer to one person's
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
        **{name: _thin_out(getattr(finest, name), spacing_mm) for name in ("grey", "white", "csf", "bone", "scalp")},
        detail=_thin_out(finest.detail, spacing_mm),
        affine=finest.affine @ np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0]),
    )


def forget_finest_template() -> None:
    """Frees the template's 1 mm maps (200 MB) once all coarser grids that are wanted have been made."""
    _load_finest.cache_clear()


@functools.lru_cache(maxsize=1)
def _load_finest() -> Template:
    """The template at the 1 mm of its files."""
    images = {kind: nibabel.load(find_data_file(name)) for kind, name in _MAP_FILES.items()}
    t1, grey, white = (np.asarray(images[kind].dataobj, dtype=np.float32) / 255 for kind in ("t1", "gm", "wm"))
    brain = t1 > 0
    detail = np.where(brain, t1 / _WHITE_IN_T1, 0)
    rest = np.where(brain, np.clip(1 - grey - white, 0, 1), 0)
    for fraction, name in ((grey, "grey"), (white, "white"), (rest, "csf")):
        detail = detail - np.where(brain, fraction, 0) * np.float32(_TISSUE_IN_T1[name])
    grey, white, rest = _sharpen(grey * brain, white * brain, rest)
    gap, bone, scalp = _grow_head(brain)
    return Template(
        grey=grey,
        white=white,
        csf=rest + gap,
        bone=bone,
        scalp=scalp,
        detail=detail.astype(np.float32),
        affine=np.asarray(images["t1"].affine, dtype=np.float64),
    )


def _sharpen(*fractions: Volume) -> list[Volume]:
    raised = [fraction**_SHARPNESS for fraction in fractions]
    total = functools.reduce(np.add, raised)
    scale = np.divide(functools.reduce(np.add, fractions), total, out=np.zeros_like(total), where=total > 0)
    return [(part * scale).astype(np.float32) for part in raised]


def _grow_head(brain: np.ndarray) -> tuple[Volume, Volume, Volume]:
    """Fractions of fluid, skull and scalp outside the brain, layer by layer over the closed hull of the brain."""
    step, margin = 2, 16  # distances vary slowly: every second voxel will do
    thin = np.pad(brain[::step, ::step, ::step], margin)
    below = np.arange(thin.shape[2]) < margin
    thin[:, :, below] = thin[:, :, margin, None]  # under the template's last slice the neck goes on; elsewhere is air
    grown = ndimage.distance_transform_edt(~thin) * step <= _CLOSING_MM
    hull = ndimage.distance_transform_edt(grown) * step > _CLOSING_MM
    # Inside the hull, what lies far from the brain is the skull's base, not fluid.
    height = np.maximum(
        ndimage.distance_transform_edt(~hull) * step, ndimage.distance_transform_edt(~thin) * step - _FLUID_MM
    )
    height = ndimage.gaussian_filter(height.astype(np.float32), 1.0)[(slice(margin, -margin),) * 3]
    height = ndimage.affine_transform(height, np.full(3, 1 / step), output_shape=brain.shape, order=1, mode="nearest")
    borders = np.cumsum([_GAP_MM, _BONE_MM, _SCALP_MM])
    gap, to_bone, to_scalp = (np.clip(border - height + 0.5, 0, 1).astype(np.float32) * ~brain for border in borders)
    return gap, to_bone - gap, to_scalp - to_bone


def _thin_out(values: Volume, spacing_mm: float) -> Volume:
    smooth = ndimage.gaussian_filter(values, 0.35 * spacing_mm, mode="nearest") if spacing_mm > 1 else values
    shape = tuple(int(np.ceil(count / spacing_mm)) for count in values.shape)
    return ndimage.affine_transform(
        smooth, np.full(3, spacing_mm), output_shape=shape, order=1, mode="nearest", output=np.float32
    )

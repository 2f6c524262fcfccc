"""The MNI152 template (ICBM 2009a, symmetric, brain only) in nilearn's wheel, on a grid of any spacing."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64
from nibabel.nifti1 import Nifti1Image

from neuroray.storage.simulate.template import find_data_file, thin_out

TEMPLATE_NAME: Final = "MNI152 (ICBM 2009a symmetric)"
_T1_FILE: Final = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainTemplate:
    """A T1 of the brain alone.

    Attributes:
        voxels: 0 outside the brain.
        mask: The brain.
        affine: Voxel indices to MNI mm.
    """

    voxels: Float32[np.ndarray, "x y z"]
    mask: Bool[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]


@functools.lru_cache(maxsize=1)
def template_sha256() -> str:
    """Digest of the template's file."""
    return hashlib.sha256(find_data_file(_T1_FILE).read_bytes()).hexdigest()


@functools.lru_cache(maxsize=2)
def load_brain_template(spacing_mm: float) -> BrainTemplate:
    """The template on a grid that begins at the first voxel of its 1 mm file; smoothed before it is thinned out."""
    image = Nifti1Image.from_filename(find_data_file(_T1_FILE))
    finest = np.asarray(image.dataobj, dtype=np.float32)
    affine = np.asarray(image.affine, dtype=np.float64) @ np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    if spacing_mm == 1.0:
        return BrainTemplate(voxels=finest, mask=finest > 0, affine=affine)
    share = thin_out((finest > 0).astype(np.float32), spacing_mm)
    return BrainTemplate(voxels=thin_out(finest, spacing_mm), mask=share >= 0.5, affine=affine)

"""The MNI152 template (ICBM 2009a, symmetric) in nilearn's wheel: the brain, and a head grown around it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64
from nibabel.nifti1 import Nifti1Image

from neuroray.storage.simulate.template import (
    MAP_FILES,
    find_data_file,
    forget_finest_template,
    load_template,
    thin_out,
)

TEMPLATE_NAME: Final = "MNI152 (ICBM 2009a symmetric)"
# Brightness in a T1-weighted image, white matter = 1; of fat under the skin and of bone by eye, from 3 T scans.
_T1_OF: Final = {"grey": 166 / 222, "white": 1.0, "csf": 58 / 222, "bone": 0.1, "scalp": 0.9}
_HEAD_SPACING_MM: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainTemplate:
    """A T1-weighted image in MNI152 space.

    Attributes:
        voxels: Its values.
        mask: The brain.
        affine: Voxel indices to MNI mm.
    """

    voxels: Float32[np.ndarray, "x y z"]
    mask: Bool[np.ndarray, "x y z"]
    affine: Float64[np.ndarray, "4 4"]


@functools.lru_cache(maxsize=1)
def template_sha256() -> str:
    """Digest of the template's files."""
    digest = hashlib.sha256()
    for name in sorted(MAP_FILES.values()):
        digest.update(find_data_file(name).read_bytes())
    return digest.hexdigest()


@functools.lru_cache(maxsize=2)
def load_brain_template(spacing_mm: float) -> BrainTemplate:
    """The brain, 0 around it, on a grid from the first voxel of its 1 mm file on; smoothed before it is thinned out."""
    image = Nifti1Image.from_filename(find_data_file(MAP_FILES["t1"]))
    finest = np.asarray(image.dataobj, dtype=np.float32)
    affine = np.asarray(image.affine, dtype=np.float64) @ np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    if spacing_mm == 1.0:
        return BrainTemplate(voxels=finest, mask=finest > 0, affine=affine)
    share = thin_out((finest > 0).astype(np.float32), spacing_mm)
    return BrainTemplate(voxels=thin_out(finest, spacing_mm), mask=share >= 0.5, affine=affine)


@functools.lru_cache(maxsize=1)
def load_head_template() -> BrainTemplate:
    """The brain in a head, 2 mm: what a scan of a whole head is brought to.

    Brought to the brain alone, heads shrink until their scalp lies on its surface.
    """
    maps = load_template(_HEAD_SPACING_MM)
    voxels = maps.detail + sum(np.float32(weight) * getattr(maps, tissue) for tissue, weight in _T1_OF.items())
    # 200 MB of maps at 1 mm are of no more use.
    forget_finest_template()
    mask = load_brain_template(_HEAD_SPACING_MM).mask
    return BrainTemplate(voxels=np.clip(voxels, 0, None).astype(np.float32), mask=mask, affine=maps.affine)

"""The brain mask of a run: what is not background where the run comes masked, else nilearn's mask of the mean frame."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64
from nibabel.nifti1 import Nifti1Image

from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.statistics import find_foreground
from neuroray.storage.scan import Scan, ScanError

# A masked brain hardly touches the faces of its grid; a head whose air was set to 0 crosses the lowest with its neck.
_ZEROS_PER_FACE: Final = 0.8
_ZEROS_IN_ALL: Final = 0.2


def mask_run(prepared: Prepared) -> Prepared:
    """Adds the brain mask of a run.

    Raises:
        ScanError: no brain is found.
    """
    foreground = find_foreground(prepared.scan.voxels)
    mask = foreground if is_masked(foreground) else _find_brain(prepared.scan)
    if not mask.any():
        raise ScanError("no brain is found in a run", given="an empty mask", fix="look at the run; mask it beforehand")
    return dataclasses.replace(prepared, mask=mask)


def is_masked(foreground: Bool[np.ndarray, "x y z"]) -> bool:
    """Whether somebody has set what is not brain to 0: a fifth of all voxels, and four fifths of every face."""
    faces = [np.take(foreground, index, axis=axis) for axis in range(3) for index in (0, -1)]
    least = min(1.0 - float(face.mean()) for face in faces)
    return least >= _ZEROS_PER_FACE and 1.0 - float(foreground.mean()) >= _ZEROS_IN_ALL


def _find_brain(scan: Scan) -> Bool[np.ndarray, "x y z"]:
    from nilearn.masking import compute_epi_mask

    mean = Nifti1Image(_mean_frame(scan).astype(np.float32), scan.affine)
    with warnings.catch_warnings():
        # An empty mask is an error here, told by the caller.
        warnings.simplefilter("ignore")
        mask: Any = compute_epi_mask(mean)
    return np.asarray(mask.dataobj) > 0


def _mean_frame(scan: Scan) -> Float64[np.ndarray, "x y z"]:
    total = np.zeros(scan.grid_shape)
    for frame in scan.voxels:
        total += np.nan_to_num(frame, posinf=0.0, neginf=0.0)
    return total / scan.num_frames

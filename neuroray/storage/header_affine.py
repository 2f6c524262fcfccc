"""Where a NIfTI header puts its grid in the world: sform, qform or neither, and in which unit of length."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError

from neuroray.storage.scan import ScanError

NO_ORIENTATION = "no orientation in the header: the first axis was taken to run to the left, which may be wrong"
_MM_OF_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_PLAUSIBLE_ZOOMS_MM = (0.02, 50.0)


def read_nifti_affine(header: Any, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Voxel to world as the header has it, in the header's own unit of length, and what to know about it.

    The sform where there is one, else the qform. Where there is neither, the voxel sizes alone, centred, with the first
    axis to the left: nibabel's choice, which comes from Analyze.

    Raises:
        ScanError: the qform is the only orientation, and makes no sense.
    """
    has_sform, has_qform = int(header["sform_code"]) != 0, int(header["qform_code"]) != 0
    if not has_sform and not has_qform:
        return header.get_base_affine(), (NO_ORIENTATION,)
    try:
        with np.errstate(all="ignore"):
            qform = header.get_qform() if has_qform else None
    except (HeaderDataError, ValueError) as error:
        if not has_sform:
            raise ScanError(
                f"{name}: the header's orientation (qform) makes no sense",
                given=str(error),
                fix="convert the original images again, or set an sform",
            ) from error
        qform = None
    if not has_sform:
        return np.asarray(qform, dtype=np.float64), ()
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    same_space = qform is not None and int(header["sform_code"]) == int(header["qform_code"])
    if same_space and not _agree(sform, np.asarray(qform), header):
        return sform, ("the header's two orientations (sform, qform) disagree; the sform was used",)
    return sform, ()


def _agree(sform: np.ndarray, qform: np.ndarray, header: Any) -> bool:
    """Whether both put the grid's corners at the same place, to within half a voxel."""
    sizes = np.asarray(header["dim"][1:4], dtype=np.float64) - 1
    corners = np.array([[i, j, k, 1] for i in (0, sizes[0]) for j in (0, sizes[1]) for k in (0, sizes[2])]).T
    half_voxel_mm = 0.5 * float(np.sqrt((sform[:3, :3] ** 2).sum(axis=0)).max())
    return bool(np.abs((sform - qform) @ corners).max() <= half_voxel_mm) if np.isfinite(sform).all() else True


def convert_to_mm(affine: np.ndarray, unit_code: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Converts metres and micrometres, where that gives voxels of a size that voxels have."""
    factor = _MM_OF_UNIT.get(unit_code, 1.0)
    if factor == 1.0:
        return affine, ()
    smallest, largest = _PLAUSIBLE_ZOOMS_MM
    zooms = voxel_sizes(affine) * factor
    unit = "metres" if unit_code == 1 else "micrometres"
    if not ((zooms >= smallest) & (zooms <= largest)).all():
        return affine, (f"the header gives lengths in {unit}, which is not plausible: they were read as mm",)
    return np.diag([factor, factor, factor, 1.0]) @ affine, (f"lengths were converted from {unit} to mm",)

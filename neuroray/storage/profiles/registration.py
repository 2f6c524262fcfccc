"""What ANTs does for a profile: N4 bias correction, and the affine map of a head to the MNI152 template."""

from __future__ import annotations

import dataclasses
import importlib
import os
import tempfile
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Num
from scipy import ndimage

from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import BiasCorrected, TemplateAligned, installed_version
from neuroray.storage.profiles.transform import NativeGrid, TemplateTransform
from neuroray.storage.scan import Scan, ScanError

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world runs to the Left and Posterior, ours to the Right and Anterior
_REGISTRATION_SPACING_MM = 2.0


def correct_bias(prepared: Prepared) -> Prepared:
    """Divides a volume by its smooth shading (N4); gives float32.

    Raises:
        ScanError: ANTs cannot work on it.
        ProfileError: ANTs is not installed.
    """
    profile = prepared.profile
    assert isinstance(profile, BiasCorrected | TemplateAligned)
    ants = _import_ants()
    image = _to_image(ants, prepared.scan.voxels, prepared.scan.affine)
    convergence = {"iters": list(profile.num_iterations), "tol": 1e-7}
    try:
        corrected = ants.n4_bias_field_correction(
            image, mask=ants.get_mask(image), shrink_factor=profile.shrink_factor, convergence=convergence
        ).numpy()
    except RuntimeError as error:
        raise _refusal("N4 does not work on this volume", error) from error
    voxels = np.ascontiguousarray(corrected, dtype=np.float32)
    if not np.isfinite(voxels).all():
        raise ScanError("N4 gives values that are not finite", fix="look at the volume's intensities")
    return dataclasses.replace(prepared, scan=dataclasses.replace(prepared.scan, voxels=voxels, encoding=None))


def align_to_template(prepared: Prepared) -> Prepared:
    """Resamples a volume to MNI152 by an affine map (linear between voxels, 0 outside), with the template's brain mask.

    Raises:
        ScanError: ANTs finds no map.
        ProfileError: ANTs is not installed.
    """
    from neuroray.storage.profiles.template import TEMPLATE_NAME, load_brain_template

    profile = prepared.profile
    assert isinstance(profile, TemplateAligned)
    scan = prepared.scan
    to_template = _register(scan, profile)
    template = load_brain_template(profile.spacing_mm)
    native = NativeGrid(shape=scan.grid_shape, affine=scan.affine, source=scan.source)
    # Voxel of the template -> its world -> native world -> native voxel.
    to_native = np.linalg.inv(scan.affine) @ np.linalg.inv(to_template) @ template.affine
    voxels = _resample(scan.voxels, to_native, template.voxels.shape)
    return dataclasses.replace(
        prepared,
        # The header's grid is no longer the scan's; it stays with the transform.
        scan=dataclasses.replace(scan, voxels=voxels, affine=template.affine, source=None),
        mask=template.mask,
        to_template=TemplateTransform(template=TEMPLATE_NAME, affine=to_template, native=native),
    )


def _register(scan: Scan, profile: TemplateAligned) -> Float[np.ndarray, "4 4"]:
    """World of the scan to world of the template, RAS+ mm."""
    from neuroray.storage.profiles.template import load_brain_template

    ants = _import_ants()
    template = load_brain_template(_REGISTRATION_SPACING_MM)
    fixed = _to_image(ants, template.voxels, template.affine)
    moving = _to_image(ants, scan.voxels, scan.affine)
    with tempfile.TemporaryDirectory(prefix="neuroray-ants-") as folder:
        try:
            found = ants.registration(fixed, moving, "Affine", outprefix=f"{folder}/", random_seed=profile.seed)
            # ITK's map takes points of the fixed image to those of the moving one, in LPS.
            to_moving = _matrix_of(ants.read_transform(found["fwdtransforms"][0]))
        except (RuntimeError, ValueError, IndexError) as error:
            raise _refusal("ANTs does not bring this volume to the template", error) from error
    return np.linalg.inv(_LPS @ to_moving @ _LPS)


def _resample(
    values: Num[np.ndarray, "x y z"], to_source: Float[np.ndarray, "4 4"], shape: tuple[int, ...]
) -> Float32[np.ndarray, "x y z"]:
    return ndimage.affine_transform(values.astype(np.float32), to_source, output_shape=shape, order=1)


def _matrix_of(transform: Any) -> Float[np.ndarray, "4 4"]:
    """ITK's affine map, y = M (x - c) + c + t, as one matrix."""
    parameters = np.asarray(transform.parameters, dtype=np.float64)
    centre = np.asarray(transform.fixed_parameters, dtype=np.float64)
    matrix, shift = parameters[:9].reshape(3, 3), parameters[9:12]
    found = np.eye(4)
    found[:3, :3] = matrix
    found[:3, 3] = shift + centre - matrix @ centre
    return found


def _to_image(ants: Any, voxels: Num[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> Any:
    lps = _LPS @ affine
    spacing_mm = np.sqrt((lps[:3, :3] ** 2).sum(axis=0))
    return ants.from_numpy(
        np.ascontiguousarray(voxels, dtype=np.float32),
        origin=lps[:3, 3].tolist(),
        spacing=spacing_mm.tolist(),
        direction=lps[:3, :3] / spacing_mm,
    )


def _import_ants() -> Any:
    """ANTs, on one thread: sums of several threads come in another order each time, and with them other last bits.

    Raises:
        ProfileError: it is not installed.
    """
    installed_version("antspyx")
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    return importlib.import_module("ants")


def _refusal(what: str, error: Exception) -> ScanError:
    given = f"{type(error).__name__}: {str(error).strip()[:200]}"
    return ScanError(what, given=given, fix="look at the scan; ingest it with the profile native")

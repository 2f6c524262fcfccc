"""What ANTs does for a profile: N4 bias correction, and the affine map of a head to MNI152; and the way to its grid."""

from __future__ import annotations

import dataclasses
import importlib
import os
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Num
from scipy import ndimage

from neuroray.storage.profiles.masks import is_masked
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import BiasCorrected, OnTemplateGrid, TemplateAligned, installed_version
from neuroray.storage.profiles.transform import NativeGrid, TemplateTransform
from neuroray.storage.scan import Scan, ScanError
from neuroray.storage.simulate.template import THINNING_SIGMA

if TYPE_CHECKING:
    from neuroray.storage.profiles.template import BrainTemplate

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's world runs to the Left and Posterior, ours to the Right and Anterior
_REGISTRATION_SPACING_MM = 2.0
_UPPER_HEAD_MM = 130.0  # from the crown down: the brain, without the neck, of which every scan has another length
_DARKEST_HEAD = 0.15  # of the template's white matter
_LEAST_CORRELATION = 0.3  # with the template in its brain; heads that were brought there have 0.4 to 0.6


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
        # Over the whole volume: with a mask of the head, shading that was laid on stayed on to more than half.
        corrected = ants.n4_bias_field_correction(
            image, shrink_factor=profile.shrink_factor, convergence=convergence
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
    profile = prepared.profile
    assert isinstance(profile, TemplateAligned)
    return _lay_on_template(prepared, _register(prepared.scan, profile), profile.spacing_mm)


def resample_in_template(prepared: Prepared) -> Prepared:
    """Resamples a volume whose world is MNI152 already (linear between voxels, 0 outside), with the brain mask.

    A grid coarser than the volume's is smoothed to before, so that noise and borders are averaged and not picked.

    Raises:
        ScanError: nothing of it lies where the template's brain does.
    """
    profile = prepared.profile
    assert isinstance(profile, OnTemplateGrid)
    scan = prepared.scan
    own_mm = np.sqrt((scan.affine[:3, :3] ** 2).sum(axis=0))
    # As wide as what the template was thinned out with; 0 where the grid is no coarser than the volume's own.
    sigma = THINNING_SIGMA * np.sqrt(np.maximum((profile.spacing_mm / own_mm) ** 2 - 1, 0))
    smooth = ndimage.gaussian_filter(scan.voxels.astype(np.float32), sigma, mode="nearest")
    found = _lay_on_template(
        dataclasses.replace(prepared, scan=dataclasses.replace(scan, voxels=smooth, encoding=None)),
        np.eye(4),
        profile.spacing_mm,
    )
    assert found.mask is not None
    if not found.scan.voxels[found.mask].any():
        raise ScanError(
            "this volume does not lie in MNI152",
            given=f"a corner at {np.round(scan.affine[:3, 3]).tolist()} mm, no value in the template's brain",
            expected="a volume that was registered to MNI152",
            fix="ingest it with the profile mni_affine, which registers it",
        )
    return found


def _lay_on_template(prepared: Prepared, to_template: Float[np.ndarray, "4 4"], spacing_mm: float) -> Prepared:
    """On the template's grid, by a map from the scan's world to the template's."""
    from neuroray.storage.profiles.template import TEMPLATE_NAME, load_brain_template

    scan, template = prepared.scan, load_brain_template(spacing_mm)
    native = NativeGrid(shape=scan.grid_shape, affine=scan.affine, source=scan.source)
    # Voxel of the template -> its world -> native world -> native voxel.
    to_native = np.linalg.inv(scan.affine) @ np.linalg.inv(to_template) @ template.affine
    voxels = _resample(scan.voxels, to_native, template.voxels.shape)
    flags = scan.flags + _doubts(voxels, template)
    return dataclasses.replace(
        prepared,
        # The header's grid is no longer the scan's; it stays with the transform.
        scan=dataclasses.replace(scan, voxels=voxels, affine=template.affine, source=None, flags=flags),
        mask=template.mask,
        to_template=TemplateTransform(template=TEMPLATE_NAME, affine=to_template, native=native),
    )


def _register(scan: Scan, profile: TemplateAligned) -> Float[np.ndarray, "4 4"]:
    """World of the scan to world of the template, RAS+ mm."""
    from neuroray.storage.profiles.template import load_brain_template, load_head_template

    ants = _import_ants()
    moving = _to_image(ants, scan.voxels, scan.affine)
    if is_masked(scan.voxels != 0):
        template = load_brain_template(_REGISTRATION_SPACING_MM)
        centres = _centre(template.mask, template.affine), _centre(scan.voxels != 0, scan.affine)
    else:
        template = load_head_template()
        head = ants.get_mask(moving).numpy() > 0
        goal = _centre_of_upper_head(template.voxels > _DARKEST_HEAD, template.affine)
        centres = goal, _centre_of_upper_head(head, scan.affine)
    start = np.eye(4)
    start[:3, 3] = centres[1] - centres[0]
    fixed = _to_image(ants, template.voxels, template.affine)
    with tempfile.TemporaryDirectory(prefix="neuroray-ants-") as folder:
        try:
            found = ants.registration(
                fixed,
                moving,
                "Affine",
                initial_transform=_write_transform(ants, start, f"{folder}/start.mat"),
                outprefix=f"{folder}/",
                random_seed=profile.seed,
            )
            # ITK's map takes points of the fixed image to those of the moving one.
            to_moving = _matrix_of(ants.read_transform(found["fwdtransforms"][0]))
        except (RuntimeError, ValueError, IndexError) as error:
            raise _refusal("ANTs does not bring this volume to the template", error) from error
    return np.linalg.inv(to_moving)


def _centre(inside: Bool[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, 3]:
    """Its middle, in the world."""
    return affine[:3, :3] @ np.argwhere(inside).mean(axis=0) + affine[:3, 3]


def _centre_of_upper_head(inside: Bool[np.ndarray, "x y z"], affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, 3]:
    """The middle of what lies less than `_UPPER_HEAD_MM` below the crown, in the world."""
    world_mm = np.argwhere(inside) @ affine[:3, :3].T + affine[:3, 3]
    if not len(world_mm):
        raise ScanError("no head is found in a volume", fix="look at the scan; ingest it with the profile native")
    crown_mm = np.percentile(world_mm[:, 2], 99.9)
    return world_mm[world_mm[:, 2] > crown_mm - _UPPER_HEAD_MM].mean(axis=0)


def _doubts(voxels: Float32[np.ndarray, "x y z"], template: BrainTemplate) -> tuple[str, ...]:
    """A flag for what looks little like the template."""
    brain, wanted = voxels[template.mask], template.voxels[template.mask]
    correlation = float(np.corrcoef(brain, wanted)[0, 1]) if brain.std() > 0 else 0.0
    if correlation >= _LEAST_CORRELATION:
        return ()
    return (f"correlates with the template's brain by {correlation:.2f} only: look at the alignment",)


def _resample(
    values: Num[np.ndarray, "x y z"], to_source: Float[np.ndarray, "4 4"], shape: tuple[int, ...]
) -> Float32[np.ndarray, "x y z"]:
    return ndimage.affine_transform(values.astype(np.float32), to_source, output_shape=shape, order=1)


def _write_transform(ants: Any, matrix: Float[np.ndarray, "4 4"], path: str) -> str:
    lps = _LPS @ matrix @ _LPS
    transform = ants.create_ants_transform(
        transform_type="AffineTransform", dimension=3, matrix=lps[:3, :3], offset=lps[:3, 3]
    )
    ants.write_transform(transform, path)
    return path


def _matrix_of(transform: Any) -> Float[np.ndarray, "4 4"]:
    """ITK's affine map, y = M (x - c) + c + t in LPS, as one matrix in RAS+."""
    parameters = np.asarray(transform.parameters, dtype=np.float64)
    centre = np.asarray(transform.fixed_parameters, dtype=np.float64)
    matrix, shift = parameters[:9].reshape(3, 3), parameters[9:12]
    found = np.eye(4)
    found[:3, :3] = matrix
    found[:3, 3] = shift + centre - matrix @ centre
    return _LPS @ found @ _LPS


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

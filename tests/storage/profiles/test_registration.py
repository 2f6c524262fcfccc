"""N4 and the affine map to MNI152, on a head simulated in the template's space and moved, and on a real one."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles import PROFILES, carry_back, find_profile, prepare
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.registration import align_to_template, correct_bias
from neuroray.storage.profiles.template import load_brain_template, load_head_template
from neuroray.storage.scan import Scan, ScanError

REAL_T1 = Path(__file__).parents[2] / "data" / "pumi" / "sub-001" / "anat" / "sub-001_T1w.nii.gz"
COARSE_GRID = dataclasses.replace(find_profile("mni_grid"), spacing_mm=4.0)
COARSE = dataclasses.replace(find_profile("mni_affine"), spacing_mm=4.0)

needs_ants = pytest.mark.skipif(
    importlib.util.find_spec("ants") is None, reason="ANTs is not installed: pip install 'neuroray[ants]'"
)


def make_motion(angles_deg: tuple[float, float, float], shift_mm: tuple[float, float, float], scale: float = 1.0):
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix() * scale
    motion[:3, 3] = shift_mm
    return motion


def make_moved(motion: np.ndarray, seed: int = 0, *, brain_only: bool = False) -> Scan:
    """The template seen by a scanner in which it lies elsewhere: native world = inverse(motion) of template world."""
    template = load_brain_template(2.0) if brain_only else load_head_template()
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = (-110.0, -140.0, -110.0)
    to_voxel = np.linalg.inv(template.affine) @ motion @ affine
    voxels = ndimage.affine_transform(template.voxels, to_voxel, output_shape=(75, 85, 75), order=1)
    noise = np.random.default_rng(seed).normal(0, 0.02 * voxels.max(), voxels.shape)
    return Scan(voxels=(voxels + (0 if brain_only else np.abs(noise))).astype(np.float32), affine=affine)


def points_in_brain() -> np.ndarray:
    """World (template) coordinates all over the brain, homogeneous, as columns."""
    template = load_brain_template(2.0)
    voxels = np.argwhere(template.mask)[::700]
    return template.affine @ np.column_stack([voxels, np.ones(len(voxels))]).T


def errors_mm(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """How far apart two maps to the template put the same points of the brain."""
    template = points_in_brain()
    return np.linalg.norm((found @ np.linalg.inv(true) @ template - template)[:3], axis=0)


@needs_ants
@pytest.mark.slow
@pytest.mark.parametrize("brain_only", [False, True])
def test_a_known_motion_is_found_with_its_direction(brain_only: bool):
    motion = make_motion((9, -6, 11), (12, -9, 17), scale=1.06)
    prepared = align_to_template(Prepared(scan=make_moved(motion, brain_only=brain_only), profile=COARSE))
    assert prepared.to_template is not None
    # A tenth of the 3 mm voxels would be exact; the head's smooth outside allows for some more.
    assert errors_mm(prepared.to_template.affine, motion).mean() < 1.0
    template = load_brain_template(4.0)
    np.testing.assert_array_equal(prepared.mask, template.mask)
    found, wanted = prepared.scan.voxels[template.mask], template.voxels[template.mask]
    assert np.corrcoef(found, wanted)[0, 1] > 0.9
    assert prepared.scan.flags == ()


@needs_ants
@pytest.mark.slow
def test_a_real_head_gets_to_the_same_place_wherever_it_lay_in_the_scanner():
    scan = thin(read_scan(REAL_T1))
    motion = make_motion((8, -6, 10), (12, -9, 7))
    moved = dataclasses.replace(scan, affine=motion @ scan.affine)
    first, second = (prepare(each, COARSE) for each in (scan, moved))
    assert first.to_template is not None
    assert second.to_template is not None
    # Half a voxel of 4 mm: the search begins elsewhere and ends within the same valley.
    assert errors_mm(second.to_template.affine @ motion, first.to_template.affine).mean() < 2.0
    assert first.scan.flags == scan.flags
    assert first.statistics is not None
    assert first.statistics.over == "mask"
    assert first.scan.source is None
    assert first.to_template.native.source is scan.source


@needs_ants
@pytest.mark.slow
@pytest.mark.parametrize("name", ["n4", "mni_affine"])
def test_the_same_scan_gives_the_same_bytes(name: str):
    scan = thin(read_scan(REAL_T1))
    profile = COARSE if name == "mni_affine" else PROFILES[name]
    first, second = (prepare(scan, profile) for _ in range(2))
    assert first.scan.voxels.tobytes() == second.scan.voxels.tobytes()
    assert first.statistics == second.statistics
    if first.to_template is not None and second.to_template is not None:
        assert first.to_template.affine.tobytes() == second.to_template.affine.tobytes()


@needs_ants
@pytest.mark.slow
def test_n4_takes_off_shading_that_was_laid_on():
    head = make_moved(np.eye(4))
    i, j, k = (axis / length for axis, length in zip(np.indices(head.grid_shape), head.grid_shape, strict=True))
    field = np.exp(0.6 * (i - 0.5) - 0.5 * (j - 0.5) + 0.4 * (k - 0.5))
    shaded = dataclasses.replace(head, voxels=(head.voxels * field).astype(np.float32))
    plain, corrected = (correct_bias(Prepared(scan=each, profile=find_profile("n4"))).scan for each in (head, shaded))
    inside = head.voxels > np.percentile(head.voxels, 75)
    laid_on = np.log(field[inside]).std()
    left = np.log(corrected.voxels[inside] / plain.voxels[inside]).std()
    # Splines of one mesh per side follow a field as smooth as this: a tenth was left when it was measured.
    assert left < 0.3 * laid_on
    np.testing.assert_array_equal(corrected.affine, head.affine)


def make_blob(shape: tuple[int, ...], centre: np.ndarray, width: float) -> np.ndarray:
    offset = np.indices(shape) - centre[:, None, None, None]
    return np.exp(-0.5 * (offset**2).sum(axis=0) / width**2).astype(np.float32)


@needs_ants
@pytest.mark.slow
def test_a_map_is_carried_back_to_where_it_came_from():
    scan = make_moved(make_motion((9, -6, 11), (12, -9, 17), scale=1.06))
    prepared = align_to_template(Prepared(scan=scan, profile=COARSE))
    assert prepared.to_template is not None
    place = np.array([33.0, 50.0, 38.0])
    in_template = prepared.to_template.affine @ scan.affine @ [*place, 1.0]
    in_voxels = (np.linalg.inv(prepared.scan.affine) @ in_template)[:3]
    blob = make_blob(prepared.scan.grid_shape, in_voxels, width=2.0)
    back = carry_back(blob, prepared.scan.affine, prepared.to_template)
    assert back.shape == scan.grid_shape
    found = np.array(ndimage.center_of_mass(back))
    # Linear interpolation of a blob that is 8 mm wide moves its centre by far less than a voxel, but not by nothing.
    np.testing.assert_allclose(found, place, atol=0.1)
    # It spreads the blob by a fraction of a voxel, so that its height is less by a little.
    assert 0.85 < back.max() <= 1.0


def thin(scan: Scan) -> Scan:
    """Every second voxel: 4 mm, for speed."""
    affine = scan.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    return dataclasses.replace(scan, voxels=np.ascontiguousarray(scan.voxels[::2, ::2, ::2]), affine=affine)


def test_what_is_registered_already_is_laid_on_the_templates_grid() -> None:
    template = load_brain_template(2.0)
    scan = Scan(voxels=template.voxels[:, ::-1].copy(), affine=template.affine @ flip_of(1, template.voxels.shape[1]))
    found = prepare(scan, dataclasses.replace(find_profile("mni_grid"), spacing_mm=2.0))
    np.testing.assert_allclose(found.scan.voxels, template.voxels, atol=1e-3 * template.voxels.max())
    np.testing.assert_array_equal(found.mask, template.mask)
    assert found.to_template is not None
    np.testing.assert_array_equal(found.to_template.affine, np.eye(4))
    assert found.scan.flags == ()
    # The whole way back to the file's own grid and order.
    native = carry_back(found.scan.voxels, found.scan.affine, found.to_template)
    np.testing.assert_allclose(native, scan.voxels, atol=1e-3 * template.voxels.max())


def test_a_coarser_grid_averages_noise_and_does_not_pick_it() -> None:
    template = load_brain_template(2.0)
    noise = np.random.default_rng(0).normal(0, 1, template.voxels.shape).astype(np.float32)
    scan = Scan(voxels=noise, affine=template.affine)
    found = prepare(scan, dataclasses.replace(find_profile("mni_grid"), spacing_mm=4.0))
    # A Gaussian of 0.4 * sqrt(3) voxels leaves (1 / (2 sqrt(pi) sigma))^(3/2) of white noise: a little more, by taps.
    assert 0.2 < found.scan.voxels.std() < 0.35


def test_a_volume_elsewhere_is_refused_with_the_profile_that_registers_it() -> None:
    template = load_brain_template(4.0)
    affine = template.affine.copy()
    affine[:3, 3] += 400
    with pytest.raises(ScanError, match=r"does not lie in MNI152.*a corner at \[302.*mni_affine"):
        prepare(Scan(voxels=template.voxels, affine=affine), COARSE_GRID)


def test_a_brain_that_was_not_registered_is_flagged() -> None:
    template = load_brain_template(4.0)
    affine = template.affine.copy()
    affine[0, 3] += 32
    (flag,) = prepare(Scan(voxels=template.voxels, affine=affine), COARSE_GRID).scan.flags
    assert "look at the alignment" in flag


def flip_of(axis: int, count: int) -> np.ndarray:
    """Voxels counted from the other end of an axis."""
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, count - 1
    return flip

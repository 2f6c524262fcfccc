"""Maps carried back from a template's grid to the native one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.profiles import NativeGrid, TemplateTransform, carry_back, carry_mask, lay_back
from neuroray.storage.scan import ScanError

NATIVE = np.array([[0.0, -2.0, 0.0, 40.0], [3.0, 0.0, 0.0, -30.0], [0.0, 0.0, 2.5, 7.0], [0.0, 0.0, 0.0, 1.0]])
TO_TEMPLATE = np.array([[1.1, 0.05, 0.0, 3.0], [-0.04, 0.95, 0.1, -8.0], [0.0, -0.1, 1.05, 2.0], [0.0, 0.0, 0.0, 1.0]])


def make_transform(affine: np.ndarray = TO_TEMPLATE) -> TemplateTransform:
    return TemplateTransform(template="T", affine=affine, native=NativeGrid(shape=(13, 17, 11), affine=NATIVE))


def test_every_voxel_gets_what_the_map_holds_at_its_place():
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = (-70.0, -80.0, -30.0)
    slope = np.array([0.3, -0.2, 0.7])
    # A map that is linear in the world is given back exactly by linear interpolation.
    world = np.moveaxis(np.indices((80, 90, 60)), 0, -1) @ grid[:3, :3].T + grid[:3, 3]
    back = carry_back(world @ slope, grid, make_transform())
    native_world = np.moveaxis(np.indices((13, 17, 11)), 0, -1) @ NATIVE[:3, :3].T + NATIVE[:3, 3]
    wanted = (native_world @ TO_TEMPLATE[:3, :3].T + TO_TEMPLATE[:3, 3]) @ slope
    # float32 of numbers below 100.
    np.testing.assert_allclose(back, wanted, atol=1e-4)


def test_on_one_and_the_same_grid_nothing_changes():
    values = np.random.default_rng(0).normal(size=(13, 17, 11)).astype(np.float32)
    back = carry_back(values, NATIVE, make_transform(np.eye(4)))
    np.testing.assert_allclose(back, values, atol=1e-6)  # float32


def test_outside_the_map_there_is_nothing():
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    far = dataclasses.replace(make_transform(), affine=np.eye(4) + np.eye(4, k=3) * 1000)
    assert not carry_back(np.ones((5, 6, 7)), grid, far).any()
    with pytest.raises(ScanError, match="three axes"):
        carry_back(np.ones((2, 5, 6, 7)), grid, far)


def test_a_mask_is_where_it_was_in_the_world():
    generator = np.random.default_rng(1)
    mask = generator.uniform(size=(13, 17, 11)) < 0.3
    grid = np.diag([2.0, 1.5, 2.0, 1.0])
    grid[:3, 3] = (-20.0, -50.0, -2.0)
    for transform in (make_transform(), None):
        carried = carry_mask(mask, NATIVE, grid, (40, 50, 20), transform)
        assert carried.any()
        # Any voxel of the new grid, by hand: to the person's world, then to the nearest voxel there.
        for index in generator.integers(0, (40, 50, 20), (200, 3)):
            world = grid @ [*index, 1.0]
            native = np.linalg.solve(TO_TEMPLATE, world) if transform else world
            place = np.linalg.solve(NATIVE, native)[:3]
            if np.abs(place - np.round(place)).max() > 0.49:
                continue  # between two voxels: either may be nearest
            near = np.round(place).astype(int)
            inside = (near >= 0).all() and (near < mask.shape).all()
            assert carried[tuple(index)] == (inside and mask[tuple(near)])


def test_a_map_laid_back_lies_over_the_file_of_the_scan(tmp_path: Path):
    voxels = np.random.default_rng(0).normal(size=(17, 13, 11)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, NATIVE), tmp_path / "scan.nii.gz")  # its axes are those of the world, turned
    scan = read_scan(tmp_path / "scan.nii.gz")
    native = NativeGrid(shape=scan.grid_shape, affine=scan.affine, source=scan.source)
    laid = lay_back(scan.voxels, scan.affine, TemplateTransform(template="T", affine=np.eye(4), native=native))
    write_map(laid.voxels, laid, tmp_path / "map.nii.gz")
    written: Any = nib.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.affine, NATIVE, atol=1e-5)  # float32 in the header
    np.testing.assert_allclose(written.get_fdata(), voxels, atol=1e-5)  # float32


def test_amounts_keep_their_sum_on_voxels_of_another_size():
    """A blob well inside both grids: what a voxel holds grows with the voxel."""
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = (-70.0, -80.0, -30.0)
    centre = (TO_TEMPLATE @ NATIVE @ [6.0, 8.0, 5.0, 1.0])[:3]
    world = np.moveaxis(np.indices((80, 90, 60)), 0, -1) @ grid[:3, :3].T + grid[:3, 3]
    # Smooth over several voxels of either grid, so that sums are integrals.
    amounts = np.exp(-((world - centre) ** 2).sum(axis=-1) / (2 * 4.0**2))
    laid = lay_back(amounts, grid, make_transform(), as_amounts=True)
    assert laid.voxels.sum() == pytest.approx(amounts.sum(), rel=0.01)
    plain = lay_back(amounts, grid, make_transform())
    # A native voxel of 2 by 3 by 2.5 mm, grown by the transform, holds 2.09 of the map's.
    assert laid.voxels.sum() / plain.voxels.sum() == pytest.approx(
        15 / 8 * np.linalg.det(TO_TEMPLATE[:3, :3]), rel=1e-5
    )

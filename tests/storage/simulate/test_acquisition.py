"""Grids, storage orders, encodings and noise of simulated scans."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroray.storage.simulate import acquisition


def test_every_storage_order_keeps_each_voxel_where_it_is() -> None:
    stream = np.random.default_rng(0)
    placement = acquisition.place_head((30.0, 40.0, 50.0), 8.0, stream)
    values = stream.random((*placement.shape, 2))
    place, value = (placement.affine @ [1, 2, 3, 1])[:3], values[1, 2, 3]
    for order in itertools.permutations("RAS"):
        codes = tuple(
            code if sign else {"R": "L", "A": "P", "S": "I"}[code] for code, sign in zip(order, (1, 0, 1), strict=True)
        )
        turned, affine = acquisition.store_as(values, placement.affine, codes)
        assert nibabel.aff2axcodes(affine) == codes
        index = np.rint(np.linalg.inv(affine) @ [*place, 1])[:3].astype(int)
        np.testing.assert_allclose(affine @ [*index, 1], [*place, 1], atol=1e-9)
        np.testing.assert_array_equal(turned[tuple(index)], value)


def test_the_field_of_view_holds_the_head() -> None:
    placement = acquisition.place_head((2.0, 2.0, 2.4), 2.0, np.random.default_rng(1))
    for corner in itertools.product((-84, 84), (-118, 84), (-60, 96)):  # the template's head
        index = np.linalg.inv(placement.voxels_to_head) @ [*corner, 1]
        assert np.all(index[:3] > -1)
        assert np.all(index[:3] < placement.shape)
    np.testing.assert_allclose(np.linalg.det(placement.head_to_world[:3, :3]), 1.0)  # nobody is stretched by lying down


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.04, 600.0)])
def test_numbers_survive_storage(tmp_path: Path, slope: float, intercept: float) -> None:
    values = np.random.default_rng(2).uniform(0, 900, (5, 6, 7)).astype(np.float32)
    affine = np.diag([2.0, 2.0, 2.4, 1.0])
    stored = acquisition.encode_int16(values, slope=slope, intercept=intercept)
    nifti = acquisition.make_nifti(stored, affine, slope=slope, intercept=intercept, repetition_time_s=None)
    (tmp_path / "scan.nii").write_bytes(nifti)
    image = nibabel.Nifti1Image.from_filename(tmp_path / "scan.nii")
    assert image.header.get_data_dtype() == np.int16
    np.testing.assert_allclose(np.asarray(image.dataobj), values, atol=slope / 2 + 1e-4)  # rounded to the nearest
    np.testing.assert_allclose(image.affine, affine)


def test_numbers_that_do_not_fit_are_clipped_not_wrapped() -> None:
    stored = acquisition.encode_int16(np.array([-1e9, 1e9]), slope=1.0, intercept=0.0)
    assert stored.tolist() == [-32768, 32767]


def test_noise_is_rician() -> None:
    stream = np.random.default_rng(3)
    noisy = acquisition.add_rician_noise(np.full(200_000, 2.0, dtype=np.float32), 0.5, stream)
    assert (noisy**2).mean() == pytest.approx(2.0**2 + 2 * 0.5**2, rel=0.01)  # the second moment; 4 standard errors
    dark = acquisition.add_rician_noise(np.zeros(200_000, dtype=np.float32), 0.5, stream)
    assert dark.mean() == pytest.approx(0.5 * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh


def test_shading_is_smooth_and_positive() -> None:
    bias = acquisition.draw_bias((30, 31, 32), 0.1, np.random.default_rng(4))
    assert bias.min() > 0.3
    assert np.abs(np.diff(bias, axis=0)).max() < 0.1 * (bias.max() - bias.min()) + 1e-3

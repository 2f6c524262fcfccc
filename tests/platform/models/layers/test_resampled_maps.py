"""Values of patches on voxels: what is dealt out adds up, what is painted stays, and both lie where they came from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuroray.platform.models.layers.resampled_maps import deal_out, paint, share_patches, share_slices
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig, resample_slices

SHAPE = (31, 40, 27)
BOX = (slice(3, 28), slice(5, 38), slice(2, 25))


@pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("sampling", ["resample", "spread"])
@pytest.mark.parametrize("num_slices", [1, 7, 25, 160])
def test_the_sum_is_kept_and_nothing_lies_outside_the_box(axis, sampling, num_slices):
    config = ResampledStackConfig(axis=axis, sampling=sampling, num_slices=num_slices)
    maps = np.random.default_rng(0).normal(size=(num_slices, 5, 3))
    dealt = deal_out(maps, BOX, SHAPE, config)
    assert dealt.sum() == pytest.approx(maps.sum(), abs=1e-10)
    outside = np.ones(SHAPE, dtype=bool)
    outside[BOX] = False
    assert not dealt[outside].any()


def test_as_many_pictures_as_slices_go_back_one_by_one():
    np.testing.assert_allclose(share_slices(25, ResampledStackConfig(num_slices=25)), np.eye(25), atol=1e-12)
    spread = share_slices(9, ResampledStackConfig(num_slices=3, sampling="spread"))
    assert spread.argmax(axis=1).tolist() == [0, 4, 8]
    assert share_slices(1, ResampledStackConfig(num_slices=4)).tolist() == [[1.0]] * 4


def test_a_patch_goes_to_the_voxels_under_it():
    # Five voxels under two patches: the middle one lies in both, so each patch lends it a fifth of its value.
    np.testing.assert_allclose(share_patches(5, 2), [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]], atol=1e-12)


@pytest.mark.parametrize("num_slices", [13, 40, 160])
def test_what_lights_up_in_a_picture_is_laid_over_what_lit_it(num_slices):
    """Pictures of a volume that rises along an axis, painted back, rise the same way at the same places."""
    x, y, z = np.meshgrid(*(np.arange(length, dtype=float) for length in SHAPE), indexing="ij")
    config = ResampledStackConfig(
        num_slices=num_slices, image_size=64, box_threshold=None, normalisation="volume", quantise=False
    )
    for ramp in (x, y, z):
        images = resample_slices(torch.from_numpy(ramp), config).images[:, 0].numpy()
        painted = paint(images, (slice(0, 31), slice(0, 40), slice(0, 27)), SHAPE, config) * ramp.max()
        inner = (slice(2, -2),) * 3
        # Half a picture's stretch at most, of a ramp of one per voxel; at the ends of the axis it has one side only.
        assert np.abs(painted - ramp)[inner].max() < max(0.5, 30 / (num_slices - 1) / 2) + 0.1
        assert np.abs((painted - ramp)[inner].mean()) < 0.02


def test_a_constant_painted_is_that_constant_inside_the_box_alone():
    painted = paint(np.full((9, 4, 4), 2.5), BOX, SHAPE, ResampledStackConfig(num_slices=9))
    np.testing.assert_allclose(painted[BOX], 2.5, atol=1e-12)
    assert painted[0, 0, 0] == 0

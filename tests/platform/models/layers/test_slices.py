"""Slices: which are shown, which grey values they get, how they fit the square, and the way back to the volume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.slices import (
    SliceStackConfig,
    choose_slices,
    place_maps,
    slice_positions_mm,
    stack_slices,
)

ONE_LEVEL = 1.0 / 255


def plain(**changes: Any) -> SliceStackConfig:
    """Pictures of 8 pixels without resizing of 8 by 8 slices, so that voxels can be read off."""
    return SliceStackConfig(**{"num_slices": 4, "image_size": 8, "resize_size": 8, **changes})


@pytest.fixture
def smooth() -> torch.Tensor:
    """A volume of 40 x 56 x 6 voxels without edges, in scanner units."""
    x, y, z = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), torch.arange(6.0), indexing="ij")
    return 500 + 300 * torch.sin(x / 6) * torch.cos(y / 9) + 10 * z


@pytest.mark.parametrize(("depth", "first", "last"), [(182, 66, 115), (50, 0, 49), (51, 0, 49), (101, 25, 74)])
def test_the_central_fifty_are_shown(depth: int, first: int, last: int) -> None:
    index = choose_slices(depth, SliceStackConfig())
    assert index.tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("depth", [1, 7, 30, 33, 49])
def test_a_short_volume_is_shown_whole_and_the_rest_masked(depth: int) -> None:
    index = choose_slices(depth, SliceStackConfig())
    assert len(index) == 50
    assert index[index >= 0].tolist() == list(range(depth))
    assert index[25].item() == depth // 2


@given(depth=st.integers(1, 400), num_slices=st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_whatever_the_sizes_the_middle_is_shown_and_nothing_twice(depth: int, num_slices: int) -> None:
    index = choose_slices(depth, SliceStackConfig(num_slices=num_slices))
    shown = index[index >= 0].tolist()
    assert len(index) == num_slices
    assert depth // 2 in shown
    assert shown == list(range(shown[0], shown[0] + len(shown)))


def test_slices_can_be_chosen_by_distance_in_mm() -> None:
    config = SliceStackConfig(num_slices=5, slice_spacing_mm=3.0)
    assert choose_slices(181, config, spacing_mm=1.0).tolist() == [84, 87, 90, 93, 96]
    assert choose_slices(60, config, spacing_mm=3.0).tolist() == [28, 29, 30, 31, 32]
    assert choose_slices(11, config, spacing_mm=6.0).tolist() == [4, 5, 5, 5, 6], "thick slices are repeated"
    with pytest.raises(ModelError, match="spacing"):
        choose_slices(60, config)


def test_grey_values_are_truncated_to_eight_bits_between_least_and_greatest() -> None:
    volume = torch.zeros(8, 8, 4)
    volume[2, 5] = torch.tensor([1.0, 100.0, 0.5, 0.25])
    volume[3, 5] = torch.tensor([3.0, 400.0, 1.0, 1.0])
    images = stack_slices(volume, plain()).images
    # By hand: floor(255 v / (greatest + 1e-5)); the greatest itself lands on 254, since 1e-5 keeps it below 1.
    assert (images[:, 0, 2, 5] * 255).tolist() == pytest.approx([84, 63, 127, 63], abs=1e-4)
    assert (images[:, 0, 3, 5] * 255).tolist() == pytest.approx([254, 254, 254, 254], abs=1e-4)
    floats = stack_slices(volume, plain(quantise=False)).images
    assert floats[0, 0, 2, 5].item() == pytest.approx(1 / (3 + 1e-5), abs=1e-6)


def test_normalisation_over_the_volume_keeps_slices_comparable() -> None:
    volume = torch.zeros(8, 8, 2)
    volume[2, 5] = torch.tensor([100.0, 200.0])
    images = stack_slices(volume, plain(num_slices=2, normalisation="volume", quantise=False)).images
    assert images[:, 0, 2, 5].tolist() == pytest.approx([0.5, 1.0], abs=1e-6)


@pytest.mark.parametrize("shape", [(40, 57), (320, 391)], ids=["up", "down"])
def test_pictures_match_those_of_the_usual_image_library(shape: tuple[int, int]) -> None:
    from PIL import Image
    from torchvision import transforms

    pipeline = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BILINEAR),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
        ]
    )
    noise = torch.randint(0, 4000, shape)
    image = stack_slices(noise[:, :, None], SliceStackConfig(num_slices=1)).images[0]
    voxels = noise.double().numpy()
    levels = ((voxels - voxels.min()) / (voxels.max() - voxels.min() + 1e-5) * 255).astype(np.uint8)
    expected = pipeline(Image.fromarray(levels).convert("RGB"))
    # The library rounds to 8 bits between its two passes, which moves a pixel by one level at most.
    assert (image - expected).abs().max().item() <= ONE_LEVEL + 1e-6


def test_down_sampling_blurs_first() -> None:
    images = stack_slices(torch.rand(64, 64, 1), plain(num_slices=1, quantise=False)).images
    # Noise of deviation 0.29: over 8 x 8 voxels weighed by a triangle it keeps about 0.03, sampled at points 0.14.
    assert images.std().item() < 0.06


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf, 1e38])
@pytest.mark.parametrize("normalisation", ["slice", "volume"])
def test_a_voxel_that_is_no_number_becomes_black_and_touches_nothing_else(junk: float, normalisation: Any) -> None:
    volume = torch.rand(8, 8, 4) + 1
    volume[0, 0, :] = 1.0  # The least is certain to be elsewhere than the voxel that is spoilt.
    volume[7, 7, :] = 2.0
    config = plain(normalisation=normalisation)
    expected = stack_slices(volume, config).images.clone()
    volume[3, 4, 1] = junk
    expected[1, :, 3, 4] = 0.0
    assert torch.equal(stack_slices(volume, config).images, expected)


def test_slices_without_contrast_or_without_numbers_are_black() -> None:
    volume = torch.rand(8, 8, 4)
    volume[:, :, 0], volume[:, :, 1] = 7.0, torch.nan
    images, mask, _ = stack_slices(volume, plain())
    assert (images[:2] == 0).all()
    assert (images[2:].amax((1, 2, 3)) > 0.9).all()
    assert mask.all(), "an empty slice is still a slice"


@pytest.mark.parametrize(("axis", "voxel"), [("axial", (2, 5, 1)), ("coronal", (2, 1, 5)), ("sagittal", (1, 2, 5))])
def test_rows_and_columns_follow_the_axes_in_order(axis: Any, voxel: tuple[int, int, int]) -> None:
    volume = torch.zeros(8, 8, 8)
    volume[voxel] = 1.0
    images, _, index = stack_slices(volume, plain(axis=axis, num_slices=8))
    assert torch.nonzero(images[:, 0]).tolist() == [[1, 2, 5]]
    assert index.tolist() == list(range(8))


def test_padding_slices_are_black_and_three_channels_are_equal(smooth: torch.Tensor) -> None:
    images, mask, index = stack_slices(smooth, SliceStackConfig(num_slices=10, image_size=32))
    assert mask.tolist() == [False] * 2 + [True] * 6 + [False] * 2
    assert index.tolist() == [-1, -1, 0, 1, 2, 3, 4, 5, -1, -1]
    assert (images[~mask] == 0).all()
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_cropping_cuts_the_long_ends_and_padding_keeps_them() -> None:
    volume = torch.zeros(32, 64, 1)
    volume[:, :3], volume[:, 61:] = 1.0, 1.0
    cropped = stack_slices(volume, SliceStackConfig(num_slices=1, image_size=28)).images
    padded = stack_slices(volume, SliceStackConfig(num_slices=1, image_size=28, fit="pad")).images
    assert (cropped == 0).all()
    assert (padded[0, 0, 7:21, [0, 27]] > 0.9).all(), "the ends lie in the first and last column"
    assert (padded[0, 0, [0, 6, 21, 27]] == 0).all(), "half of the square is border"


def test_spacing_gives_pictures_in_mm() -> None:
    x, y = torch.meshgrid(torch.arange(80.0), torch.arange(40.0), indexing="ij")
    disc = (((x - 39.5) ** 2 + (2 * (y - 19.5)) ** 2) < 30**2).float()[:, :, None]  # A circle on 1 x 2 mm pixels.
    config = SliceStackConfig(num_slices=1, image_size=64, fit="pad", quantise=False)
    seen = stack_slices(disc, config, spacing_mm=(1.0, 2.0, 5.0)).images[0, 0] > 0.5
    height, width = seen.any(1).sum().item(), seen.any(0).sum().item()
    assert abs(height - width) <= 1
    squeezed = stack_slices(disc, config).images[0, 0] > 0.5
    assert squeezed.any(0).sum().item() < 0.6 * height


def test_cubes_of_any_size_are_pictured_alike(smooth: torch.Tensor) -> None:
    config = SliceStackConfig(num_slices=6, image_size=32)
    without = stack_slices(smooth, config).images
    assert torch.equal(stack_slices(smooth, config, spacing_mm=(0.7, 0.7, 0.7)).images, without)


def test_the_stored_dtype_does_not_matter() -> None:
    volume = torch.randint(-1000, 3000, (8, 8, 4))
    expected = stack_slices(volume.float(), plain()).images
    for dtype in (torch.int16, torch.int32, torch.float64):
        assert torch.equal(stack_slices(volume.to(dtype), plain()).images, expected)


def test_the_float_path_passes_gradients_past_a_nan() -> None:
    volume = torch.rand(8, 8, 4)
    volume[3, 4, 1] = torch.nan
    volume.requires_grad_()
    stack_slices(volume, plain(quantise=False)).images.square().sum().backward()
    assert volume.grad is not None
    assert volume.grad.isfinite().all()
    assert volume.grad.abs().sum() > 0


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_maps_are_laid_back_where_their_pictures_came_from(fit: Any, smooth: torch.Tensor) -> None:
    config = SliceStackConfig(num_slices=8, image_size=112, fit=fit, normalisation="volume", quantise=False)
    spacing = (1.0, 1.5, 3.0)
    images, _, index = stack_slices(smooth, config, spacing_mm=spacing)
    placed = place_maps(images[:, 0], index, smooth.shape, config, spacing_mm=spacing)
    wanted = (smooth - smooth.min()) / (smooth.max() - smooth.min() + 1e-5)
    inside = placed > 0
    inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = False, False, False, False
    kept = place_maps(torch.ones(8, 4, 4), index, smooth.shape, config, spacing_mm=spacing) > 0.99
    assert kept.all().item() is (fit == "pad")
    # Sampling up and down again bends a wave of 38 voxels by its curvature, (2 pi / 38)^2 / 8 = 0.4 %, a few times.
    assert (placed - wanted)[inside & kept].abs().max().item() < 0.02


def test_maps_of_padding_and_of_unseen_slices_are_left_out() -> None:
    config = SliceStackConfig(num_slices=4, image_size=8, resize_size=8)
    placed = place_maps(torch.ones(4, 2, 2), torch.tensor([-1, 0, 2, 2]), (8, 8, 5), config)
    assert placed.amax((0, 1)).tolist() == [1.0, 0.0, 1.0, 0.0, 0.0], "a slice shown twice is averaged, not added"


@pytest.mark.parametrize(
    ("volume", "options", "words"),
    [
        (torch.zeros(8, 8), {}, "three axes"),
        (torch.zeros(2, 8, 8, 8), {}, "three axes"),
        (torch.zeros(8, 0, 8), {}, "three axes"),
        (torch.zeros(8, 8, 8, dtype=torch.complex64), {}, "real numbers"),
        (torch.zeros(8, 8, 8), {"spacing_mm": (1.0, 0.0, 1.0)}, "not a voxel size"),
        (torch.zeros(8, 8, 8), {"spacing_mm": (1.0, float("nan"), 1.0)}, "not a voxel size"),
        (torch.zeros(8, 8, 8), {"spacing_mm": (1.0, 1.0)}, "not a voxel size"),
        (torch.zeros(1, 200, 8), {}, "200 times as long"),
    ],
)
def test_volumes_that_cannot_be_pictured_are_refused(volume: torch.Tensor, options: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        stack_slices(volume, SliceStackConfig(), **options)


@pytest.mark.parametrize(
    "options", [{"num_slices": 0}, {"image_size": 0}, {"resize_size": 100}, {"slice_spacing_mm": 0.0}, {"epsilon": 0.0}]
)
def test_settings_that_make_no_picture_are_refused(options: Any) -> None:
    with pytest.raises(ConfigError):
        SliceStackConfig(**options)


def test_positions_are_world_coordinates_of_slice_middles() -> None:
    affine = np.array([[2.0, 0.1, 0, -90], [-0.1, 2.0, 0.2, -120], [0, -0.2, 3.0, -70], [0, 0, 0, 1]])
    found = slice_positions_mm((9, 21, 7), affine, SliceStackConfig(axis="coronal"), np.array([0, 13, -1]))
    assert found[:2].tolist() == [(affine @ [4, 0, 3, 1])[1], (affine @ [4, 13, 3, 1])[1]]
    assert np.isnan(found[2])

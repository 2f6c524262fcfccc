"""Volumes to pictures of their tight box: against scipy and PIL, mirrored, spread, and what is odd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.resampled_slices import (
    ResampledStackConfig,
    find_box,
    nearest_slice,
    resample_slices,
    spline_weights,
)

# One level of 8 bits.
LEVEL = 1 / 255


def draw_head(shape: tuple[int, int, int] = (31, 40, 27), *, seed: int = 0) -> torch.Tensor:
    """A smooth bright body, off the middle, in a dark field."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    inside = ((x - 0.1) / 0.7) ** 2 + ((y + 0.05) / 0.8) ** 2 + (z / 0.75) ** 2 < 1
    voxels = inside * (80 + 30 * ndimage.gaussian_filter(rng.normal(size=shape), 2) / 0.05)
    return torch.from_numpy(np.clip(voxels, 20 * inside, None).astype(np.float32))


@pytest.mark.parametrize(("stored", "wanted"), [(31, 160), (160, 160), (193, 160), (2, 7), (1, 5)])
def test_the_matrix_does_what_scipy_zoom_does_along_one_axis(stored: int, wanted: int) -> None:
    volume = np.random.default_rng(0).normal(size=(stored, 5, 6))
    expected = ndimage.zoom(volume, (wanted / stored, 1, 1), order=3)
    # zoom also filters and evaluates the other axes, which gives their values back but for rounding in float64.
    np.testing.assert_allclose(np.einsum("ws,sij->wij", spline_weights(stored, wanted), volume), expected, atol=1e-12)


def test_pictures_are_those_of_the_steps_by_scipy_and_pil() -> None:
    volume = draw_head()
    stack = resample_slices(volume, ResampledStackConfig())
    scaled = (volume.numpy() - volume.min().item()) / (volume.max() - volume.min()).item()
    labels, _ = ndimage.label(scaled > 0.1)
    box = ndimage.find_objects(1 * (labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1))[0]
    assert stack.box == box
    resampled = ndimage.zoom(volume.numpy()[box].astype(np.float64), (160 / (box[0].stop - box[0].start), 1, 1))
    for index in (0, 40, 83, 159):
        picture = resampled[index] - resampled[index].min()
        picture = (picture / picture.max() * 255).astype(np.uint8)
        expected = np.asarray(Image.fromarray(picture).resize((224, 224), Image.Resampling.BILINEAR)) / 255
        found = stack.images[index].numpy()
        assert (found[0] == found[1]).all()
        assert (found[0] == found[2]).all()
        # PIL rounds to 8 bits between its two passes, and in fixed point; a grey value on the edge may fall either way.
        assert np.abs(found[0] - expected).max() <= 2.01 * LEVEL
        assert np.abs(found[0] - expected).mean() < 0.3 * LEVEL


def test_a_mirrored_volume_gives_the_pictures_in_reverse() -> None:
    volume = draw_head()
    stack = resample_slices(volume, ResampledStackConfig(image_size=48))
    mirrored = resample_slices(volume.flip(0), ResampledStackConfig(image_size=48))
    difference = (mirrored.images - stack.images.flip(0)).abs()
    # The spline's sums add in another order, so that a grey value on the edge of two levels may fall to the other.
    assert difference.max() <= 1.01 * LEVEL
    assert (difference > 0).float().mean() < 1e-3
    assert torch.allclose(mirrored.place, len(volume) - 1 - stack.place.flip(0))


def test_spread_slices_are_stored_ones_from_the_first_to_the_last() -> None:
    config = ResampledStackConfig(sampling="spread", num_slices=32, normalisation="volume", box_threshold=None)
    volume = draw_head((75, 20, 21))
    stack = resample_slices(volume, config)
    assert stack.place.tolist() == np.floor(np.linspace(0, 74, 32)).tolist()
    assert stack.place[0] == 0
    assert stack.place[-1] == 74
    wide = resample_slices(volume, ResampledStackConfig(**{**config.to_json(), "normalisation": "slice"}))
    # By slice every picture with something in it reaches white (or nearly, after resizing); by volume only a few do.
    assert (wide.images.amax((1, 2, 3)) > 0.94).sum() > 20
    assert (stack.images.amax((1, 2, 3)) > 0.94).sum() < 5


def test_the_box_is_that_of_the_largest_part_and_leaves_specks_out() -> None:
    volume = torch.zeros(20, 21, 22)
    volume[4:12, 5:15, 6:18] = 100.0
    volume[18, 20, 1] = 90.0
    assert find_box(volume, 0.1) == (slice(4, 12), slice(5, 15), slice(6, 18))
    assert find_box(volume, None) == (slice(0, 20), slice(0, 21), slice(0, 22))
    volume[:, :, 0] = 9.9  # below a tenth of the range: air
    assert find_box(volume, 0.1)[2] == slice(6, 18)


def test_places_count_from_the_first_stored_slice() -> None:
    volume = torch.zeros(20, 21, 22)
    volume[4:13, 5:15, 6:18] = torch.rand(9, 10, 12, generator=torch.Generator().manual_seed(0)) + 1
    stack = resample_slices(volume, ResampledStackConfig(num_slices=5, image_size=16))
    assert stack.place.tolist() == [4, 6, 8, 10, 12]
    assert nearest_slice(torch.tensor([3.4, 3.5, 4.0])).tolist() == [3, 4, 4]


def test_values_that_are_no_numbers_count_as_the_least() -> None:
    volume = draw_head()
    clean = resample_slices(volume, ResampledStackConfig(num_slices=9, image_size=24))
    for wrong in (float("nan"), float("inf"), -float("inf"), 3e38):
        spoiled = volume.clone()
        spoiled[0, 0, :] = wrong  # outside of the head, where the least value stands anyway
        found = resample_slices(spoiled, ResampledStackConfig(num_slices=9, image_size=24))
        assert torch.equal(found.images, clean.images)


def test_a_slice_without_contrast_is_black() -> None:
    volume = torch.zeros(9, 12, 13)
    volume[1:8, 2:10, 3:11] = 50.0
    volume[4, 4, 4] = 70.0
    stack = resample_slices(volume, ResampledStackConfig(sampling="spread", num_slices=7, image_size=16))
    assert stack.images[:3].max() == 0
    assert stack.images[3].max() > 0
    assert stack.images.isfinite().all()


@pytest.mark.parametrize("volume", [torch.full((5, 6, 7), 3.0), torch.full((5, 6, 7), float("nan"))])
def test_a_volume_that_is_the_same_everywhere_is_refused(volume: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="the same everywhere"):
        resample_slices(volume, ResampledStackConfig())


@pytest.mark.parametrize("shape", [(5, 6), (0, 4, 5), (2, 3, 4, 5)])
def test_what_has_no_three_axes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="three axes"):
        resample_slices(torch.zeros(shape), ResampledStackConfig())


@pytest.mark.parametrize("changes", [{"num_slices": 0}, {"image_size": 0}, {"box_threshold": 1.0}])
def test_sizes_that_make_no_pictures_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError):
        ResampledStackConfig(**changes)

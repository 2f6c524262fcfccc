"""A volume as pictures of its tight box, resampled along one axis to a fixed number: as BrainRotViT looks at it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from neuroray.config import Config, ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.slices import AXES, find_range, scale_grey

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResampledStackConfig(Config):
    """How the tight box of a volume becomes pictures; the defaults are BrainRotViT's second stage.

    Attributes:
        axis: Sagittal slices are y by z: rows run from back to front, columns from below upwards.
        num_slices: Pictures per volume.
        sampling: "resample": the box is resampled along the axis to exactly `num_slices`, by a cubic spline whose first
            and last samples are the first and last stored slice. "spread": the stored slices
            `floor(linspace(0, depth - 1, num_slices))`, the first and the last among them.
        box_threshold: The box is that of the largest connected part (by faces) of what is brighter than this fraction
            of the way from the volume's least to its greatest value; None: the whole volume.
        image_size: Height and width of a picture, to which a slice is stretched: proportions are not kept.
        normalisation: Grey values are scaled to 0..1 by the least and greatest of each slice, or of the whole volume.
        quantise: Truncates to 8 bits before resizing and rounds to 8 bits after, as picture files do.
    """

    axis: Literal["axial", "coronal", "sagittal"] = "sagittal"
    num_slices: int = 160
    sampling: Literal["resample", "spread"] = "resample"
    box_threshold: float | None = 0.1
    image_size: int = 224
    normalisation: Literal["slice", "volume"] = "slice"
    quantise: bool = True

    def __post_init__(self) -> None:
        for name in ("num_slices", "image_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", given=getattr(self, name), expected="at least 1")
        if self.box_threshold is not None and not 0 <= self.box_threshold < 1:
            raise ConfigError("box_threshold is no fraction", given=self.box_threshold, expected="0 <= fraction < 1")


class ResampledStack(NamedTuple):
    """Pictures of one volume.

    Attributes:
        images: `slice 3 height width` in 0..1, three equal channels (a view of one).
        place: `slice`: where along the canonical axis each picture lies, in slices from the first one's middle.
        box: What was cut out, along x, y, z.
    """

    images: Float[Tensor, "slice 3 height width"]
    place: Float[Tensor, " slice"]
    box: Box


def resample_slices(volume: Shaped[Tensor, "x y z"], config: ResampledStackConfig) -> ResampledStack:
    """Cuts the tight box of a RAS+ volume into pictures (BrainRotViT's released preprocessing, after skull strip).

    Per picture: min-max, 8 bits by truncation, bilinear antialiased resize without regard to proportions, grey to RGB.
    NaN, infinite and absurd values (beyond 1e30) count as the least value; constant slices are black.

    Raises:
        ModelError: a volume without three axes or without voxels, or one that is the same everywhere.
    """
    _check_volume(volume)
    axis = AXES[config.axis]
    low, high = find_range(volume, "volume")
    filled = torch.where(volume.double().abs() < 1e30, volume.double(), low)
    box = find_box(filled, config.box_threshold)
    slices = filled[box].movedim(axis, 0)
    place = _place_slices(len(slices), config).to(volume.device)
    if config.sampling == "resample":
        weights = torch.tensor(spline_weights(len(slices), config.num_slices), device=volume.device)
        chosen = torch.einsum("so,o...->s...", weights, slices)
    else:
        chosen = slices[place.long()]
    if config.normalisation == "slice":
        low, high = find_range(chosen, "slice")
    grey = scale_grey(chosen.clamp(low, high), low, high, epsilon=0.0, quantise=config.quantise)
    size = (config.image_size, config.image_size)
    pictures = functional.interpolate(grey[:, None], size, mode="bilinear", antialias=True)
    if config.quantise:
        pictures = torch.round(pictures * 255) / 255
    return ResampledStack(pictures.expand(-1, 3, -1, -1), place + box[axis].start, box)


def find_box(volume: Shaped[Tensor, "x y z"], threshold: float | None) -> Box:
    """The tight box around the largest connected part that is brighter than this fraction of the volume's range.

    Args:
        volume: Finite values.
        threshold: Between 0 and 1; None: the whole volume.

    Raises:
        ModelError: all values are the same, so that nothing stands out.
    """
    if threshold is None:
        return tuple(slice(0, length) for length in volume.shape)  # type: ignore[return-value]
    low, high = volume.min(), volume.max()
    if not high > low:
        raise ModelError(
            "the volume is the same everywhere, so there is no head in it",
            given=f"{float(low):g} in all of {' x '.join(map(str, volume.shape))} voxels",
            expected="a scan of a head",
        )
    bright = ((volume - low) / (high - low) > threshold).cpu().numpy()
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(bright))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return ndimage.find_objects((labels == sizes.argmax()).astype(np.uint8))[0]


@lru_cache(maxsize=64)
def spline_weights(num_stored: int, num_wanted: int) -> Float[np.ndarray, "wanted stored"]:
    """The matrix by which `scipy.ndimage.zoom` of order 3 makes so many slices of so many along one axis.

    Resampling one axis is linear: a product with this matrix costs a fraction of `zoom`, which filters the other two
    axes as well, and its transpose takes maps back. Read-only.
    """
    columns = [np.asarray(ndimage.zoom(one, num_wanted / num_stored, order=3)) for one in np.eye(num_stored)]
    weights = np.stack(columns, axis=1)
    weights.flags.writeable = False
    return weights


def _place_slices(depth: int, config: ResampledStackConfig) -> Float[Tensor, " slice"]:
    places = np.linspace(0, depth - 1, config.num_slices)
    return torch.from_numpy(np.floor(places) if config.sampling == "spread" else places)


def nearest_slice(place: Float[Tensor, " slice"]) -> Int[Tensor, " slice"]:
    """The stored slice nearest to each place."""
    return torch.floor(place + 0.5).long()


def _check_volume(volume: Tensor) -> None:
    if volume.ndim != 3 or volume.numel() == 0:
        raise ModelError("a volume has three axes, none empty", given=f"shape {tuple(volume.shape)}", expected="x y z")
    if volume.is_complex():
        raise ModelError("a volume holds real numbers", given=volume.dtype, fix="pass the magnitude")

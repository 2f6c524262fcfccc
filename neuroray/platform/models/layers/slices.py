"""A volume as a stack of pictures for a 2D encoder: which slices, which grey values, how they fit the square."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from neuroray.config import Config, ConfigError
from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The volume axis (x, y, z of RAS+) that is left out of each kind of slice."""

_LARGEST_VALUE = 1e30  # Beyond it the difference of two values may not fit float32; no scanner writes such numbers.
_LARGEST_ASPECT = 16.0  # A picture longer than this, resized by its short side, would fill memory for nothing.


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceStackConfig(Config):
    """How a volume becomes pictures; the defaults are DinoAtten3D's.

    Attributes:
        axis: Axial slices are x by y, coronal x by z, sagittal y by z: rows are the first axis, columns the second.
        num_slices: Pictures per volume, taken around the middle: from `depth // 2 - num_slices // 2` on. Where the
            volume is shorter, the rest is black and masked.
        slice_spacing_mm: None takes every stored slice, whatever its thickness. A number takes the stored slice nearest
            to each multiple of it from the middle slice (so slices further apart than this are repeated), and needs
            `spacing_mm` of the volume.
        image_size: Height and width of a picture.
        fit: "crop" resizes the short side to `resize_size` and cuts out the middle square; "pad" keeps the whole field,
            with black borders.
        resize_size: For "crop"; None: `image_size * 256 / 224`.
        normalisation: Grey values are scaled to 0..1 by the least and greatest of each slice, or of the whole volume.
        epsilon: Added to greatest minus least, in the volume's own units; so constant slices become black.
        quantise: Truncates to 8 bits before resizing and rounds to 8 bits after, as picture files do. False keeps
            floats (and gradients with respect to the volume).
    """

    axis: Literal["axial", "coronal", "sagittal"] = "axial"
    num_slices: int = 50
    slice_spacing_mm: float | None = None
    image_size: int = 224
    fit: Literal["crop", "pad"] = "crop"
    resize_size: int | None = None
    normalisation: Literal["slice", "volume"] = "slice"
    epsilon: float = 1e-5
    quantise: bool = True

    def __post_init__(self) -> None:
        for name in ("num_slices", "image_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is too small", given=getattr(self, name), expected="at least 1")
        if self.resize_size is not None and self.resize_size < self.image_size:
            raise ConfigError(
                "resize_size is smaller than the square cut out of it",
                given=self.resize_size,
                expected=f"at least image_size = {self.image_size}",
            )
        if self.slice_spacing_mm is not None and not self.slice_spacing_mm > 0:
            raise ConfigError("slice_spacing_mm is not positive", given=self.slice_spacing_mm)
        if not self.epsilon > 0:
            raise ConfigError("epsilon is not positive", given=self.epsilon)

    @property
    def short_side(self) -> int:
        """The short side of a slice in pixels after resizing, when `fit` is "crop"."""
        return self.resize_size if self.resize_size is not None else round(self.image_size * 256 / 224)


class SlicePlan(Protocol):
    """A configuration that says how a volume becomes pictures, as far as those who keep vectors of slices ask."""

    @property
    def axis(self) -> Literal["axial", "coronal", "sagittal"]:
        """Which kind of slice."""
        ...

    @property
    def num_slices(self) -> int:
        """Pictures per volume."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of a picture."""
        ...

    def fingerprint(self) -> str:
        """Of all that decides the pictures."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        ...


class SliceFeatures(NamedTuple):
    """A volume as a model of slices takes it, once a frozen encoder has seen its pictures.

    Attributes:
        features: `slice channel`, float32; zeros where masked.
        mask: `slice`: True where something of the volume was encoded.
        slice_index: `slice`: which stored slice along the canonical axis, the nearest one where pictures lie between
            two; -1 where masked.
        slice_place: `slice`: where along that axis the picture lies, in slices from the first one's middle; -1 where
            masked. The same as `slice_index` where stored slices are shown as they are.
    """

    features: Float[Tensor, "slice channel"]
    mask: Bool[Tensor, " slice"]
    slice_index: Int[Tensor, " slice"]
    slice_place: Float[Tensor, " slice"]


class SliceStack(NamedTuple):
    """Pictures of one volume.

    Attributes:
        images: `slice 3 height width` in 0..1, three equal channels (a view of one); black where masked.
        mask: `slice`: True where a stored slice is shown.
        slice_index: `slice`: which one along the canonical axis; -1 where masked.
    """

    images: Float[Tensor, "slice 3 height width"]
    mask: Bool[Tensor, " slice"]
    slice_index: Int[Tensor, " slice"]


class _Frame(NamedTuple):
    """Pixel (i, j) of the square picture is pixel (i + top, j + left) of the slice resized to height by width."""

    height: int
    width: int
    top: int
    left: int


def stack_slices(
    volume: Shaped[Tensor, "x y z"], config: SliceStackConfig, *, spacing_mm: Sequence[float] | Tensor | None = None
) -> SliceStack:
    """Cuts a RAS+ volume into pictures.

    Per slice: min-max with `epsilon`, 8 bits by truncation, grey to RGB, bilinear antialiased resize, then crop or pad
    (DinoAtten3D's released preprocessing, after reorientation to RAS+). The encoder does the rest (mean and deviation).

    Args:
        volume: Any real dtype. NaN, infinite and absurd values (beyond 1e30) become black pixels; nothing else changes.
        config: How.
        spacing_mm: Voxel size along x, y, z. Given, pictures keep the proportions in mm; None takes voxels as cubes.

    Raises:
        ModelError: a volume without three axes or without voxels, a spacing that is not positive, a slice far longer
            than wide, or `slice_spacing_mm` without `spacing_mm`.
    """
    spacing = _check_spacing(spacing_mm)
    _check_volume(volume)
    axis = AXES[config.axis]
    index = choose_slices(volume.shape[axis], config, spacing_mm=None if spacing is None else spacing[axis])
    index = index.to(volume.device)
    mask = index >= 0
    slices = volume.movedim(axis, 0)
    chosen = slices[index[mask]]
    low, high = find_range(slices if config.normalisation == "volume" else chosen, config.normalisation)
    grey = scale_grey(chosen, low, high, epsilon=config.epsilon, quantise=config.quantise)
    pictures = _fit_square(grey, _plan_frame(volume.shape, spacing, config), config)
    images = pictures.new_zeros((config.num_slices, *pictures.shape[1:]))
    images = images.masked_scatter(mask[:, None, None], pictures)
    return SliceStack(images[:, None].expand(-1, 3, -1, -1), mask, index)


def choose_slices(depth: int, config: SliceStackConfig, *, spacing_mm: float | None = None) -> Int[Tensor, " slice"]:
    """Indices of the slices shown, in order along the axis; -1 where there is none.

    Args:
        depth: Stored slices.
        config: `num_slices` and `slice_spacing_mm` count.
        spacing_mm: Distance of the stored slices; needed with `slice_spacing_mm`.

    Raises:
        ModelError: `slice_spacing_mm` is set and `spacing_mm` is not given.
    """
    offset = torch.arange(config.num_slices) - config.num_slices // 2
    if config.slice_spacing_mm is not None:
        if spacing_mm is None:
            raise ModelError(
                "slice_spacing_mm cannot be honoured without the volume's spacing",
                expected="spacing_mm beside the volume",
                fix="pass the scan's zooms in mm, or set slice_spacing_mm to None",
            )
        offset = torch.round(offset.double() * (config.slice_spacing_mm / spacing_mm)).long()
    index = depth // 2 + offset
    return torch.where((index >= 0) & (index < depth), index, -1)


def find_range(slices: Shaped[Tensor, "slice row column"], normalisation: str) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each slice, or of all ("volume"), in float64; absurd ones are left out.

    Returns:
        Two tensors that broadcast against the slices; 0 where there is no value at all.
    """
    values = slices.double()
    usable = values.abs() < _LARGEST_VALUE
    axes = (0, 1, 2) if normalisation == "volume" else (1, 2)
    low = torch.where(usable, values, torch.inf).amin(axes, keepdim=True)
    high = torch.where(usable, values, -torch.inf).amax(axes, keepdim=True)
    nothing = low > high
    return torch.where(nothing, 0.0, low), torch.where(nothing, 0.0, high)


def scale_grey(
    slices: Shaped[Tensor, "slice row column"], low: Tensor, high: Tensor, *, epsilon: float, quantise: bool
) -> Float[Tensor, "slice row column"]:
    """Values between these bounds to 0..1 (to whole numbers of 0..255 over 255 when quantised).

    What is absurd or no number becomes 0, and so does all of it where both bounds are the same.
    """
    # In float64, as the released code has it: there epsilon keeps even a greatest value of thousands below level 255.
    values = slices.double()
    usable = values.abs() < _LARGEST_VALUE
    span = high - low + epsilon
    grey = (torch.where(usable, values, low) - low) / torch.where(span > 0, span, 1.0)
    return (torch.floor(grey * 255) / 255 if quantise else grey).float()


def place_maps(
    maps: Float[Tensor, "slice height width"],
    slice_index: Int[Tensor, " slice"],
    grid_shape: Sequence[int],
    config: SliceStackConfig,
    *,
    spacing_mm: Sequence[float] | Tensor | None = None,
) -> Float[Tensor, "x y z"]:
    """Lays one map per picture back on the grid of the volume: the way of `stack_slices`, backwards.

    Args:
        maps: Each covers its whole picture, at any resolution (a ViT's patch grid too); resized bilinearly.
        slice_index: As `SliceStack` gives it; maps with index -1 are left out, and maps of one slice are averaged.
        grid_shape: x, y, z of the volume.
        config: The one that made the pictures.
        spacing_mm: The one that made the pictures.

    Returns:
        Values on the volume's grid; 0 where no picture looked (other slices, and what "crop" cut off).
    """
    frame = _plan_frame(grid_shape, _check_spacing(spacing_mm), config)
    axis, size = AXES[config.axis], config.image_size
    rows, columns = (length for other, length in enumerate(grid_shape) if other != axis)
    shown = slice_index >= 0
    square = functional.interpolate(maps[shown][:, None].float(), (size, size), mode="bilinear", antialias=True)
    sides = (frame.left, frame.width - size - frame.left, frame.top, frame.height - size - frame.top)
    whole = functional.pad(square, sides)
    slices = functional.interpolate(whole, (rows, columns), mode="bilinear", antialias=True)[:, 0]
    placed = slices.new_zeros((grid_shape[axis], rows, columns)).index_add(0, slice_index[shown], slices)
    counts = torch.bincount(slice_index[shown], minlength=grid_shape[axis]).clamp(min=1)
    return (placed / counts[:, None, None]).movedim(0, axis)


def _check_volume(volume: Tensor) -> None:
    if volume.ndim != 3 or volume.numel() == 0:
        raise ModelError("a volume has three axes, none empty", given=f"shape {tuple(volume.shape)}", expected="x y z")
    if volume.is_complex():
        raise ModelError("a volume holds real numbers", given=volume.dtype, fix="pass the magnitude")


def _check_spacing(spacing_mm: Sequence[float] | Tensor | None) -> tuple[float, float, float] | None:
    if spacing_mm is None:
        return None
    values = [float(value) for value in spacing_mm]
    if len(values) != 3 or not all(0 < value < float("inf") for value in values):
        raise ModelError("spacing_mm is not a voxel size", given=values, expected="three positive lengths, x y z in mm")
    return values[0], values[1], values[2]


def _plan_frame(
    grid_shape: Sequence[int], spacing: tuple[float, float, float] | None, config: SliceStackConfig
) -> _Frame:
    rows, columns = (axis for axis in range(3) if axis != AXES[config.axis])
    # In units of the row spacing, so that cubes of any size give exactly the numbers that no spacing gives.
    stretch = 1.0 if spacing is None else spacing[columns] / spacing[rows]
    height, width = float(grid_shape[rows]), grid_shape[columns] * stretch
    size = config.image_size
    if config.fit == "pad":
        scale = size / max(height, width)
        fitted_height, fitted_width = max(1, round(height * scale)), max(1, round(width * scale))
        return _Frame(fitted_height, fitted_width, -((size - fitted_height) // 2), -((size - fitted_width) // 2))
    short, long = min(height, width), max(height, width)
    if long / short > _LARGEST_ASPECT:
        raise ModelError(
            f"a slice is {long / short:.0f} times as long as wide, which leaves nothing of it after a square crop",
            given=f"grid {tuple(grid_shape)}, spacing {spacing}",
            expected=f"at most {_LARGEST_ASPECT:.0f} times",
            fix='check the axes and the spacing of the scan, or use fit="pad"',
        )
    longer = int(config.short_side * long / short)
    resized = (config.short_side, longer) if height <= width else (longer, config.short_side)
    return _Frame(*resized, round((resized[0] - size) / 2), round((resized[1] - size) / 2))


def _fit_square(grey: Tensor, frame: _Frame, config: SliceStackConfig) -> Float[Tensor, "shown size size"]:
    size = config.image_size
    if len(grey) == 0:
        return grey.new_zeros((0, size, size))
    resized = functional.interpolate(grey[:, None], (frame.height, frame.width), mode="bilinear", antialias=True)[:, 0]
    if config.quantise:
        resized = torch.round(resized * 255) / 255
    sides = (-frame.left, size - frame.width + frame.left, -frame.top, size - frame.height + frame.top)
    return functional.pad(resized, sides)


def slice_positions_mm(
    scan_shape: Sequence[int],
    affine: Float[np.ndarray, "4 4"],
    slices: SlicePlan,
    slice_index: Shaped[np.ndarray, " slice"],
) -> Float[np.ndarray, " slice"]:
    """World coordinate, along the slice axis, of the middle of each slice, or place between slices; NaN for -1."""
    axis = AXES[slices.axis]
    centre = np.array([*((length - 1) / 2 for length in scan_shape), 1.0])
    points = np.repeat(centre[None], len(slice_index), axis=0)
    points[:, axis] = slice_index
    return np.where(slice_index >= 0, points @ affine[axis], np.nan)

"""BrainRotViT: sagittal slices through a frozen ViT, the map of their vectors through a residual CNN, sex last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.brainrotvit.config import BrainRotViTConfig
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.resampled_slices import nearest_slice, resample_slices
from neuroray.platform.models.layers.slices import SliceFeatures

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

MALE, FEMALE, UNKNOWN_SEX = 0.0, 1.0, 0.5
"""Sex as the head takes it. It joins at the last layer, which is linear: halfway is the mean of both answers."""


def encode_sex(sex: str | None) -> float:
    """Sex as the head takes it: of `M`, of `F`, of anything else."""
    return {"M": MALE, "F": FEMALE}.get(sex or "", UNKNOWN_SEX)


class BrainRotViTOutput(NamedTuple):
    """What the model says of each volume. A tuple, so that parallel wrappers find the tensors in it.

    Attributes:
        outputs: `batch output`: an age in years, quantiles of it, or logits.
    """

    outputs: Float[Tensor, "batch output"]


class ResidualBlock(nn.Module):
    """Convolution without padding, SiLU, maximum over 2 x 2 at stride 1; added: the input by a 1 x 1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel)
        self.skip = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, maps: Float[Tensor, "batch channel row column"]) -> Float[Tensor, "batch out row_out column_out"]:
        """The block's maps, smaller by the kernel on either axis."""
        main = functional.max_pool2d(functional.silu(self.conv(maps)), 2, stride=1)
        # Picking the nearest before the 1 x 1 convolution gives the same numbers as after it, for fewer of them.
        return main + self.skip(functional.interpolate(maps, main.shape[-2:], mode="nearest"))


class BrainRotViTHead(nn.Module):
    """Residual blocks over the map of slices by channels, then linear layers, sex beside the last one's inputs."""

    map_mean: Tensor
    map_scale: Tensor
    output_spread: Tensor

    def __init__(self, config: BrainRotViTConfig) -> None:
        super().__init__()
        self.config = config
        self.map_shape = (config.slices.num_slices, config.num_channels)
        rows, columns = config.map_shapes()[-1]
        if config.standardise:
            self.register_buffer("map_mean", torch.zeros(self.map_shape))
            self.register_buffer("map_scale", torch.ones(self.map_shape))
        if config.scale_outputs:
            self.register_buffer("output_spread", torch.ones(()))
        self.project = None if config.project is None else nn.Linear(config.num_channels, config.project)
        widths = (1, *config.widths)
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, kernel)
            for (before, after), kernel in zip(pairwise(widths), config.kernels, strict=True)
        )
        sizes = (config.widths[-1] * rows * columns, *config.hidden)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in config.hidden)
        self.answer = nn.Linear(config.hidden[-1] + 1, config.num_outputs)

    def forward(
        self, features: Float[Tensor, "batch slice channel"], sex: Float[Tensor, " batch"] | None = None
    ) -> BrainRotViTOutput:
        """Answers for maps.

        Args:
            features: Vectors of the encoder, one row per slice from left to right; cast to the head's dtype.
            sex: 0 male, 1 female; 0.5, or no number, where it is not known: the mean of both answers. None: of nobody.

        Raises:
            ModelError: a map or a list of sexes of another shape.
        """
        if features.ndim != 3 or tuple(features.shape[1:]) != self.map_shape:
            raise ModelError(
                "maps do not fit the head", given=tuple(features.shape), expected=("batch", *self.map_shape)
            )
        dtype = self.answer.weight.dtype
        sex = self._check_sex(sex, features).to(dtype)
        output = self._look(features.to(dtype), sex)
        if self.config.mirror and not self.training:
            output = (output + self._look(features.flip(1).to(dtype), sex)) / 2
        return BrainRotViTOutput(output)

    def fit_scale(self, maps: Iterable[Float[Tensor, "slice channel"]]) -> None:
        """Takes the statistics for `standardise` from the training scans; places alike in all scans stay.

        Raises:
            ModelError: the configuration does not standardise, or there are fewer than two maps.
        """
        number, total, squares = 0, torch.zeros(self.map_shape).double(), torch.zeros(self.map_shape).double()
        for one in maps:
            number += 1
            total += one.double()
            squares += one.double().square()
        if not self.config.standardise or number < 2:
            raise ModelError(
                "there is nothing to standardise by",
                given=f"standardise {self.config.standardise}, {number} maps",
                expected="standardise on and two maps or more",
            )
        mean = total / number
        scale = (squares / number - mean.square()).clamp_min(0).sqrt()
        self.map_mean.copy_(mean)
        # Below this the sums have no digits left: such a place is constant, and dividing would blow up rounding.
        self.map_scale.copy_(torch.where(scale > 1e-6 * mean.abs() + 1e-12, scale, 1.0))

    @torch.no_grad()
    def set_level(self, level: float | Sequence[float], *, spread: float = 1.0) -> None:
        """Sets where it starts from: the bias of each output (from 0, raw years are a long way), and its step.

        Args:
            level: What every output says at first, more or less.
            spread: In how large units the last layer answers, where the configuration scales outputs.
        """
        if self.config.scale_outputs:
            self.output_spread.fill_(spread)
        else:
            spread = 1.0
        self.answer.bias.copy_(torch.as_tensor(level, dtype=self.answer.bias.dtype) / spread)

    def _look(self, features: Tensor, sex: Tensor) -> Float[Tensor, "batch output"]:
        if self.config.standardise:
            features = (features - self.map_mean) / self.map_scale
        features = functional.dropout(features, self.config.input_dropout, self.training)
        if self.config.pool_slices > 1:
            features = features.unflatten(1, (-1, self.config.pool_slices)).mean(2)
        if self.project is not None:
            features = self.project(features)
        maps = features[:, None]
        for block in self.blocks:
            maps = block(maps)
        hidden = maps.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = functional.dropout(functional.silu(norm(layer(hidden))), self.config.dropout, self.training)
        answer = self.answer(torch.cat([hidden, sex[:, None]], dim=1))
        return answer * self.output_spread if self.config.scale_outputs else answer

    def _check_sex(self, sex: Tensor | None, features: Tensor) -> Float[Tensor, " batch"]:
        if sex is None:
            return features.new_full((len(features),), UNKNOWN_SEX)
        if tuple(sex.shape) != (len(features),):
            raise ModelError("one sex per map", given=tuple(sex.shape), expected=(len(features),))
        return torch.where(sex.isfinite(), sex, UNKNOWN_SEX)


class BrainRotViT(nn.Module):
    """The whole model, from RAS+ volumes to answers."""

    def __init__(self, config: BrainRotViTConfig, *, load_weights: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build(config.slices.image_size, load_weights=load_weights)
        self.head = config.build_head()

    def encode(
        self, volume: Shaped[Tensor, "x y z"], *, spacing_mm: Sequence[float] | Tensor | None = None
    ) -> SliceFeatures:
        """The map of one volume: what the feature store keeps. No gradient passes.

        Args:
            volume: RAS+, any real dtype; see `resample_slices` for what happens to NaN.
            spacing_mm: Taken so that all models of slices are called alike; pictures are stretched whatever it is.

        Raises:
            ModelError: see `resample_slices`.
        """
        del spacing_mm
        images, place, _ = resample_slices(volume, self.config.slices)
        everything = torch.ones(len(place), dtype=torch.bool, device=volume.device)
        return SliceFeatures(self.encoder(images), everything, nearest_slice(place), place)

    def forward(
        self, volume: Shaped[Tensor, "batch x y z"], *, sex: Float[Tensor, " batch"] | None = None
    ) -> BrainRotViTOutput:
        """Answers for volumes; each is encoded by itself, so that a batch changes nothing.

        Raises:
            ModelError: see `resample_slices` and `BrainRotViTHead`.
        """
        if volume.ndim != 4 or len(volume) == 0:
            raise ModelError("volumes come in a batch", given=f"shape {tuple(volume.shape)}", expected="batch x y z")
        return self.head(torch.stack([self.encode(one).features for one in volume]), sex)

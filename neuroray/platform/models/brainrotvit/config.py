"""BrainRotViTConfig: sizes and options of the model; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from neuroray.config import Config, ConfigError
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig

if TYPE_CHECKING:
    from neuroray.platform.models.brainrotvit.model import BrainRotViT, BrainRotViTHead

BACKBONE = "vit_base_patch16_224.orig_in21k_ft_in1k"
"""timm's twin of the weights that the authors start from, google/vit-base-patch16-224; the bare name is another set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainRotViTConfig(Config):
    """BrainRotViT; the defaults are the paper's sizes (50,374,296 parameters behind the frozen encoder).

    Attributes:
        slices: How a volume becomes pictures.
        encoder: The frozen 2D encoder, which gives the mean over all tokens, that of the class among them.
        kernels: Of each residual block's convolution: slices by channels of the map.
        widths: Channels that each block makes.
        hidden: Widths of the layers between blocks and answer.
        dropout: After each of those.
        num_outputs: Numbers that it answers with: 1 for an age, one per quantile, one per class.
        mirror: Answer with the mean over the map and its mirror image (slices in reverse: the head seen from the other
            side), in eval mode only. The authors do not.
        standardise: Subtract from each place of the map its mean over training scans and divide by its spread between
            them (`fit_scale`). The authors do not; random encoders need it.
        scale_outputs: Multiply the last layer's answer by the spread of the target among training scans. The authors
            answer in raw years, which a few hundred steps hardly reach.
        input_dropout: Share of the map's places set to 0 in training; the authors have none.
        pool_slices: Mean over so many neighbouring slices before the blocks; 1: none, as in the paper.
        project: Learned linear map of the channels to so many before the blocks; None: none, as in the paper.
    """

    slices: ResampledStackConfig = field(default_factory=ResampledStackConfig)
    encoder: SliceEncoderConfig = field(
        default_factory=lambda: SliceEncoderConfig(backbone=BACKBONE, readout="mean", batch_size=16)
    )
    kernels: tuple[tuple[int, int], ...] = ((10, 60), (5, 15), (2, 6))
    widths: tuple[int, ...] = (8, 4, 1)
    hidden: tuple[int, ...] = (512, 128)
    dropout: float = 0.3
    num_outputs: int = 1
    mirror: bool = False
    standardise: bool = False
    scale_outputs: bool = False
    input_dropout: float = 0.0
    pool_slices: int = 1
    project: int | None = None

    def __post_init__(self) -> None:
        if not self.kernels or len(self.kernels) != len(self.widths):
            raise ConfigError(
                "every block has a kernel and a width", given=f"kernels {self.kernels}, widths {self.widths}"
            )
        counts = (*self.widths, *self.hidden, self.num_outputs, self.pool_slices, self.project or 1)
        if not self.hidden or min(counts) < 1 or any(min(kernel) < 1 for kernel in self.kernels):
            raise ConfigError("sizes are too small", given=self.to_json(), expected="at least 1, and a hidden layer")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is no fraction", given=getattr(self, name), expected="0 <= fraction < 1")
        if self.slices.num_slices % self.pool_slices:
            raise ConfigError("slices do not go into groups", given=f"{self.slices.num_slices} by {self.pool_slices}")

    @property
    def num_channels(self) -> int:
        """Length of the encoder's vectors."""
        return self.encoder.resolve_channels(self.slices.image_size)

    def map_shapes(self) -> list[tuple[int, int]]:
        """Slices by channels of the map that goes into the blocks, and of what each block makes of it.

        Raises:
            ConfigError: a block has nothing left to look at.
        """
        shapes = [(self.slices.num_slices // self.pool_slices, self.project or self.num_channels)]
        for rows, columns in self.kernels:
            # The convolution has no padding, and the pooling after it takes one more off each side.
            shapes.append((shapes[-1][0] - rows, shapes[-1][1] - columns))
        if min(map(min, shapes)) < 1:
            raise ConfigError(
                "the blocks' kernels are larger than the map", given=f"kernels {self.kernels}, map {shapes[0]}"
            )
        return shapes

    def build(self, *, load_weights: bool = True) -> BrainRotViT:
        """Encoder and head; the head's initial weights are drawn from torch's global generator.

        Args:
            load_weights: False leaves an encoder by name or file empty, for a checkpoint that brings its weights.

        Raises:
            ModelError: an unknown backbone, or weights that are missing or wrong.
        """
        from neuroray.platform.models.brainrotvit.model import BrainRotViT

        return BrainRotViT(self, load_weights=load_weights)

    def build_head(self) -> BrainRotViTHead:
        """All that learns in the second stage: takes maps, so that an encoder is not needed to train."""
        from neuroray.platform.models.brainrotvit.model import BrainRotViTHead

        return BrainRotViTHead(self)

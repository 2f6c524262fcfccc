"""VQVAEConfig: sizes and options of the tokenizer; the defaults are of the paper's size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from neuroray.config import Config, ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.quantiser_config import QuantiserConfig, Shape

if TYPE_CHECKING:
    from neuroray.platform.models.neuroar.vqvae import VQVAE


@dataclass(frozen=True, slots=True, kw_only=True)
class VQVAEConfig(Config):
    """The multi-scale VQ-VAE. The paper says downsampling 16, five scales and 2,048 codes; all else is a choice.

    Attributes:
        channels: Of the finest level.
        multipliers: Of the channels, by level, the finest first; each level but the last halves the grid.
        fold: Cubes of so many voxels along each axis become the channels of one, before the finest level, and voxels
            again behind it: much cheaper; 1: none, as in VAR.
        num_blocks: Residual blocks of a level; the decoder has one more.
        norm_groups: Groups of a GroupNorm, at most; channels that it does not divide have fewer.
        attention: Self-attention in the middle, on the latent grid.
        grid: Size of the volumes, where `reference` or `places` tie the model to one; None: any multiple of the factor.
        reference: What encoder and decoder work on the difference from: `none`, as VAR; or the `mean` of the training
            people's volumes, which registration makes worth having: the network then draws only what differs.
        places: A learned vector for each place of the latent grid, in encoder and decoder: registered brains have the
            same parts at the same places.
        shortcut: A linear way beside the network, from the cube of voxels of each place to its latent and back, which
            starts from the principal components of the training people's cubes; what the network adds starts at 0.
        checkpoint: Compute residual blocks again in the backward pass, in place of keeping what they have made.
        quantiser: Scales and codebook.
    """

    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    fold: int = 1
    num_blocks: int = 2
    norm_groups: int = 32
    attention: bool = True
    grid: Shape | None = None
    reference: Literal["none", "mean"] = "none"
    places: bool = False
    shortcut: bool = False
    checkpoint: bool = True
    quantiser: QuantiserConfig = field(default_factory=QuantiserConfig)

    def __post_init__(self) -> None:
        if (
            not self.multipliers
            or min(self.channels, *self.multipliers, self.fold, self.num_blocks, self.norm_groups) < 1
        ):
            raise ConfigError("sizes are too small", given=self.to_json(), expected="at least 1, and a level")
        if (self.reference != "none" or self.places) and self.grid is None:
            given = f"reference {self.reference}, places {self.places}"
            raise ConfigError("what belongs to places needs the volumes' size", given=given, fix="--model.grid X Y Z")
        if self.shortcut and self.quantiser.code_dim > self.factor**3:
            given = f"{self.quantiser.code_dim} numbers of a cube of {self.factor**3} voxels"
            raise ConfigError("a cube has not so many components", given=given, fix="a smaller code_dim")
        if self.grid is not None:
            self.latent_shape(self.grid)

    @property
    def factor(self) -> int:
        """Voxels along an axis that one place of the latent grid stands for."""
        return self.fold * 2 ** (len(self.multipliers) - 1)

    def latent_shape(self, volume_shape: tuple[int, ...]) -> Shape:
        """The latent grid of a volume.

        Raises:
            ModelError: an axis that the factor does not divide.
        """
        if len(volume_shape) != 3 or any(size < 1 or size % self.factor for size in volume_shape):
            raise ModelError(
                "the volume cannot be halved so often",
                given=" x ".join(map(str, volume_shape)),
                expected=f"three axes, each a multiple of {self.factor}",
                fix="pad or crop it (fit_grid)",
            )
        if self.grid is not None and tuple(volume_shape) != tuple(self.grid):
            given, fix = tuple(volume_shape), "pad or crop it (fit_grid)"
            raise ModelError("the model is tied to another size", given=given, expected=self.grid, fix=fix)
        x, y, z = (size // self.factor for size in volume_shape)
        return x, y, z

    def scales(self, volume_shape: tuple[int, ...]) -> tuple[Shape, ...]:
        """The scales of a volume's tokens, the coarsest first."""
        return self.quantiser.resolve_scales(self.latent_shape(volume_shape))

    def build(self) -> VQVAE:
        """The tokenizer; its weights are drawn from torch's global generator."""
        from neuroray.platform.models.neuroar.vqvae import VQVAE

        return VQVAE(self)

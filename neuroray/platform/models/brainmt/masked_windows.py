"""BrainMT for masked pretraining: its encoder, and a light decoder from each token to what its patch holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch import Tensor, nn

from neuroray.config import Config, ConfigError
from neuroray.platform.models.brainmt.config import DOWNSAMPLING, BrainMTConfig
from neuroray.platform.models.brainmt.model import BrainMT

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBrainMTConfig(Config):
    """The encoder and what is asked of its tokens.

    Attributes:
        encoder: The BrainMT that is pretrained; of its head nothing is built.
        cell_voxels: A patch is told as means over cells of so many voxels along each axis. Single voxels (1) are
            mostly noise that nothing could tell; the whole patch (16) has one mean for several networks.
        decoder: `linear`: a LayerNorm and one linear map, so that the encoder has to do the work (as SimMIM finds
            best, Xie et al. 2022); `mlp`: a hidden layer of twice the channels between.
    """

    encoder: BrainMTConfig = field(default_factory=BrainMTConfig)
    cell_voxels: int = 4
    decoder: Literal["linear", "mlp"] = "linear"

    def __post_init__(self) -> None:
        if self.cell_voxels < 1 or DOWNSAMPLING % self.cell_voxels:
            expected = "1, 2, 4, 8 or 16"
            raise ConfigError("cells do not fill a patch of 16 voxels", given=self.cell_voxels, expected=expected)

    @property
    def num_cells(self) -> int:
        """Of one patch."""
        return (DOWNSAMPLING // self.cell_voxels) ** 3

    def build(self) -> MaskedBrainMT:
        """The model; initial weights are drawn from torch's global generator."""
        return MaskedBrainMT(self)


class MaskedBrainMTOutput(NamedTuple):
    """What the model says of a window. A tuple, so that parallel wrappers find the tensor in it.

    Attributes:
        content: Of every cell, hidden or not; places in the order y, x, z, cells in the order x, y, z.
    """

    content: Float[Tensor, "batch place time cell"]


class MaskedBrainMT(nn.Module):
    """The encoder and the decoder; what is hidden is taken out of the voxels before they come here.

    Convolutions of neighbouring tokens overlap by tens of voxels, so a token could tell what another's patch holds:
    hiding tokens would hide nothing.
    """

    def __init__(self, config: MaskedBrainMTConfig) -> None:
        super().__init__()
        self.config = config
        # Only tokens are asked for: no head, and no norm before it.
        self.encoder = BrainMT(dataclasses.replace(config.encoder, head="linear", final_norm=False))
        self.encoder.head = nn.Identity()
        self.decoder = _build_decoder(config)

    def forward(self, voxels: Float[Tensor, "batch time x y z"]) -> MaskedBrainMTOutput:
        """What every patch is thought to hold.

        Raises:
            ModelError: no batch of 4D windows, or no frame in it.
        """
        tokens = self.encoder.encode(voxels)[:, 1:]
        return MaskedBrainMTOutput(self.decoder(tokens).unflatten(1, (-1, voxels.shape[1])))

    def names_without_decay(self) -> frozenset[str]:
        """As the encoder has them."""
        return frozenset(f"encoder.{name}" for name in self.encoder.names_without_decay())


def _build_decoder(config: MaskedBrainMTConfig) -> nn.Sequential:
    channels = config.encoder.num_channels
    layers: list[nn.Module] = [nn.LayerNorm(channels)]
    if config.decoder == "mlp":
        layers += [nn.Linear(channels, 2 * channels), nn.GELU()]
        channels *= 2
    last = nn.Linear(channels, config.num_cells)
    # Starts by saying the mean of everything, which standardised content has at 0.
    nn.init.trunc_normal_(last.weight, std=0.02)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)

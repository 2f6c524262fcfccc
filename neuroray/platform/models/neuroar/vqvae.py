"""The tokenizer: a 3D convolutional encoder, the multi-scale quantiser on its latent grid, and the decoder back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.quantiser_config import Shape
from neuroray.platform.models.neuroar.vqvae_config import VQVAEConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Map = Float[Tensor, "batch channel x y z"]
    Volume = Float[Tensor, "batch x y z"]


class VQVAEOutput(NamedTuple):
    """What the tokenizer makes of volumes.

    Attributes:
        reconstruction: In the space of the input, not clamped.
        tokens: `batch token`; see `Quantised`.
        quantiser_loss: Of each volume.
    """

    reconstruction: Volume
    tokens: Int[Tensor, "batch token"]
    quantiser_loss: Float[Tensor, " batch"]


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; added to the input, by a 1 x 1 x 1 convolution where channels change."""

    def __init__(self, channels_in: int, channels_out: int, config: VQVAEConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels_in, config), _norm(channels_out, config)
        self.conv1 = nn.Conv3d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv3d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv3d(channels_in, channels_out, 1)
        self.checkpoint = config.checkpoint

    def forward(self, maps: Map) -> Map:
        """The same grid."""
        if self.checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(self._compute, maps, use_reentrant=False)  # pyright: ignore[reportReturnType]: untyped
        return self._compute(maps)

    def _compute(self, maps: Map) -> Map:
        inner = self.conv1(functional.silu(self.norm1(maps)))
        return self.skip(maps) + self.conv2(functional.silu(self.norm2(inner)))


class GridAttention(nn.Module):
    """Every place of the grid looks at every other, by one head; added to the input."""

    def __init__(self, channels: int, config: VQVAEConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, config)
        self.project_in = nn.Linear(channels, 3 * channels, bias=False)
        self.project_out = nn.Linear(channels, channels)

    def forward(self, maps: Map) -> Map:
        """The same grid."""
        places = self.norm(maps).flatten(2).transpose(1, 2)[:, None]
        query, key, value = self.project_in(places).chunk(3, dim=-1)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return maps + self.project_out(seen)[:, 0].transpose(1, 2).reshape(maps.shape)


class Halve(nn.Module):
    """Convolution at stride 2; padded behind alone, as in VAR."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, stride=2)

    def forward(self, maps: Map) -> Map:
        """Half of the grid."""
        return self.conv(functional.pad(maps, (0, 1) * 3))


class Double(nn.Module):
    """Every voxel twice along each axis, then a convolution: no checkerboard, as transposed ones leave."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, maps: Map) -> Map:
        """Twice the grid."""
        return self.conv(functional.interpolate(maps, scale_factor=2, mode="nearest"))


class Places(nn.Module):
    """Adds a learned vector to each place of the grid."""

    def __init__(self, channels: int, shape: Shape) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(channels, *shape) * 0.02)

    def forward(self, maps: Map) -> Map:
        """The same grid."""
        return maps + self.table


class VQVAE(nn.Module):
    """Volumes in [-1, 1] to tokens and back; any size that the configuration's factor divides."""

    reference: Tensor

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _build_encoder(config)
        self.quantiser = MultiScaleQuantiser(config.quantiser)
        self.decoder = _build_decoder(config)
        if config.reference == "mean":
            self.register_buffer("reference", torch.full(_require_grid(config), -1.0))
        if config.shortcut:
            self.shortcut_in = nn.Linear(config.factor**3, config.quantiser.code_dim)
            self.shortcut_out = nn.Linear(config.quantiser.code_dim, config.factor**3)
            for sequence in (self.encoder, self.decoder):
                _silence(sequence[-1])

    def forward(self, volume: Volume, counted: Bool[Tensor, " batch"] | None = None) -> VQVAEOutput:
        """There and back; in training the codebook follows the volumes that count.

        Raises:
            ModelError: a size that cannot be halved so often.
        """
        quantised = self.quantiser(self._encode(volume), counted)
        return VQVAEOutput(self._decode(quantised.latent), quantised.tokens, quantised.loss)

    @torch.no_grad()
    def encode(self, volume: Volume) -> Int[Tensor, "batch token"]:
        """Tokens; each volume by itself, so that a batch changes no bit.

        Raises:
            ModelError: a size that cannot be halved so often.
        """
        return torch.cat([self.quantiser.encode(self._encode(one[None])) for one in volume])

    @torch.no_grad()
    def decode(
        self, tokens: Int[Tensor, "batch token"], volume_shape: tuple[int, ...], *, slab: int | None = None
    ) -> Volume:
        """Volumes of this size, clamped to [-1, 1]; each by itself, so that a batch changes no bit.

        Args:
            tokens: Of each volume.
            volume_shape: Their size.
            slab: See `decode_latent`.

        Raises:
            ModelError: tokens of another size.
        """
        latent = self.quantiser.decode(tokens, self.config.latent_shape(volume_shape))
        return torch.cat([self.decode_latent(one[None], slab=slab) for one in latent])

    @torch.no_grad()
    def encode_latent(self, volume: Volume) -> Map:
        """What the quantiser is given, in float32.

        Raises:
            ModelError: a size that cannot be halved so often.
        """
        return self._encode(volume).float()

    @torch.no_grad()
    def decode_latent(self, latent: Map, *, slab: int | None = None) -> Volume:
        """Volumes of quantised latents (or of means of some), clamped to [-1, 1].

        Args:
            latent: On the latent grid.
            slab: Places along x that a layer computes at once, which takes less memory and gives the same to rounding
                (`slabs.py`); None: all.
        """
        return self._decode(latent, slab).clamp(-1, 1)

    @torch.no_grad()
    def start_from(self, volumes: Float[Tensor, "volume x y z"]) -> None:
        """Takes from training volumes what starts from data: the reference, the linear way there and back.

        Raises:
            ModelError: volumes of another size; too few for so many components.
        """
        self._require_volumes(volumes)
        volumes = volumes.to(next(self.decoder.parameters()).device)
        if self.config.reference == "mean":
            self.reference.copy_(volumes.mean(0))
        if self.config.shortcut:
            cubes = fold(self._subtract(volumes), self.config.factor).movedim(1, -1).flatten(0, -2).double()
            mean = cubes.mean(0)
            spread = (cubes - mean).T @ (cubes - mean) / len(cubes)
            # In order of their size, the largest first; signs are of no account.
            components = torch.linalg.eigh(spread).eigenvectors.flip(1)[:, : self.config.quantiser.code_dim].T
            self.shortcut_in.weight.copy_(components)
            self.shortcut_in.bias.copy_(-components @ mean)
            self.shortcut_out.weight.copy_(components.T)
            self.shortcut_out.bias.copy_(mean)

    def _encode(self, volume: Volume) -> Map:
        self._require_volumes(volume)
        differing = self._subtract(volume)
        latent = self.encoder(fold(differing, self.config.fold))
        if self.config.shortcut:
            cubes = fold(differing, self.config.factor).movedim(1, -1)
            latent = latent + self.shortcut_in(cubes).movedim(-1, 1)
        return latent

    def _decode(self, latent: Map, slab: int | None = None) -> Volume:
        # Imported here, for it knows the layers of this module.
        from neuroray.platform.models.neuroar.slabs import decode_by_slabs

        latent = latent.to(next(self.decoder.parameters()).dtype)
        maps = self.decoder(latent) if slab is None else decode_by_slabs(self.decoder, latent, slab)
        volume = unfold(maps, self.config.fold)
        if self.config.shortcut:
            cubes = self.shortcut_out(latent.movedim(1, -1)).movedim(-1, 1)
            volume = volume + unfold(cubes, self.config.factor)
        return volume if self.config.reference == "none" else volume + self.reference.to(volume.dtype)

    def _subtract(self, volume: Volume) -> Volume:
        return volume if self.config.reference == "none" else volume - self.reference.to(volume.dtype)

    def _require_volumes(self, volume: Volume) -> None:
        if volume.ndim != 4 or len(volume) == 0:
            raise ModelError("volumes come in a batch", given=f"shape {tuple(volume.shape)}", expected="batch x y z")
        self.config.latent_shape(tuple(volume.shape[1:]))


def fold(volume: Volume, size: int) -> Map:
    """Each cube of voxels as the channels of one place, in C order."""
    batch, *shape = volume.shape
    x, y, z = (length // size for length in shape)
    cubes = volume.reshape(batch, x, size, y, size, z, size).permute(0, 2, 4, 6, 1, 3, 5)
    return cubes.reshape(batch, size**3, x, y, z)


def unfold(maps: Map, size: int) -> Volume:
    """The way back from `fold`."""
    batch, _, x, y, z = maps.shape
    cubes = maps.reshape(batch, size, size, size, x, y, z).permute(0, 4, 1, 5, 2, 6, 3)
    return cubes.reshape(batch, x * size, y * size, z * size)


def _build_encoder(config: VQVAEConfig) -> nn.Sequential:
    widths = [config.channels * one for one in config.multipliers]
    layers: list[nn.Module] = [nn.Conv3d(config.fold**3, widths[0], 3, padding=1)]
    before = widths[0]
    for level, width in enumerate(widths):
        for _ in range(config.num_blocks):
            layers.append(ResidualBlock(before, width, config))
            before = width
        if level < len(widths) - 1:
            layers.append(Halve(width))
    layers += [*_places(before, config), *_middle(before, config)]
    layers += [_norm(before, config), nn.SiLU(), nn.Conv3d(before, config.quantiser.code_dim, 3, padding=1)]
    return nn.Sequential(*layers)


def _build_decoder(config: VQVAEConfig) -> nn.Sequential:
    widths = [config.channels * one for one in config.multipliers]
    before = widths[-1]
    layers: list[nn.Module] = [nn.Conv3d(config.quantiser.code_dim, before, 3, padding=1)]
    layers += [*_places(before, config), *_middle(before, config)]
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(config.num_blocks + 1):
            layers.append(ResidualBlock(before, width, config))
            before = width
        if level > 0:
            layers.append(Double(width))
    return nn.Sequential(*layers, _norm(before, config), nn.SiLU(), nn.Conv3d(before, config.fold**3, 3, padding=1))


def _middle(channels: int, config: VQVAEConfig) -> list[nn.Module]:
    attention = [GridAttention(channels, config)] if config.attention else []
    return [ResidualBlock(channels, channels, config), *attention, ResidualBlock(channels, channels, config)]


def _places(channels: int, config: VQVAEConfig) -> list[nn.Module]:
    return [Places(channels, config.latent_shape(_require_grid(config)))] if config.places else []


def _require_grid(config: VQVAEConfig) -> Shape:
    assert config.grid is not None  # the configuration asks for it
    return config.grid


def _silence(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Conv3d)
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _norm(channels: int, config: VQVAEConfig) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(config.norm_groups, channels), channels, eps=1e-6)

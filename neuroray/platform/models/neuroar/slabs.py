"""The decoder in slabs: layer by layer, each a few voxels at a time, so that no more than two whole maps are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.neuroar.vqvae import Double, ResidualBlock

if TYPE_CHECKING:
    from jaxtyping import Float

    Map = Float[Tensor, "batch channel x y z"]

Prepare = Callable[[Tensor], Tensor]


def decode_by_slabs(decoder: nn.Sequential, latent: Map, slab: int) -> Map:
    """What the decoder gives, to rounding in float32.

    Tiles that go through all layers at once would not do: every GroupNorm takes its means over the whole volume, so
    that each of a dozen norms would need a pass over all tiles before it. Layer by layer each norm has its means of the
    whole map before the convolution behind it begins, and a halo of one voxel is all that a slab needs.

    Args:
        decoder: Of a `VQVAE`.
        latent: What it decodes.
        slab: Voxels along x that are computed at once.
    """
    layers, maps = list(decoder), latent
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, ResidualBlock):
            maps = _pass_block(layer, maps, slab)
        elif isinstance(layer, Double):
            maps = _convolve(layer.conv, maps, slab, scale=2)
        elif isinstance(layer, nn.GroupNorm):
            layers.pop(0)  # SiLU
            convolution = layers.pop(0)
            assert isinstance(convolution, nn.Conv3d)
            maps = _convolve(convolution, maps, slab, prepare=_activate(layer, maps, slab))
        else:
            maps = layer(maps)  # on the latent grid, which is small
    return maps


def _pass_block(block: ResidualBlock, maps: Map, slab: int) -> Map:
    """Writes into its input where channels stay as many: nobody else holds it (a first convolution made it)."""
    inner = _convolve(block.conv1, maps, slab, prepare=_activate(block.norm1, maps, slab))
    total = maps if isinstance(block.skip, nn.Identity) else _map_slabs(block.skip, maps, slab)
    del maps
    prepare = _activate(block.norm2, inner, slab)
    for start, stop in _list_slabs(total.shape[2], slab):
        total[:, :, start:stop] += _convolve_slab(block.conv2, inner, start, stop, prepare=prepare, scale=1)
    return total


def _convolve(convolution: nn.Conv3d, maps: Map, slab: int, *, prepare: Prepare | None = None, scale: int = 1) -> Map:
    batch, _, *shape = maps.shape
    x, y, z = (scale * size for size in shape)
    made = maps.new_empty(batch, convolution.out_channels, x, y, z)
    for start, stop in _list_slabs(x, slab):
        made[:, :, start:stop] = _convolve_slab(convolution, maps, start, stop, prepare=prepare, scale=scale)
    return made


def _convolve_slab(
    convolution: nn.Conv3d, maps: Map, start: int, stop: int, *, prepare: Prepare | None, scale: int
) -> Map:
    """Places `start` to `stop` along x of what the convolution gives, with a halo of one, or 0 where the map ends."""
    size = scale * maps.shape[2]
    low, high = max(0, start - 1), min(size, stop + 1)
    given = maps[:, :, low // scale : -(-high // scale)]
    if prepare is not None:
        given = prepare(given)
    if scale > 1:
        given = functional.interpolate(given, scale_factor=scale, mode="nearest")
        first = low - low // scale * scale
        given = given[:, :, first : first + high - low]
    given = functional.pad(given, (0, 0, 0, 0, low - (start - 1), stop + 1 - high))
    return functional.conv3d(given, convolution.weight, convolution.bias, padding=(0, 1, 1))


def _activate(norm: nn.GroupNorm, maps: Map, slab: int) -> Prepare:
    """Norm, by the means of the whole map, and SiLU, of any part of it."""
    grouped = (len(maps), norm.num_groups, -1)
    number = maps[0].numel() // norm.num_groups
    parts = [maps[:, :, start:stop] for start, stop in _list_slabs(maps.shape[2], slab)]
    mean = sum(part.reshape(grouped).sum(2, dtype=torch.float64) for part in parts) / number
    assert isinstance(mean, Tensor)
    # About the mean, for the difference of two large sums would lose what is asked for.
    away = (part.reshape(grouped) - mean.to(part.dtype)[..., None] for part in parts)
    variance = sum(one.square_().sum(2, dtype=torch.float64) for one in away) / number
    assert isinstance(variance, Tensor)
    each = norm.num_channels // norm.num_groups
    scale = norm.weight * (variance + norm.eps).rsqrt().repeat_interleave(each, 1)
    shift = norm.bias - mean.repeat_interleave(each, 1) * scale
    scale, shift = (one.to(maps.dtype)[:, :, None, None, None] for one in (scale, shift))
    return lambda part: functional.silu(part * scale + shift, inplace=True)


def _map_slabs(layer: nn.Module, maps: Map, slab: int) -> Map:
    return torch.cat([layer(maps[:, :, start:stop]) for start, stop in _list_slabs(maps.shape[2], slab)], 2)


def _list_slabs(size: int, slab: int) -> Iterator[tuple[int, int]]:
    return ((start, min(size, start + slab)) for start in range(0, size, slab))

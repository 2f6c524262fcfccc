"""The multi-scale residual quantiser in 3D: coarse scales first, each on what the ones before have left."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.codebook import Codebook, LevelSizes
from neuroray.platform.models.neuroar.quantiser_config import QuantiserConfig, Shape

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Latent = Float[Tensor, "batch channel x y z"]
    Tokens = Int[Tensor, "batch token"]


class Quantised(NamedTuple):
    """A quantised latent.

    Attributes:
        latent: The sum of all scales; in training its gradient goes on to what was quantised as if nothing had been.
        tokens: Indices of codes, the scales behind each other, the coarsest first, each in C order.
        loss: Of each volume: codebook's and encoder's term, the mean over scales.
    """

    latent: Latent
    tokens: Tokens
    loss: Float[Tensor, " batch"]


class Refiner(nn.Module):
    """Part of what it is given, and part of its convolution."""

    def __init__(self, channels: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.conv = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, latent: Latent) -> Latent:
        """The same grid; computed in the input's dtype."""
        weight, bias = self.conv.weight.to(latent.dtype), self.conv.bias
        assert bias is not None
        convolved = functional.conv3d(latent, weight, bias.to(latent.dtype), padding=1)
        return (1 - self.share) * latent + self.share * convolved


class MultiScaleQuantiser(nn.Module):
    """Interpolate down, look up, interpolate up, refine, subtract; five times (VAR, NeurIPS 2024, algorithm 1).

    VAR interpolates up by a bicubic; torch has none in 3D, so this one is trilinear. Always in float32.
    """

    def __init__(self, config: QuantiserConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook = Codebook(config)
        self.refiners = nn.ModuleList(
            Refiner(config.code_dim, config.refiner_share) for _ in range(config.num_refiners)
        )
        if config.level_sizes:
            self.levels = LevelSizes(len(config.scales) or config.num_scales, config.decay)

    def forward(self, latent: Latent, counted: Bool[Tensor, " batch"] | None = None) -> Quantised:
        """Quantises, and in training moves the codebook where it follows the data.

        Args:
            latent: Any grid.
            counted: Rows that the codebook is to see; None: all.
        """
        with torch.autocast(latent.device.type, enabled=False):
            latent = latent.float()
            scales = self.config.resolve_scales(_grid(latent))
            sizes = [_volume(scale) for scale in scales]
            follows = self.training and self.codebook.follows_data
            if follows and not self.codebook.has_started:
                self._start(latent.detach(), scales, counted)
            quantised, vectors = self._quantise(latent, scales)
            if follows:
                self.codebook.observe(self._level(vectors, scales), quantised.tokens, sizes, counted)
                if self.config.level_sizes:
                    self.levels.observe(vectors, sizes, counted)
        return quantised

    @torch.no_grad()
    def encode(self, latent: Latent) -> Tokens:
        """Tokens; each volume by itself, so that a batch changes no bit."""
        with torch.autocast(latent.device.type, enabled=False):
            scales = self.config.resolve_scales(_grid(latent))
            return torch.cat([self._quantise(one[None].float(), scales)[0].tokens for one in latent])

    @torch.no_grad()
    def decode(self, tokens: Tokens, latent_shape: Shape) -> Latent:
        """The latents that tokens stand for; each volume by itself, so that a batch changes no bit.

        Raises:
            ModelError: not as many tokens as the grid has, or codes that there are not.
        """
        return torch.cat([list(self.accumulate(one[None], latent_shape))[-1] for one in tokens])

    @torch.no_grad()
    def accumulate(self, tokens: Tokens, latent_shape: Shape) -> Iterator[Latent]:
        """The sum of the first scale, of the first two, and so on.

        Tokens may end behind any scale.

        Raises:
            ModelError: tokens that end within a scale, or codes that there are not.
        """
        scales = self.config.resolve_scales(latent_shape)
        ends = list(accumulate(_volume(scale) for scale in scales))
        if tokens.ndim != 2 or tokens.shape[1] not in ends:
            raise ModelError("tokens do not fit the scales", given=tuple(tokens.shape), expected=("batch", ends[-1]))
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.num_codes:
            given = f"{int(tokens.min())} to {int(tokens.max())}"
            raise ModelError("these are no codes", given=given, expected=f"0 to {self.config.num_codes - 1}")
        total: Latent | None = None
        with torch.autocast(tokens.device.type, enabled=False):
            for index, (start, end) in enumerate(pairwise([0, *ends])):
                if start == tokens.shape[1]:
                    return
                part = self.add_scale(tokens[:, start:end], index, scales)
                total = part if total is None else total + part
                yield total

    def add_scale(self, tokens: Tokens, scale_index: int, scales: tuple[Shape, ...]) -> Latent:
        """What one scale's tokens add to the sum."""
        return self.add_codes(self.codebook.read(tokens), scale_index, scales)

    def add_codes(
        self, codes: Float[Tensor, "batch token channel"], scale_index: int, scales: tuple[Shape, ...]
    ) -> Latent:
        """What one scale's codes, or means of some, add to the sum."""
        codes = codes.transpose(1, 2).unflatten(2, scales[scale_index])
        if self.config.level_sizes:
            codes = codes * self.levels.sizes[scale_index]
        return self._refine(codes, scale_index, scales)

    def read(self, tokens: Tokens, latent_shape: Shape) -> Float[Tensor, "batch token channel"]:
        """The codes of all scales, each as large as its scale adds it."""
        codes = self.codebook.read(tokens)
        if not self.config.level_sizes:
            return codes
        return codes * self._spread_levels(self.config.resolve_scales(latent_shape))[:, None]

    @torch.no_grad()
    def teacher_inputs(self, tokens: Tokens, latent_shape: Shape) -> Float[Tensor, "batch later_token channel"]:
        """What each scale but the first is told from: the sum of the scales before it, interpolated to its size."""
        scales = self.config.resolve_scales(latent_shape)
        sums = self.accumulate(tokens, latent_shape)
        shrunk = [shrink(total, scale) for total, scale in zip(sums, scales[1:], strict=False)]
        first = self.codebook.codes.new_zeros(len(tokens), 0, self.config.code_dim)
        return torch.cat([first.float(), *(one.flatten(2).transpose(1, 2) for one in shrunk)], dim=1)

    def _quantise(self, latent: Latent, scales: tuple[Shape, ...]) -> tuple[Quantised, Float[Tensor, "b token c"]]:
        target, rest = latent.detach(), latent.detach()
        kept = self._draw_kept(latent, len(scales))
        total = torch.zeros_like(latent)
        vectors, tokens, losses = [], [], []
        for index, scale in enumerate(scales):
            looked = shrink(rest, scale).flatten(2).transpose(1, 2)
            level = self.levels.sizes[index] if self.config.level_sizes else 1.0
            found = self.codebook.find_nearest(looked / level)
            part = self.add_scale(found, index, scales)
            counts = part if kept is None else part * (index < kept)[:, None, None, None, None]
            total, rest = total + counts, rest - part.detach()
            # The sum so far is held against the whole latent, at every scale.
            losses.append(self.config.commitment * _error(total.detach(), latent) + _error(total, target))
            vectors.append(looked)
            tokens.append(found)
        if self.training:
            total = latent + (total - latent).detach()
        loss = torch.stack(losses).mean(0)
        return Quantised(total, torch.cat(tokens, 1), loss), torch.cat(vectors, 1)

    def _draw_kept(self, latent: Latent, num_scales: int) -> Int[Tensor, " batch"] | None:
        """How many scales each volume is reconstructed from in training; None: all of them."""
        share, least = self.config.scale_dropout, min(self.config.scales_kept, num_scales)
        if not self.training or share == 0 or least == num_scales:
            return None
        rows = len(latent)
        fewer = torch.randint(least, num_scales, (rows,), device=latent.device)
        return torch.where(torch.rand(rows, device=latent.device) < share, fewer, num_scales)

    def _start(self, latent: Latent, scales: tuple[Shape, ...], counted: Bool[Tensor, " batch"] | None) -> None:
        vectors, sizes = self._decompose(latent, scales), [_volume(scale) for scale in scales]
        if self.config.level_sizes:
            self.levels.observe(vectors, sizes, counted)
        self.codebook.start(self._level(vectors, scales), sizes, counted)

    def _level(
        self, vectors: Float[Tensor, "batch token channel"], scales: tuple[Shape, ...]
    ) -> Float[Tensor, "batch token channel"]:
        return vectors / self._spread_levels(scales)[:, None] if self.config.level_sizes else vectors

    def _spread_levels(self, scales: tuple[Shape, ...]) -> Float[Tensor, " token"]:
        numbers = torch.tensor([_volume(scale) for scale in scales], device=self.levels.sizes.device)
        return self.levels.sizes.repeat_interleave(numbers, output_size=sum(map(_volume, scales)))

    @torch.no_grad()
    def _decompose(self, latent: Latent, scales: tuple[Shape, ...]) -> Float[Tensor, "batch token channel"]:
        """What each scale would have to look up, were there a code for everything."""
        rest, vectors = latent, []
        for index, scale in enumerate(scales):
            looked = shrink(rest, scale)
            vectors.append(looked.flatten(2).transpose(1, 2))
            rest = rest - self._refine(looked, index, scales)
        return torch.cat(vectors, 1)

    def _refine(self, part: Latent, scale_index: int, scales: tuple[Shape, ...]) -> Latent:
        if scale_index < len(scales) - 1:
            part = functional.interpolate(part, scales[-1], mode="trilinear", align_corners=False)
        return self.refiners[self.config.choose_refiner(scale_index, len(scales))](part)


def shrink(latent: Latent, scale: Shape) -> Latent:
    """Means over equal areas; the grid itself is left as it is."""
    return latent if _grid(latent) == scale else functional.adaptive_avg_pool3d(latent, scale)


def measure_usage(tokens: Tokens, scale_sizes: list[int], num_codes: int) -> tuple[float, list[float], list[float]]:
    """How the codebook is used, over all rows given; see `describe_usage`."""
    return describe_usage(count_codes(tokens, scale_sizes, num_codes))


def count_codes(
    tokens: Tokens, scale_sizes: list[int], num_codes: int, counted: Bool[Tensor, " batch"] | None = None
) -> Int[Tensor, "scale code"]:
    """How often each scale has looked up each code; of rows that count, where some do not."""
    starts = [tokens.new_full((size,), index * num_codes) for index, size in enumerate(scale_sizes)]
    places = tokens + torch.cat(starts)
    ones = torch.ones_like(tokens) if counted is None else counted.to(tokens.dtype)[:, None].expand_as(tokens)
    counts = tokens.new_zeros(len(scale_sizes) * num_codes)
    return counts.index_add_(0, places.flatten(), ones.flatten()).view(len(scale_sizes), num_codes)


def describe_usage(counts: Int[Tensor, "scale code"]) -> tuple[float, list[float], list[float]]:
    """How the codebook is used, best over an epoch: a batch bounds what can be found.

    Returns:
        Share of all codes in use by any scale; by scale the share in use, and the perplexity (exp of the entropy).
    """
    shares = counts.double() / counts.sum(1, keepdim=True).clamp_min(1)
    entropies = -(shares * shares.clamp_min(1e-12).log()).sum(1)
    whole = float((counts.sum(0) > 0).double().mean())
    return whole, (counts > 0).double().mean(1).tolist(), entropies.exp().tolist()


def _grid(latent: Latent) -> Shape:
    x, y, z = latent.shape[2:]
    return x, y, z


def _volume(scale: Shape) -> int:
    return scale[0] * scale[1] * scale[2]


def _error(one: Latent, other: Latent) -> Float[Tensor, " batch"]:
    return (one - other).square().flatten(1).mean(1)

"""A small latent diffusion: change in a tokenizer's latent space, drawn from noise on the scan's latent and the ages.

After BrLP (Puglisi et al. 2024) as far as seconds on a CPU allow: the network tells the clean change (not the noise) of
the latent, drawn by DDIM, and the latents of several draws are averaged before they are decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import Config
from neuroray.platform.baselines.brain_change import find_latent
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.evaluate.ageing_rows import Told
from neuroray.platform.evaluate.visits import Visit, VisitPair
from neuroray.platform.models.neuroar.vqvae import VQVAE

DIFFUSION = "diffusion"
DIFFUSION_LABEL = "Diffusion: a small one in the tokenizer's latent space, mean of several draws"

Latent = Float[Tensor, "row channel x y z"]
_NUM_WAVES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDiffusionConfig(Config):
    """How small it is, and how it is drawn from.

    Attributes:
        channels: Of the network.
        num_blocks: Of the network.
        num_steps: Of training.
        batch_size: Of a step.
        lr: Peak; half a cosine down to zero.
        num_draw_steps: Of DDIM.
        num_draws: Whose latents are averaged.
        seed: Of weights, order and noise.
    """

    channels: int = 48
    num_blocks: int = 3
    num_steps: int = 600
    batch_size: int = 8
    lr: float = 2e-3
    num_draw_steps: int = 20
    num_draws: int = 4
    seed: int = 0


class ChangeNetwork(nn.Module):
    """Convolutions on the latent grid; noise level, gap and age scale and shift every block."""

    def __init__(self, latent_channels: int, config: LatentDiffusionConfig) -> None:
        super().__init__()
        width = config.channels
        self.told = nn.Sequential(nn.Linear(2 * _NUM_WAVES + 3, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width))
        self.enter = nn.Conv3d(2 * latent_channels, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, width), width) for _ in range(config.num_blocks))
        self.films = nn.ModuleList(nn.Linear(2 * width, 2 * width) for _ in range(config.num_blocks))
        self.convs = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(config.num_blocks))
        self.leave = nn.Conv3d(width, latent_channels, 3, padding=1)
        # At first nothing changes, whatever is asked.
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, noisy: Latent, scan: Latent, level: Float[Tensor, " row"], ages: Float[Tensor, "row 3"]
    ) -> Latent:
        """The clean change."""
        waves = level[:, None] * torch.logspace(0, 3, _NUM_WAVES, device=level.device)
        told = self.told(torch.cat([waves.sin(), waves.cos(), ages], 1))
        maps = self.enter(torch.cat([noisy, scan], 1))
        for norm, film, conv in zip(self.norms, self.films, self.convs, strict=True):
            scale, shift = film(told)[:, :, None, None, None].chunk(2, dim=1)
            maps = maps + conv(functional.silu(norm(maps) * (1 + scale) + shift))
        return self.leave(functional.silu(maps))


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentDiffusion:
    """A trained one.

    Attributes:
        tokenizer: Whose latents, in eval mode.
        network: In eval mode.
        scan_scale: Mean and deviation of each channel of training latents.
        change_scale: Deviation of each channel of training changes.
        mean_age_years: Of the training pairs.
        config: How it is drawn from.
    """

    tokenizer: VQVAE
    network: ChangeNetwork
    scan_scale: tuple[Tensor, Tensor]
    change_scale: Tensor
    mean_age_years: float
    config: LatentDiffusionConfig

    @property
    def name(self) -> str:
        """Of its row."""
        return DIFFUSION

    def tell(self, visit: Visit, age_years: float) -> Told:
        """The person's latent plus the mean of the drawn changes, decoded; the same noise for every scan and age."""
        latent = find_latent(self.tokenizer, visit)
        change = self.draw_change(latent, (visit.age_years, age_years)).mean(0, keepdim=True)
        return Told(volume=self._decode(latent + change), start=self._decode(latent))

    @torch.no_grad()
    def draw_change(self, latent: Latent, ages_years: tuple[float, float]) -> Latent:
        """Of the latent, in its own scale; one row a draw."""
        number, steps = self.config.num_draws, self.config.num_draw_steps
        generator = torch.Generator().manual_seed(self.config.seed)
        noisy = torch.randn(number, *latent.shape[1:], generator=generator).to(latent.device)
        scan = ((latent - self.scan_scale[0]) / self.scan_scale[1]).expand_as(noisy)
        ages = _describe_ages([ages_years] * number, self.mean_age_years).to(latent.device)
        levels = torch.linspace(1, 0, steps + 1, device=latent.device)
        clean = noisy
        for level, after in pairwise(levels):
            clean = self.network(noisy, scan, level.expand(number), ages)
            signal, noise = _weigh(level)
            guessed = (noisy - signal * clean) / noise.clamp_min(1e-4)
            signal, noise = _weigh(after)
            noisy = signal * clean + noise * guessed
        return clean * self.change_scale

    def _decode(self, latent: Latent) -> Float32[np.ndarray, "x y z"]:
        return self.tokenizer.decode_latent(latent)[0].cpu().numpy()


def fit_latent_diffusion(
    pairs: Sequence[VisitPair],
    read: Callable[..., Visit],
    tokenizer: VQVAE,
    config: LatentDiffusionConfig | None = None,
) -> LatentDiffusion:
    """Trains it on the latents of the training people's pairs, which are all in memory.

    Raises:
        BaselineError: no pairs.
    """
    if not pairs:
        raise BaselineError("there are no training pairs to learn a change from", expected="people with two visits")
    config = config or LatentDiffusionConfig()
    before = torch.cat([find_latent(tokenizer, read(pair.previous)) for pair in pairs])
    change = torch.cat([find_latent(tokenizer, read(pair.target)) for pair in pairs]) - before
    mean, spread = (getattr(before, name)(dim=(0, 2, 3, 4), keepdim=True) for name in ("mean", "std"))
    size = change.square().mean(dim=(0, 2, 3, 4), keepdim=True).sqrt().clamp_min(1e-6)
    mean_age = float(np.mean([np.mean(pair.ages_years) for pair in pairs]))
    ages = _describe_ages([pair.ages_years for pair in pairs], mean_age).to(before.device)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(config.seed)
        network = ChangeNetwork(before.shape[1], config).to(before.device)
        _train(network, (before - mean) / spread.clamp_min(1e-6), change / size, ages, config)
    return LatentDiffusion(
        tokenizer=tokenizer,
        network=network.eval().requires_grad_(False),
        scan_scale=(mean, spread.clamp_min(1e-6)),
        change_scale=size,
        mean_age_years=mean_age,
        config=config,
    )


def _train(
    network: ChangeNetwork, scans: Latent, changes: Latent, ages: Float[Tensor, "row 3"], config: LatentDiffusionConfig
) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.num_steps)
    for _ in range(config.num_steps):
        rows = torch.randint(len(scans), (config.batch_size,), device=scans.device)
        level = torch.rand(config.batch_size, device=scans.device)
        signal, noise = (weight[:, None, None, None, None] for weight in _weigh(level))
        noisy = signal * changes[rows] + noise * torch.randn_like(changes[rows])
        optimizer.zero_grad()
        functional.mse_loss(network(noisy, scans[rows], level, ages[rows]), changes[rows]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _weigh(level: Tensor) -> tuple[Tensor, Tensor]:
    """Of signal and noise, from level 0 (clean) to 1 (noise): a quarter of a circle."""
    return (level * (math.pi / 2)).cos(), (level * (math.pi / 2)).sin()


def _describe_ages(ages_years: Sequence[tuple[float, float]], mean_age_years: float) -> Float[Tensor, "row 3"]:
    rows = [
        ((after - before) / 5, abs(after - before) / 5, ((before + after) / 2 - mean_age_years) / 10)
        for before, after in ages_years
    ]
    return torch.tensor(rows, dtype=torch.float32)

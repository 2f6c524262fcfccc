"""Chance changes to training windows, so that a model leans on no single frame or voxel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuroray.config import Config, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig(Config):
    """What is done to a window in training. That windows start elsewhere in each epoch is the sampler's part.

    Attributes:
        noise: Standard deviation of Gaussian noise added to brain voxels, in standard deviations of the run.
        drop_frames: Share of a window's frames that are blanked, as padding is.
    """

    noise: float = 0.0
    drop_frames: float = 0.0

    def __post_init__(self) -> None:
        if self.noise < 0 or not 0 <= self.drop_frames < 1:
            given = f"noise {self.noise}, drop_frames {self.drop_frames}"
            raise ConfigError("no such augmentation", given=given, expected="noise >= 0, 0 <= drop_frames < 1")


def augment(
    scores: Float[Tensor, "batch time x y z"],
    frame_mask: Bool[Tensor, "batch time"],
    config: AugmentConfig,
) -> Float[Tensor, "batch time x y z"]:
    """Draws from torch's generator of the tensor's device; the background, at each window's lowest score, stays.

    Args:
        scores: Standardised windows; changed in place.
        frame_mask: False for frames that hold nothing.
        config: What to do.
    """
    if config.noise == 0 and config.drop_frames == 0:
        return scores
    for window, is_held in zip(scores, frame_mask, strict=True):
        lowest = window.min()
        if config.noise > 0:
            for frame in window:  # one by one: a whole window's noise would take as much memory as the window
                frame.add_(torch.randn_like(frame).mul_(config.noise).masked_fill_(frame == lowest, 0))
        dropped = torch.rand(len(window), device=window.device) < config.drop_frames
        window[dropped & is_held] = lowest
    return scores

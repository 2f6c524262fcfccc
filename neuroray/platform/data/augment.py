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
        noise: Standard deviation of Gaussian noise added to brain voxels, in the unit of the scores.
        drop_frames: Share of a window's frames that are blanked, as padding is.
        flip_sign: Half of the windows are shown with every score's sign changed, which leaves all correlations as they
            are; only where background is 0.
    """

    noise: float = 0.0
    drop_frames: float = 0.0
    flip_sign: bool = False

    def __post_init__(self) -> None:
        if self.noise < 0 or not 0 <= self.drop_frames < 1:
            given = f"noise {self.noise}, drop_frames {self.drop_frames}"
            raise ConfigError("no such augmentation", given=given, expected="noise >= 0, 0 <= drop_frames < 1")


def augment(
    scores: Float[Tensor, "batch time x y z"],
    frame_mask: Bool[Tensor, "batch time"],
    config: AugmentConfig,
    *,
    background: float | None = None,
) -> Float[Tensor, "batch time x y z"]:
    """Draws from torch's generator of the tensor's device; the background stays.

    Args:
        scores: Standardised windows; changed in place.
        frame_mask: False for frames that hold nothing.
        config: What to do.
        background: Its score; None: each window's lowest.
    """
    if config == AugmentConfig():
        return scores
    if config.flip_sign:
        for window in scores:
            if torch.rand((), device=window.device) < 0.5:
                window.neg_()
    for window, is_held in zip(scores, frame_mask, strict=True):
        blank = window.min() if background is None else background
        if config.noise > 0:
            for frame in window:  # one by one: a whole window's noise would take as much memory as the window
                frame.add_(torch.randn_like(frame).mul_(config.noise).masked_fill_(frame == blank, 0))
        dropped = torch.rand(len(window), device=window.device) < config.drop_frames
        window[dropped & is_held] = blank
    return scores

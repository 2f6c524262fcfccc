"""Masked prediction of frames: what the encoder sees, what it is asked for, and that it finds what is planted."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.platform.models.brainmt.masked import MaskedFrames
from neuroray.platform.train.frame_pretraining import PretrainConfig, pretrain_frames

GRID = (17, 20, 35)  # 2 x 2 x 3 cubes, the last ones along x and z only a few voxels wide
CONFIG = BrainMTConfig(grid_shape=GRID, num_frames=7, width=4, mamba_depth=1, attention_depth=1, frames_at_once=3)
PLACES = list(itertools.product(range(2), range(2), range(3)))  # y, x, z, as tokens are


class Recorder(nn.Module):
    """An encoder that keeps what it sees and gives tokens that are known."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x[:, 0].transpose(-3, -2))
        generator = torch.Generator().manual_seed(5)
        return self.weight * torch.randn(CONFIG.num_channels, 12, generator=generator).expand(len(x), -1, -1)


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Frames, brain and hidden cubes."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(5, *GRID, generator=generator)
    brain = torch.rand(5, *GRID, generator=generator) < 0.6
    return frames * brain, brain, torch.rand(5, 12, generator=generator) < 0.4


def cube(place: int) -> tuple[slice, slice, slice]:
    """Its voxels along x, y, z."""
    y, x, z = PLACES[place]
    return (slice(16 * x, 16 * x + 16), slice(16 * y, 16 * y + 16), slice(16 * z, 16 * z + 16))


def test_the_encoder_sees_all_but_the_hidden_cubes() -> None:
    encoder, (frames, brain, hidden) = Recorder(), draw()
    MaskedFrames(encoder, CONFIG, GRID)(frames, brain, hidden, blank=-9.0)
    seen = torch.cat(encoder.seen)
    for frame, place in itertools.product(range(5), range(12)):
        expected = (
            torch.full_like(frames[frame][cube(place)], -9.0) if hidden[frame, place] else frames[frame][cube(place)]
        )
        assert torch.equal(seen[frame][cube(place)], expected)


def test_it_is_asked_for_the_means_over_the_brain_in_the_hidden_blocks_alone() -> None:
    encoder, (frames, brain, hidden) = Recorder(), draw()
    masked = MaskedFrames(encoder, CONFIG, GRID)
    share = masked(frames, brain, hidden)
    foretold = torch.einsum("ck,kcb->kb", encoder(torch.zeros(1, 1, 1, 1, 1))[0], masked.decoder).detach().numpy()
    missed = total = 0.0
    for frame, place in zip(*np.nonzero(hidden.numpy()), strict=True):
        values, inside = frames[frame][cube(place)].numpy(), brain[frame][cube(place)].numpy()
        for block, (i, j, k) in enumerate(itertools.product(range(0, 16, 4), repeat=3)):
            part = (slice(i, i + 4), slice(j, j + 4), slice(k, k + 4))
            count = inside[part].sum()
            if count:
                mean = values[part][inside[part]].mean()
                missed += count * (mean - foretold[place, block]) ** 2
                total += count * mean**2
    assert share.item() == pytest.approx(missed / total, rel=1e-4)  # float32 sums of some thousand terms


def test_who_foretells_nothing_misses_all() -> None:
    masked = MaskedFrames(Recorder(), CONFIG, GRID)
    nn.init.zeros_(masked.decoder)
    assert masked(*draw()).item() == pytest.approx(1.0)


def test_every_weight_of_the_encoder_learns_and_nothing_else_changes() -> None:
    """A pattern that spans the brain goes up and down, under noise of its size: it is found, to some part."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, frames_at_once=None, checkpoint=False)
    module = config.build()
    module.frame_encoder.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.Generator().manual_seed(2)
    pattern = torch.randn(3, 5, 9, generator=generator).repeat_interleave(6, 0).repeat_interleave(4, 1)
    pattern = pattern.repeat_interleave(4, 2)[:17, :, :35]

    def windows(count: int):
        for _ in range(count):
            course = torch.randn(2, 7, 1, 1, 1, generator=generator)
            scores = course * pattern + torch.randn(2, 7, *GRID, generator=generator)
            scores[:, :, :2], scores[1, 5:] = 0, 0
            yield scores, scores != 0

    pretraining = PretrainConfig(num_epochs=1, lr=5e-3)
    shares = pretrain_frames(module, windows(60), pretraining, grid_shape=GRID, num_steps=60, seed=3)
    assert np.mean(shares[:5]) > 0.95
    # A block's mean has an eighth of the noise's spread: nearly all of it can be known.
    assert np.mean(shares[-5:]) < 0.6
    after = module.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if name.startswith("frame_encoder.")}
    assert not any(parameter.requires_grad for parameter in module.frame_encoder.parameters())
    again = config.build()
    again.load_state_dict(before)
    generator.manual_seed(2)
    torch.randn(3, 5, 9, generator=generator)
    assert pretrain_frames(again, windows(3), pretraining, grid_shape=GRID, num_steps=60, seed=3) == shares[:3]

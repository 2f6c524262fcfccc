"""Masked pretraining of BrainMT's frame encoder on the training people's windows, before labels are learned."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuroray.config import Config
from neuroray.platform.data.plan import Plan, PlanConfig
from neuroray.platform.data.readers import Reader
from neuroray.platform.data.standardise import StandardiseConfig, standardise
from neuroray.platform.data.windows import choose_windows
from neuroray.platform.models.brainmt import BrainMT
from neuroray.platform.models.brainmt.masked import MaskedFrames
from neuroray.platform.train.feed import stream_batches
from neuroray.platform.train.optim import learning_rate
from neuroray.platform.train.parallel import Team
from neuroray.platform.train.recipe import OptimConfig, Recipe, RecipeError
from neuroray.platform.train.task import Cohort

logger = logging.getLogger(__name__)

_WARMUP_STEPS = 20
_CLIP_NORM = 1.0
_STEPS_OF_A_MEAN = 20  # whose shares are averaged for the log


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig(Config):
    """Learning without labels, before labels are learned.

    Attributes:
        num_epochs: Passes over the training people; 0: none.
        hidden_share: Of the cubes of each frame.
        lr: Peak learning rate of AdamW, with a cosine down to 0.
    """

    num_epochs: int = 0
    hidden_share: float = 0.5
    lr: float = 2e-3

    def __post_init__(self) -> None:
        if self.num_epochs < 0 or not 0 < self.hidden_share < 1 or self.lr <= 0:
            raise RecipeError(
                "no such pretraining",
                given=f"num_epochs {self.num_epochs}, hidden_share {self.hidden_share}, lr {self.lr}",
                expected="num_epochs of 0 or more, 0 < hidden_share < 1, lr above 0",
            )


def pretrain_on(
    cohort: Cohort,
    reader: Reader,
    module: BrainMT,
    config: PretrainConfig,
    *,
    recipe: Recipe,
    standard: StandardiseConfig,
) -> list[float]:
    """`pretrain_frames` on windows of the training people, drawn as those that labels are learned from.

    Every rank does the same, reading in its own process; nobody on another side is read.

    Raises:
        RecipeError: training runs on several grids.
    """
    grids = cohort.facts["grid_shapes"]
    if len(grids) != 1:
        raise RecipeError("pretraining takes runs of one grid", given=grids, fix="--pretrain.num-epochs 0")
    (x, y, z), seed = grids[0], recipe.seed
    plan = Plan(
        items=choose_windows(cohort.split.train, cohort.num_frames, recipe.data.windows, seed=seed),
        config=PlanConfig(batch_size=recipe.loop.batch_size, seed=seed),
        num_epochs=config.num_epochs,
    )
    device = torch.device("cuda" if recipe.scaling.use_gpu else "cpu")
    module.to(device)

    def windows() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in stream_batches(plan, reader, Team(device=device), feed="direct"):
            scores = standardise(batch.values, config=standard)
            yield scores, scores != standard.background

    shares = pretrain_frames(module, windows(), config, grid_shape=(x, y, z), num_steps=plan.num_steps, seed=seed)
    module.cpu()
    return shares


def pretrain_frames(
    module: BrainMT,
    windows: Iterable[tuple[Float[Tensor, "batch time x y z"], Bool[Tensor, "batch time x y z"]]],
    config: PretrainConfig,
    *,
    grid_shape: tuple[int, int, int],
    num_steps: int,
    seed: int,
) -> list[float]:
    """Trains `module.frame_encoder` in place, whether it asks for gradients afterwards or not.

    Args:
        module: Of which nothing else changes.
        windows: Standardised windows, on the module's device, and where there is brain in frames that were acquired.
        config: How long and how fast.
        grid_shape: Voxels along x, y, z.
        num_steps: How many batches `windows` gives.
        seed: Of what is hidden and of the decoder's first weights.

    Returns:
        Of each step, the share of the hidden blocks' mean square that was not foretold.
    """
    encoder, device = module.frame_encoder, next(module.parameters()).device
    asked = [parameter.requires_grad for parameter in encoder.parameters()]
    encoder.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    masked = MaskedFrames(encoder, module.config, grid_shape).to(device)
    with torch.no_grad():
        shape = masked.decoder.shape
        masked.decoder.copy_(torch.randn(shape, generator=generator) / shape[1] ** 0.5)
    optim = OptimConfig(name="adamw", lr=config.lr, schedule="cosine", warmup_steps=_WARMUP_STEPS)
    optimizer = torch.optim.AdamW(masked.parameters(), lr=config.lr, weight_decay=0.0)
    shares = []
    for step, (voxels, brain) in enumerate(windows, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, optim, steps_per_epoch=num_steps)
        frames, inside = voxels.flatten(0, 1), brain.flatten(0, 1)
        held = inside.flatten(1).any(dim=1)
        frames, inside = frames[held], inside[held]
        hidden = masked.draw_hidden(len(frames), config.hidden_share, generator).to(device)
        share = masked(frames, inside, hidden)
        optimizer.zero_grad()
        share.backward()
        nn.utils.clip_grad_norm_(masked.parameters(), _CLIP_NORM)
        optimizer.step()
        shares.append(share.item())
    for parameter, was_asked in zip(encoder.parameters(), asked, strict=True):
        parameter.requires_grad_(was_asked)
        parameter.grad = None
    _tell(shares)
    return shares


def _tell(shares: list[float]) -> None:
    first, last = shares[:_STEPS_OF_A_MEAN], shares[-_STEPS_OF_A_MEAN:]
    logger.info(
        "pretraining without labels, %d steps: of what is hidden %.0f %% was foretold at first, %.0f %% in the end",
        len(shares),
        100 * (1 - sum(first) / max(1, len(first))),
        100 * (1 - sum(last) / max(1, len(last))),
    )

"""The optimiser that a recipe asks for, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neuroray.platform.train.recipe import OptimConfig


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that require a gradient, those of one axis or none without weight decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind([group for group in groups if group["params"]], lr=config.lr)


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """The rate of step `step` (the first is 1) of `num_steps`: linear warm-up, then as the schedule says.

    It depends on nothing else, so a resumed run needs no scheduler state.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient(module: nn.Module, max_norm: float) -> Float[Tensor, ""]:
    """Scales the whole gradient to a Euclidean norm of at most `max_norm`; returns the norm before, over all shards."""
    trained = [parameter for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(trained, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm

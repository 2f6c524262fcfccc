"""The optimiser that a recipe asks for, its learning rate as a pure function of the step, and averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neuroray.platform.train.parallel import drop_gathered
from neuroray.platform.train.recipe import OptimConfig


def build_optimizer(
    module: nn.Module, config: OptimConfig, *, undecayed: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that require a gradient.

    Weight decay is for those of two axes or more whose names are not among `undecayed`.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    decayed = {name for name, parameter in trained if parameter.ndim >= 2 and name not in undecayed}
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind([group for group in groups if group["params"]], lr=config.lr)


def learning_rate(step: int, num_steps: int, config: OptimConfig, *, steps_per_epoch: int) -> float:
    """The rate of step `step` (the first is 1) of `num_steps`: linear warm-up, then as the schedule says.

    It depends on nothing else, so a resumed run needs no scheduler state.
    """
    warmup_steps = config.warmup_steps
    if config.warmup_epochs is not None:
        warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step <= warmup_steps:
        return config.lr * step / warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
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


class WeightAverage:
    """A running average of a module's trained weights (Polyak; as TensorFlow, slower to forget as the run grows).

    Attributes:
        weights: The average by parameter name, sharded as the parameters are; part of a checkpoint.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay, self._module = decay, module
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.weights = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step `step`, the first of which is 1.

        Early on the average forgets faster, `(1 + step) / (10 + step)`, for the initial weights are worth nothing.
        """
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._trained.items():
            self.weights[name].lerp_(parameter, share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The module computes with the average inside, and with its own weights again afterwards."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        drop_gathered(self._module)
        for name, parameter in self._trained.items():
            held = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(held)

"""The optimiser that a recipe asks for, its learning rate as a pure function of the step, and averaged weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neuroray.platform.train.parallel import drop_gathered
from neuroray.platform.train.recipe import OptimConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """Parameters that learn by settings of their own.

    Adam knows nothing of a parameter but its own gradients and steps, so a group with its own rate, moments,
    decay and clipping is an optimiser of its own, and there is one state to be kept and continued.

    Attributes:
        name: For the log.
        prefix: What the names of its parameters begin with.
        lr_share: Its learning rate, as a share of the recipe's, at every step.
        betas: How slowly its moments forget.
        weight_decay: See `OptimConfig`.
        clip_norm: Of its own gradient; None: no clipping.
    """

    name: str
    prefix: str
    lr_share: float
    betas: tuple[float, float]
    weight_decay: float
    clip_norm: float | None


def build_optimizer(
    module: nn.Module, config: OptimConfig, *, undecayed: Collection[str] = (), rivals: Sequence[Rival] = ()
) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that require a gradient.

    Weight decay is for those of two axes or more whose names are not among `undecayed`.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for rival in (None, *rivals):
        own = [(name, parameter) for name, parameter in trained if _owner(name, rivals) == rival]
        decayed = {name for name, parameter in own if parameter.ndim >= 2 and name not in undecayed}
        settings: dict[str, Any] = {} if rival is None else {"betas": rival.betas, "lr_share": rival.lr_share}
        decay = config.weight_decay if rival is None else rival.weight_decay
        groups += [
            {"params": [p for name, p in own if name in decayed], "weight_decay": decay, **settings},
            {"params": [p for name, p in own if name not in decayed], "weight_decay": 0.0, **settings},
        ]
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    optimizer = kind([group for group in groups if group["params"]], lr=config.lr)
    _fill_state(optimizer)
    return optimizer


def _fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Gives every parameter the state that Adam would give it at its first gradient.

    Some have none for epochs, as an adversary that begins late: a checkpoint from before could not be read behind it.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter).detach() for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}


def _owner(name: str, rivals: Sequence[Rival]) -> Rival | None:
    return next((rival for rival in rivals if name.startswith(rival.prefix)), None)


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
    """Gives every group the rate, or its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_share", 1.0)


def clip_gradient(
    module: nn.Module, max_norm: float | None, rivals: Sequence[Rival] = ()
) -> dict[str, Float[Tensor, ""]]:
    """Scales the gradient to a Euclidean norm of at most `max_norm`, each rival's to its own; None: not at all.

    Returns:
        The norms before, over all shards, as `gradient_norm` and `gradient_norm_NAME`; of what has no gradient none.
    """
    found: dict[str, Float[Tensor, ""]] = {}
    for rival in (None, *rivals):
        most = max_norm if rival is None else rival.clip_norm
        own = [p for name, p in module.named_parameters() if p.grad is not None and _owner(name, rivals) == rival]
        if most is None or not own:
            continue
        norm = torch.nn.utils.clip_grad_norm_(own, most)
        name = "gradient_norm" if rival is None else f"gradient_norm_{rival.name}"
        found[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return found


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

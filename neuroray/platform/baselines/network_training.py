"""Training of the small baseline networks: AdamW, early stopping on the validation side, one seed one result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.baselines.predictors import Task

Rows = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRecipe:
    """How a small network is trained.

    Attributes:
        num_epochs: At most.
        patience: Epochs without a lower validation loss after which it stops; the best weights are kept.
        batch_size: Rows of a step.
        lr: Peak learning rate; half a cosine down to zero over all epochs.
        weight_decay: Decoupled.
    """

    num_epochs: int = 60
    patience: int = 15
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Rows to learn or to select from: their values, and what makes a tensor of some of them."""

    values: Float[np.ndarray, " row"]
    rows: Rows


def fit_network(
    module: nn.Module, train: Side, val: Side, task: Task, recipe: NetworkRecipe
) -> Callable[[Rows, int], Float[np.ndarray, "row output"]]:
    """Trains a module, and gives what predicts with it.

    A measure is standardised by the training side's mean and deviation while it learns, and told in its own unit.

    Args:
        module: From a batch to `row output` logits, or to `row 1`.
        train: What it learns from.
        val: What stops it.
        task: Classes or measure, and the seed of order and dropout.
        recipe: How.

    Returns:
        A function of rows and their number: probabilities, or the measure in one column.
    """
    shift, scale = _scale(train.values, task)
    generator = torch.Generator().manual_seed(task.seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.num_epochs)
    best, best_loss, waited = copy.deepcopy(module.state_dict()), np.inf, 0
    targets = (train.values - shift) / scale
    for _ in range(recipe.num_epochs):
        module.train()
        for chosen in _split_rows(torch.randperm(len(targets), generator=generator).numpy(), recipe.batch_size):
            optimizer.zero_grad()
            _loss(module(train.rows(chosen)), targets[chosen], task).backward()
            optimizer.step()
        schedule.step()
        loss = _validate(module, val, (val.values - shift) / scale, task, recipe.batch_size)
        waited += 1
        if loss < best_loss:
            best, best_loss, waited = copy.deepcopy(module.state_dict()), loss, 0
        if waited >= recipe.patience:
            break
    module.load_state_dict(best)

    def predict(rows: Rows, num_rows: int) -> Float[np.ndarray, "row output"]:
        outputs = _run(module, rows, num_rows, recipe.batch_size)
        if task.kind == "classification":
            return functional.softmax(outputs.double(), dim=1).numpy()
        return outputs.double().numpy() * scale + shift

    return predict


def num_outputs(task: Task) -> int:
    """One logit per class, or one number."""
    return task.num_classes if task.kind == "classification" else 1


def _scale(values: np.ndarray, task: Task) -> tuple[float, float]:
    if task.kind == "classification":
        return 0.0, 1.0
    return float(values.mean()), float(values.std()) or 1.0


def _loss(outputs: Tensor, targets: np.ndarray, task: Task) -> Tensor:
    if task.kind == "classification":
        return functional.cross_entropy(outputs, torch.from_numpy(targets).long())
    return functional.mse_loss(outputs[:, 0], torch.from_numpy(targets).float())


def _validate(module: nn.Module, val: Side, targets: np.ndarray, task: Task, batch_size: int) -> float:
    return float(_loss(_run(module, val.rows, len(targets), batch_size), targets, task))


@torch.no_grad()
def _run(module: nn.Module, rows: Rows, num_rows: int, batch_size: int) -> Float[Tensor, "row output"]:
    module.eval()
    return torch.cat([module(rows(chosen)) for chosen in _split_rows(np.arange(num_rows), batch_size)])


def _split_rows(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]

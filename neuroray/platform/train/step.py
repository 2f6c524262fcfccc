"""One training step and one validation pass, written once for a single process and for many."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from neuroray.errors import NeurorayError
from neuroray.platform.train.optim import Rival, WeightAverage, clip_gradient, set_learning_rate
from neuroray.platform.train.parallel import Team, gather_rows, seeded
from neuroray.platform.train.recipe import Recipe
from neuroray.platform.train.task import IntervalTask, Outputs, Task, TaskModule


class TrainingError(NeurorayError, ArithmeticError):
    """Training that cannot go on: a loss or a validation score that is no number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBatch:
    """One rank's part of one batch.

    Attributes:
        step: The step's number in the plan, from 0.
        epoch: The epoch it belongs to, from 0.
        values: Rows of this rank, collated, on its device; where it has none, a stand-in of one row.
        num_rows: How many rows each rank has, known to all from the plan.
    """

    step: int
    epoch: int
    values: dict[str, Any]
    num_rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What a step works on.

    Attributes:
        recipe: Seed, precision, optimiser settings.
        task: The model's side.
        module: The (sharded) module.
        optimizer: Over its parameters.
        team: The ranks that share it.
        average: Of its weights, where the recipe keeps one.
        rivals: Parts of it that learn by settings of their own.
    """

    recipe: Recipe
    task: Task
    module: TaskModule
    optimizer: torch.optim.Optimizer
    team: Team
    average: WeightAverage | None = None
    rivals: tuple[Rival, ...] = ()


def train_step(learner: Learner, batch: RankBatch, *, rate: float) -> dict[str, float]:
    """One step: this rank's rows forward, the loss of everybody's rows, backward, as often as asked, then the update.

    Returns:
        The loss and its terms over the whole batch, the same on every rank; the gradient's norm where it is clipped.

    Raises:
        TrainingError: a term is not finite; the weights stay those of the step before.
    """
    learner.module.train()
    set_learning_rate(learner.optimizer, rate)
    learner.optimizer.zero_grad(set_to_none=True)
    values: dict[str, float] = {}
    # What a step draws depends on its number and rank alone, so nothing random has to be carried over an interruption.
    with seeded(_draw_seed(learner.recipe.seed, batch.step, learner.team.rank)):
        for part, share in _divide(batch, learner.recipe.optim.passes, rank=learner.team.rank):
            outputs, targets = gather_outputs(learner, part)
            terms = {name: share * term for name, term in learner.task.loss(outputs, targets).items()}
            found = {name: float(term.detach()) for name, term in terms.items()}
            require_finite(found, step=batch.step + 1)
            terms["loss"].backward()
            values = {name: values.get(name, 0.0) + value for name, value in found.items()}
    norms = clip_gradient(learner.module, learner.recipe.optim.clip_norm, learner.rivals)
    values |= {name: float(norm) for name, norm in norms.items()}
    learner.optimizer.step()
    if learner.average is not None:
        learner.average.update(batch.step + 1)
    return values


def _divide(batch: RankBatch, num_parts: int, *, rank: int) -> Iterator[tuple[RankBatch, float]]:
    """The batch in parts, each with its share of the rows: every `num_parts`-th row of all, whoever has it.

    So the parts are the same for every number of ranks, and each rank has about as many rows of each.
    """
    if num_parts == 1:
        yield batch, 1.0
        return
    offsets = [sum(batch.num_rows[:before]) for before in range(len(batch.num_rows))]
    for part in range(num_parts):
        firsts = [(part - offset) % num_parts for offset in offsets]
        counts = tuple(len(range(first, n, num_parts)) for first, n in zip(firsts, batch.num_rows, strict=True))
        if sum(counts) == 0:
            continue
        # Where this rank has no row of a part that others have, its first one stands in, and is not counted.
        chosen = slice(firsts[rank], None, num_parts) if counts[rank] else slice(0, 1)
        values = {name: value[chosen] for name, value in batch.values.items()}
        yield replace(batch, values=values, num_rows=counts), sum(counts) / sum(batch.num_rows)


def gather_outputs(learner: Learner, batch: RankBatch) -> tuple[Outputs, Shaped[Tensor, "row ..."]]:
    """Outputs (float32) and targets of the whole batch, of which this rank computes its own rows."""
    team = learner.team
    with torch.autocast(team.device.type, torch.bfloat16, enabled=learner.recipe.loop.precision == "bf16"):
        own = learner.module(batch.values)
    targets = learner.task.targets(batch.values)
    # A rank without rows ran a stand-in, because the others wait for it in FSDP's exchanges; it is dropped here.
    num_own = batch.num_rows[team.rank]
    outputs = {name: gather_rows(value[:num_own].float(), batch.num_rows, team) for name, value in own.items()}
    return outputs, gather_rows(targets[:num_own], batch.num_rows, team)


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What a validation pass found.

    Attributes:
        values: Loss terms and scores.
        intervals: How far answers were off, by target, ready for JSON; empty for a task that does not tell.
    """

    values: dict[str, float]
    intervals: dict[str, Any]


@torch.no_grad()
def validate(learner: Learner, batches: Iterable[RankBatch]) -> Validation:
    """Over all rows of all batches, each row once, the same numbers on every rank."""
    learner.module.eval()
    with learner.average.applied() if learner.average is not None else contextlib.nullcontext():
        parts = [gather_outputs(learner, batch) for batch in batches]
    outputs = {name: torch.cat([part[name] for part, _ in parts]) for name in parts[0][0]}
    targets = torch.cat([part for _, part in parts])
    values = {name: float(term) for name, term in learner.task.loss(outputs, targets).items()}
    values |= learner.task.score(outputs, targets)
    # Numbers that are none end the run; nothing more is made of them.
    if not isinstance(learner.task, IntervalTask) or not all(map(math.isfinite, values.values())):
        return Validation(values=values, intervals={})
    found = learner.task.intervals(outputs, targets)
    return Validation(values=values, intervals={name: one.to_json() for name, one in found.items()})


def require_finite(values: dict[str, float], *, step: int) -> None:
    """Stops a run whose numbers have left the real line.

    Raises:
        TrainingError: naming the step and the terms.
    """
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        raise TrainingError(
            f"the loss is no number at step {step}",
            given=", ".join(f"{name} {value}" for name, value in values.items()),
            expected=f"finite {', '.join(wrong)}",
            fix="a lower --optim.lr, --optim.clip-norm 1, or a look for NaN among the inputs",
        )


def _draw_seed(*key: int) -> int:
    """A 63-bit seed for each key, far apart for neighbours."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

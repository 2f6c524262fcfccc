"""A task that trains in milliseconds, with what makes sharding hard: a loss relating rows, a bias of one number."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import without_effect
from neuroray.platform.data.collate import Row
from neuroray.platform.data.plan import KeyedPermutation, ReadItem
from neuroray.platform.data.splits import Split, SplitConfig
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.evaluate.metrics import classification_metrics
from neuroray.platform.train.loop import Run, train_worker
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, ScalingConfig
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.storage.locations import Location

NUM_CHANNELS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyRecipe(Recipe):
    """A small net; with `dropout` a step draws; in its step `break_at` an attempt ends in an error.

    With `kill_once`, a file that is not there yet, the second rank kills its process in that step instead, once. With
    `record_to`, every rank writes what it learns from, step by step, into a file of its own in that folder.
    """

    model_name: Literal["toy"] = "toy"
    hidden: int = 5
    dropout: float = 0.0
    break_at: int | None = without_effect(None)
    kill_once: str | None = without_effect(None)
    record_to: str | None = without_effect(None)

    def task(self) -> ToyTask:
        return ToyTask(self)


class ToyNet(nn.Module):
    """Linear, tanh, dropout, two heads: class scores, and one number with a bias of shape (1,)."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Linear(NUM_CHANNELS, hidden)
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(hidden, 2)
        self.number = nn.Linear(hidden, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.dropout(torch.tanh(self.stem(features)))
        return self.logits(hidden), self.number(hidden)


class ToyTask:
    """The task of `ToyRecipe`."""

    def __init__(self, recipe: ToyRecipe) -> None:
        self.recipe = recipe
        self.num_steps = 0

    def prepare(self, store: Any) -> Cohort:
        raise NotImplementedError

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Nothing is taken from the data."""

    def build(self) -> ToyNet:
        with seeded(self.recipe.seed):
            return ToyNet(self.recipe.hidden, self.recipe.dropout)

    def blocks(self, module: ToyNet) -> Sequence[nn.Module]:
        return [module.stem]

    def undecayed(self, module: ToyNet) -> tuple[str, ...]:
        return ("stem.weight",)

    def reader(self, cohort: Cohort) -> ToyReader:
        return ToyReader(cohort.split)

    def forward(self, module: ToyNet, batch: Batch) -> Outputs:
        if module.training:
            self.num_steps += 1
            if self.recipe.record_to is not None:
                _record(Path(self.recipe.record_to), batch)
            if self.num_steps == self.recipe.break_at:
                self._break()
        logits, number = module(batch["features"])
        return {"logits": logits, "number": number}

    def _break(self) -> None:
        if self.recipe.kill_once is None:
            raise InterruptedError
        if torch.distributed.get_rank() == 1 and not Path(self.recipe.kill_once).exists():
            Path(self.recipe.kill_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def targets(self, batch: Batch) -> Tensor:
        return batch["label"]

    def loss(self, outputs: Outputs, targets: Tensor) -> Terms:
        entropy = functional.cross_entropy(outputs["logits"], targets)
        # Over all pairs of rows: wrong as soon as a rank sees its own rows only.
        number = outputs["number"]
        spread = ((number * number.T - (targets[:, None] == targets).float()) ** 2).mean()
        return {"loss": entropy + spread, "cross_entropy": entropy, "spread": spread}

    def score(self, outputs: Outputs, targets: Tensor) -> dict[str, float]:
        probabilities = outputs["logits"].double().softmax(1).numpy()
        return {"auc": float(classification_metrics(targets.numpy(), probabilities)["auc"][0])}

    def export(self, module: ToyNet, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        weights = {name: value.tolist() for name, value in module.state_dict().items()}
        folder.write_bytes("model.json", json.dumps({"weights": weights, "training": training}).encode())


class ToyReader:
    """Rows made from the name of the scan, and so the same everywhere."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __call__(self, item: ReadItem) -> Row:
        label = int(self.split.labels[item.scan_id])
        noise = np.random.default_rng(KeyedPermutation(2**31, *_key_of(item))[0])
        features = noise.normal(size=NUM_CHANNELS).astype(np.float32)
        features[0] += 1.5 * label
        row = {"features": features, "label": np.array(label)}
        return row if item.start is None else {**row, "window": np.array([int(item.scan_id[4:]), item.start])}

    def size_bytes(self, item: ReadItem) -> int:
        return 4 * NUM_CHANNELS + 8 + (0 if item.start is None else 16)


def _key_of(item: ReadItem) -> tuple[str | int, ...]:
    return (item.scan_id,) if item.start is None else (item.scan_id, item.start)


def _record(folder: Path, batch: Batch) -> None:
    """One line per step: the windows (number of the person, first frame) of this rank's rows."""
    is_grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if is_grouped else 0
    windows = batch["window"][batch["item"] >= 0].tolist()  # without the stand-in of a rank that has no row
    folder.mkdir(exist_ok=True)
    with (folder / f"rank-{rank}.jsonl").open("a") as file:
        file.write(json.dumps(windows) + "\n")


def train_each(runs: Sequence[Run]) -> None:
    """Several runs after one another, for processes cost more than what they do; `break_at` ends its run only."""
    for run in runs:
        with contextlib.suppress(InterruptedError):
            train_worker(run)


def toy_cohort(num_train: int = 23, num_val: int = 9) -> Cohort:
    """People with even and odd numbers as the two classes."""
    names = [f"sub-{number:03d}" for number in range(num_train + num_val)]
    split = Split(
        config=SplitConfig(),
        train=tuple(names[:num_train]),
        val=tuple(names[num_train:]),
        test=(),
        labels={name: str(number % 2) for number, name in enumerate(names)},
        catalogue_version=3,
    )
    frames = {name: 40 + number for number, name in enumerate(names)}
    spacing_mm = ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    return Cohort(store="nowhere", version=3, split=split, spacing_mm=spacing_mm, num_frames=frames)


def toy_run(
    folder: str,
    *,
    num_train: int = 23,
    dropout: float = 0.0,
    break_at: int | None = None,
    kill_once: str | None = None,
    record_to: str | None = None,
    windows: WindowConfig | None = None,
    scaling: ScalingConfig | None = None,
    optim: OptimConfig | None = None,
    **loop: Any,
) -> Run:
    """A run of 4 steps an epoch, the last of them short; `loop` overrides the settings of its loop."""
    settings: dict[str, Any] = {"batch_size": 7, "num_epochs": 4, "checkpoint_every_steps": 3, **loop}
    recipe = ToyRecipe(
        seed=5,
        dropout=dropout,
        break_at=break_at,
        kill_once=kill_once,
        record_to=record_to,
        data=DataConfig(windows=windows or WindowConfig()),
        scaling=scaling or ScalingConfig(),
        optim=optim or OptimConfig(lr=0.05, clip_norm=1.0),
        loop=LoopConfig(**settings),
    )
    return Run(recipe=recipe, cohort=toy_cohort(num_train), folder=Location(folder))

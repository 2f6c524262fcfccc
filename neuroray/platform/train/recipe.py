"""Recipe: one complete, typed description of a training run; each model derives its own from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from neuroray.config import Config, without_effect
from neuroray.errors import NeurorayError
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.data.windows import WindowConfig

if TYPE_CHECKING:
    from neuroray.platform.train.task import Task

# What a run may be selected by, always measured on the validation people; the sign says which way is better.
SelectBy = Literal["val_auc", "val_balanced_accuracy", "val_r", "val_r2", "val_mae", "val_psnr", "val_loss"]
SELECTION_SIGN: dict[SelectBy, int] = {
    "val_auc": 1,
    "val_balanced_accuracy": 1,
    "val_r": 1,
    "val_r2": 1,
    "val_mae": -1,
    "val_psnr": 1,
    "val_loss": -1,
}


class RecipeError(NeurorayError, ValueError):
    """A run that cannot start, or cannot go on, as described: names the field and the likely fix."""


def _require(holds: bool, rule: str, given: Any, fix: str | None = None) -> None:
    if not holds:
        raise RecipeError(rule, given=given, fix=fix)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(Config):
    """Which scans, which label, in which order.

    Attributes:
        modality: Scans of this kind are taken.
        target: The label: a column of the catalogue, or a name among a scan's extra columns.
        classes: Values of it to keep; empty: all. The model's outputs follow them in sorted order.
        sampling: `shuffled` passes over everybody once an epoch; `balanced` draws the classes equally often; `in_order`
            takes everybody in the same order every epoch, which is for parity with scripts that do.
        windows: Which frames of a run are read: whole scans, or windows. Evaluation covers every frame either way.
        version: Version of the catalogue; None: the newest when the run starts, which is then written into
            `config.json`.
        store: Where the scans are; filled when the run starts.
        feed: `ray` streams through Ray Data, `direct` reads in the training process; the batches are the same bytes.
            `auto` is `direct` in process and `ray` on workers.
    """

    modality: str = "T1w"
    target: str = "diagnosis"
    classes: tuple[str, ...] = ()
    sampling: Literal["shuffled", "balanced", "in_order"] = "shuffled"
    windows: WindowConfig = field(default_factory=WindowConfig)
    version: int | None = None
    store: Annotated[str, tyro.conf.Suppress] = without_effect("")
    feed: Literal["auto", "ray", "direct"] = without_effect("auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig(Config):
    """The optimiser and its learning rate over steps.

    Attributes:
        name: `adam` (weight decay added to the gradient) or `adamw` (decoupled).
        lr: Peak learning rate.
        weight_decay: Only on parameters of two or more axes, and of those not on what the model exempts (tables of
            positions, decays of a scan): not on biases, norms or scales.
        schedule: After the warm-up: constant, or half a cosine down to zero at the last step.
        warmup_steps: Steps over which the rate rises linearly from 0.
        warmup_epochs: The same in epochs, or parts of one; None: `warmup_steps` counts.
        clip_norm: Largest Euclidean norm of the whole gradient; None: no clipping.
        passes: Forward and backward passes that a step's batch is divided into, so that only a part of it is in memory
            as activations; each has the loss of its own rows, weighted by their number.
        average_decay: Validate and export a running average of the weights, each step's counting `1 - average_decay`
            (an exponential moving average); None: the weights themselves.
    """

    name: Literal["adam", "adamw"] = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    warmup_epochs: float | None = None
    clip_norm: float | None = None
    passes: int = 1
    average_decay: float | None = None

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr must be above 0", self.lr)
        _require(self.weight_decay >= 0, "optim.weight_decay must not be negative", self.weight_decay)
        _require(self.warmup_steps >= 0, "optim.warmup_steps must not be negative", self.warmup_steps)
        if self.warmup_epochs is not None:
            _require(self.warmup_epochs >= 0, "optim.warmup_epochs must not be negative", self.warmup_epochs)
            rule = "a warm-up is given in steps or in epochs, not in both"
            _require(self.warmup_steps == 0, rule, f"{self.warmup_steps} steps and {self.warmup_epochs} epochs")
        _require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm must be above 0", self.clip_norm)
        _require(self.passes >= 1, "optim.passes must be at least 1", self.passes)
        is_fraction = self.average_decay is None or 0 < self.average_decay < 1
        _require(is_fraction, "optim.average_decay must lie between 0 and 1", self.average_decay)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig(Config):
    """How long, how often, by what.

    Attributes:
        batch_size: Samples of one step over all workers together.
        num_epochs: Passes over the training people.
        eval_every_epochs: Epochs between two looks at the validation people; the last epoch always ends with one.
        select_by: What decides which weights are kept, on the validation people only; a tie goes to the lower
            validation loss.
        patience: Evaluations without a better one after which the run stops; None: it never stops early.
        precision: `bf16` runs the forward pass under autocast; parameters, gradients and loss stay float32.
        checkpoint_every_steps: Steps between two checkpoints; each new best evaluation is kept besides.
        keep_checkpoints: Newest checkpoints that stay, besides the best one.
        log_every_steps: Steps between two rows of the log.
    """

    batch_size: int = 16
    num_epochs: int = 100
    eval_every_epochs: int = 1
    select_by: SelectBy = "val_auc"
    patience: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every_steps: int = without_effect(200)
    keep_checkpoints: int = without_effect(2)
    log_every_steps: int = without_effect(1)

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_epochs", "eval_every_epochs", "checkpoint_every_steps", "keep_checkpoints"):
            _require(getattr(self, name) >= 1, f"loop.{name} must be at least 1", getattr(self, name))
        _require(self.log_every_steps >= 1, "loop.log_every_steps must be at least 1", self.log_every_steps)
        _require(self.patience is None or self.patience >= 1, "loop.patience must be at least 1", self.patience)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig(Config):
    """On how many workers; nothing in here changes a result, so nothing enters the fingerprint.

    Attributes:
        num_workers: 0: in this process, without Ray. n: Ray Train workers. (min, max): as many as the cluster has
            between these; the run moves to another number from its newest checkpoint.
        use_gpu: One GPU per worker (in process: the first).
        cpus_per_worker: Logical CPUs that a worker reserves.
        max_failures: Dead workers after which Ray Train gives up; each one costs the steps since the newest checkpoint.
    """

    num_workers: int | tuple[int, int] = without_effect(0)
    use_gpu: bool = without_effect(False)
    cpus_per_worker: float = without_effect(1.0)
    max_failures: int = without_effect(3)

    def __post_init__(self) -> None:
        low, high = self.worker_range
        fits = low == high == 0 or 1 <= low <= high
        _require(fits, "scaling.num_workers must be 0, a number of workers, or (min, max)", self.num_workers)

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Config):
    """What every run has; a model's recipe adds the model and its loss.

    Attributes:
        model_name: Key of the model in `platform.models.MODELS`; a subclass declares it with its own value.
        name: The recipe's name, `model:variant`.
        seed: Seeds the initial weights, the order of samples and whatever a step draws.
    """

    model_name: str
    name: str = without_effect("")
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        most = self.scaling.worker_range[1]
        fix = f"--loop.batch-size {most} or more, or fewer workers"
        _require(most <= self.loop.batch_size, "every worker needs a sample of each batch", self.loop.batch_size, fix)

    def task(self) -> Task:
        """What the loop needs of the model."""
        raise NotImplementedError


def describe_differences(left: Config, right: Config, *, prefix: str = "") -> list[str]:
    """Fields that affect the result and differ, each as `field: left -> right` with its dotted name."""
    if type(left) is not type(right):
        return [f"{prefix or 'recipe'}: {type(left).__name__} -> {type(right).__name__}"]
    found: list[str] = []
    for one in dataclasses.fields(left):
        if not one.metadata.get("fingerprint", True):
            continue
        old, new = getattr(left, one.name), getattr(right, one.name)
        if isinstance(old, Config) and isinstance(new, Config):
            found += describe_differences(old, new, prefix=f"{prefix}{one.name}.")
        elif old != new:
            found.append(f"{prefix}{one.name}: {old!r} -> {new!r}")
    return found

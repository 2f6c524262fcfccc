"""Task: what the training loop asks of a model, and the cohort that a run is made on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from neuroray.platform.data.readers import Reader
from neuroray.platform.data.splits import Split
from neuroray.platform.data.targets import Target
from neuroray.platform.evaluate.conformal import Calibration
from neuroray.platform.train.optim import Rival
from neuroray.storage.locations import Location
from neuroray.storage.profiles.stored import StoredProfile
from neuroray.storage.store import ScanStore

Batch = Mapping[str, Any]
Outputs = dict[str, Shaped[Tensor, "row ..."]]
Terms = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The people of a run: pinned when it starts, recorded in its folder, sent to every worker.

    Attributes:
        store: Address of the scan store.
        version: Version of its catalogue.
        split: Who trains, who selects, who judges, and the labels.
        features: Fingerprint of the cached features that are read in place of scans; None: scans are read.
        spacing_mm: Smallest and largest voxel size along x, y, z among the training scans.
        num_frames: Of each scan, by scan id, for a model that reads windows.
        targets: What is learned of them, for a model that takes them from here and not from the split.
        facts: What else is to be known of the training scans when the model answers for others; goes to its card.
        groups: The family or person of each scan, for a task that finds intervals.
        profile: How all of the scans were prepared; native when not given.
    """

    store: str
    version: int
    split: Split
    features: str | None = None
    spacing_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    num_frames: Mapping[str, int] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, str] = field(default_factory=dict)
    profile: StoredProfile = field(default_factory=lambda: StoredProfile.from_json(None))

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """The scans of all sides; the place of each is its number among the targets of a batch."""
        return (*self.split.train, *self.split.val, *self.split.test)

    def to_json(self) -> dict[str, Any]:
        """Counts and pins, without a name: for `run.json` and for people."""
        return {
            "store": self.store,
            "catalogue_version": self.version,
            "features": self.features,
            "classes": list(self.split.classes),
            "counts": self.split.counts(),
            "left_out": len(self.split.left_out),
            "targets": [target.to_json() for target in self.targets],
            "spacing_mm": [list(bound) for bound in self.spacing_mm],
            "profile": self.profile.to_json(),
        }


class Task(Protocol):
    """One per model, made by its recipe: plain functions, run alike in process and on every worker."""

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people and checks that training can start.

        Raises:
            RecipeError: it cannot, and what would help.
        """
        ...

    def build(self) -> nn.Module:
        """The module to train, in float32 on the CPU, the same weights on every rank; frozen ones ask no gradient."""
        ...

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Sets what a fresh module takes from the training scans before it learns; the same on every rank.

        Called before the first step, also of a run that is continued: a task may keep what its loss and scores need.
        """
        ...

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """The parts of it that are sharded as units of their own, in the order in which they run."""
        ...

    def undecayed(self, module: nn.Module) -> Collection[str]:
        """Names of its parameters of two axes or more that weight decay leaves alone."""
        ...

    def reader(self, cohort: Cohort) -> Reader:
        """What reads one item of the plan; picklable, for Ray Data runs it in its own processes."""
        ...

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """This rank's rows through the module, whatever loss and score need of them, row by row."""
        ...

    def targets(self, batch: Batch) -> Shaped[Tensor, "row ..."]:
        """The true values of the same rows."""
        ...

    def loss(self, outputs: Outputs, targets: Shaped[Tensor, "row ..."]) -> Terms:
        """The loss over the rows of all ranks, as `loss`, and its terms by name."""
        ...

    def score(self, outputs: Outputs, targets: Shaped[Tensor, "row ..."]) -> dict[str, float]:
        """Metrics over the whole validation set, by the names that `loop.select_by` knows without `val_`."""
        ...

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves a model folder that rebuilds itself without this run: weights, config, provenance."""
        ...


@runtime_checkable
class IntervalTask(Protocol):
    """A task whose answers for others are to have an interval; asked for beside `score`, of the same rows."""

    def intervals(self, outputs: Outputs, targets: Shaped[Tensor, "row ..."]) -> Mapping[str, Calibration]:
        """How far answers for the validation people are off, by target; kept with the best weights and exported."""
        ...


@runtime_checkable
class WatchedTask(Protocol):
    """A task that has something to tell of a whole epoch of training."""

    def summarise_epoch(self, module: nn.Module) -> dict[str, float]:
        """Of the steps since the epoch began, on every rank the same; the next epoch begins with it."""
        ...


@runtime_checkable
class RivalTask(Protocol):
    """A task of which parts learn against each other, each by settings of its own."""

    def rivals(self, module: nn.Module) -> Sequence[Rival]:
        """Those that do not learn by the recipe's `optim`."""
        ...


@runtime_checkable
class RehearsableTask(Task, Protocol):
    """A task whose step can be run on tensors without memory, so that what it takes is known beforehand."""

    def stand_ins(self, grid_shape: tuple[int, int, int] | None) -> tuple[nn.Module, Callable[[int], Batch]]:
        """The module, ready for `forward` at its heaviest, and what makes a batch of so many rows; both of no data.

        Args:
            grid_shape: Of the volumes; None: those that the model is described by.
        """
        ...

    def name_row(self, grid_shape: tuple[int, int, int] | None) -> str:
        """What a row of a batch is, in the plural: volumes of 160 x 192 x 176."""
        ...


class TaskModule(nn.Module):
    """The module behind the task's own forward, which returns a plain dict.

    FSDP2 finds the outputs that it must hook in dicts and tuples, not in a model's own output class; and hooks only
    what runs as the forward of a module.
    """

    def __init__(self, task: Task, module: nn.Module) -> None:
        super().__init__()
        self._task = task
        self.module = module

    def forward(self, batch: Batch) -> Outputs:
        """The rows of a batch through the module."""
        return self._task.forward(self.module, batch)

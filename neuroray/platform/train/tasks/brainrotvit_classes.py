"""BrainRotViT in training, second stage, for classes: the same CNN over cached maps tells a diagnosis, not an age."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import tyro
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from neuroray.platform.data.splits import Split, SplitConfig
from neuroray.platform.data.targets import Target, class_target
from neuroray.platform.evaluate.conformal import Calibration
from neuroray.platform.evaluate.metrics import classification_metrics
from neuroray.platform.models.brainrotvit import BrainRotViTConfig, BrainRotViTHead
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, RecipeError
from neuroray.platform.train.task import Cohort, Outputs, Terms
from neuroray.platform.train.tasks.brainrotvit import BrainRotViTTask, count_sexes
from neuroray.storage.store import ScanRecord

logger = logging.getLogger(__name__)

_MODEL_FORMAT = 1
_SCORES = frozenset({"val_auc", "val_balanced_accuracy", "val_loss"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainRotViTClassRecipe(Recipe):
    """A run of BrainRotViT's second stage that learns classes: a diagnosis, or who converts.

    Attributes:
        model: The whole model; `num_outputs` is 1 for two classes, the logit of the last by name, else one a class.
        class_weights: `balanced`, as the authors: all classes count the same in the loss, however many people they
            have; `equal`: everybody counts the same.
        mirror_share: Share of the training maps that are mirrored, anew in every step.
    """

    model_name: Annotated[Literal["brainrotvit_classes"], tyro.conf.Suppress] = "brainrotvit_classes"
    model: BrainRotViTConfig = field(default_factory=BrainRotViTConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(target="diagnosis"))
    split: SplitConfig = field(default_factory=lambda: SplitConfig(stratify_by="diagnosis"))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-4))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(select_by="val_auc"))
    class_weights: Literal["equal", "balanced"] = "balanced"
    mirror_share: float = 0.0

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        if self.split.stratify_by != self.data.target or self.split.num_bins is not None:
            raise RecipeError(
                "people are dealt by the classes that are learned",
                given=f"split.stratify_by {self.split.stratify_by}, split.num_bins {self.split.num_bins}",
                fix=f"--split.stratify-by {self.data.target}",
            )
        if self.loop.select_by not in _SCORES:
            raise RecipeError(
                "weights cannot be selected for classes by this score",
                given=self.loop.select_by,
                expected=f"one of {', '.join(sorted(_SCORES))}",
                fix="--loop.select-by val_auc",
            )
        if not 0 <= self.mirror_share <= 1:
            raise RecipeError("mirror_share is no fraction", given=self.mirror_share, expected="0 to 1")

    def task(self) -> BrainRotViTClassTask:
        """What the loop needs of it."""
        return BrainRotViTClassTask(self)


class BrainRotViTClassTask(BrainRotViTTask):
    """The task of a `BrainRotViTClassRecipe`: that for a measure, with other targets, loss and scores."""

    def __init__(self, recipe: BrainRotViTClassRecipe) -> None:
        # What is inherited reads of a recipe its model, its seed and mirror_share, which both kinds have.
        super().__init__(recipe)  # pyright: ignore[reportArgumentType]
        self._classes = recipe
        self._target: Target | None = None

    def _make_target(self, split: Split) -> Target:
        recipe = self._classes
        balanced = recipe.class_weights == "balanced"
        target = class_target(recipe.data.target, split.labels, train=split.train, balanced=balanced)
        _require_outputs(target, recipe)
        return target

    def _describe_people(self, records: Sequence[ScanRecord], split: Split) -> dict[str, Any]:
        """Of the training scans, for the model card: how many of each class and of each sex."""
        classes = Counter(split.labels[scan_id] for scan_id in split.train)
        return {"num_by_class": dict(sorted(classes.items())), "num_by_sex": count_sexes(records, split)}

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Sets the scale of the map where the model standardises; keeps the classes and what they weigh."""
        assert isinstance(module, BrainRotViTHead)
        self._target = cohort.targets[0]
        self._fit_map_scale(module, cohort)

    def loss(self, outputs: Outputs, targets: Float[torch.Tensor, "row 2"]) -> Terms:
        """Cross entropy, each person weighed by the class: the mean over the weights, as torch's own."""
        target, said, classes = self._known_target(), outputs["outputs"], targets[:, 0]
        weights = said.new_tensor(target.class_weights)
        if target.num_outputs > 1:
            return {"loss": functional.cross_entropy(said, classes.long(), weight=weights)}
        each = functional.binary_cross_entropy_with_logits(said[:, 0], classes.to(said.dtype), reduction="none")
        own = weights[classes.long()]
        return {"loss": (each * own).sum() / own.sum()}

    def score(self, outputs: Outputs, targets: Float[torch.Tensor, "row 2"]) -> dict[str, float]:
        """Area under the ROC curve, from probabilities, and balanced accuracy."""
        probabilities = self._known_target().probabilities(outputs["outputs"]).cpu().numpy()
        metrics = classification_metrics(targets[:, 0].long().cpu().numpy(), probabilities)
        return {name: float(metrics[name][0]) for name in ("auc", "balanced_accuracy")}

    def intervals(self, outputs: Outputs, targets: Float[torch.Tensor, "row 2"]) -> dict[str, Calibration]:
        """None: classes come with probabilities."""
        del outputs, targets
        return {}

    @property
    def _quantiles(self) -> tuple[float, ...]:
        return ()

    def _known_target(self) -> Target:
        assert self._target is not None, "calibrate comes before the first step"
        return self._target


def _require_outputs(target: Target, recipe: BrainRotViTClassRecipe) -> None:
    if recipe.model.num_outputs != target.num_outputs:
        raise RecipeError(
            f"the model has another number of outputs than {target.name} needs",
            given=f"{recipe.model.num_outputs} for {', '.join(target.classes)}",
            expected=f"{target.num_outputs}",
            fix=f"--model.num-outputs {target.num_outputs}, or name the classes to keep: "
            f"--data.classes {' '.join(target.classes[:2])}",
        )

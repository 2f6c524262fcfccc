"""BrainRotViT in training, second stage, for classes: the same CNN over cached maps tells a diagnosis, not an age."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import nn
from torch.nn import functional

from neuroray.platform.data.labels import LabelError
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.splits import Split, SplitConfig, split_subjects
from neuroray.platform.data.targets import Target, TargetError, class_target
from neuroray.platform.evaluate.conformal import Calibration
from neuroray.platform.evaluate.metrics import classification_metrics
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.models.brainrotvit import BrainRotViTConfig, BrainRotViTHead
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.people import choose_records, spacing_range
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, RecipeError
from neuroray.platform.train.slice_features import feature_fingerprint, require_features, require_unseen, without_path
from neuroray.platform.train.task import Cohort, Outputs, Terms
from neuroray.platform.train.tasks.brainrotvit import BrainRotViTTask
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import find_common_profile
from neuroray.storage.store import ScanRecord, ScanStore

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

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people, and finds their cached features.

        Raises:
            RecipeError: no such scans, one class only, classes that do not fit the model, features that are not there.
            ProfileError: scans that were not all prepared alike.
            SplitError: too few people.
        """
        recipe = self._classes
        records = choose_records(store, recipe)
        profile = find_common_profile(store, records)
        try:
            split = split_subjects(records, recipe.split, catalogue_version=store.version)
            balanced = recipe.class_weights == "balanced"
            # The split's own labels: in a control experiment they are the shuffled ones.
            target = class_target(recipe.data.target, split.labels, train=split.train, balanced=balanced)
        except (LabelError, TargetError) as fault:
            raise RecipeError(fault.fault, given=fault.given, expected=fault.expected, fix=fault.fix) from fault
        _require_outputs(target, recipe)
        require_unseen(recipe.model, records, split)
        features = feature_fingerprint(recipe.model)
        require_features(store, split, features, recipe)
        if split.left_out:
            logger.warning("%d scans have no %s and are left out", len(split.left_out), target.name)
        return Cohort(
            store=store.uri,
            version=store.version,
            split=split,
            features=features,
            spacing_mm=spacing_range(records, split.train),
            targets=(target,),
            facts=_describe_people(records, split),
            groups={record.scan_id: name_group(record.subject, record.family_id) for record in records},
            profile=profile,
        )

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Sets the scale of the map where the model standardises; keeps the classes and what they weigh."""
        assert isinstance(module, BrainRotViTHead)
        self._target = cohort.targets[0]
        if self._classes.model.standardise:
            reader = self.reader(cohort)
            rows = (reader(ReadItem(scan_id=scan_id)) for scan_id in cohort.split.train)
            module.fit_scale(torch.from_numpy(np.array(row["features"])) for row in rows)

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

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves encoder and head together, with what reads their answers."""
        recipe = self._classes
        with seeded(recipe.seed):
            model = recipe.model.build()
        model.head.load_state_dict(module.state_dict())
        described = {
            "format": _MODEL_FORMAT,
            "model_name": recipe.model_name,
            "model": without_path(recipe.model).to_json(),
            "classes": list(cohort.targets[0].classes),
            "target": recipe.data.target,
            "targets": [target.to_json() for target in cohort.targets],
            "quantiles": [],
            "modality": recipe.data.modality,
            "encoder_sha256": model.encoder.hash_weights(),
            "feature_fingerprint": cohort.features,
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "people": dict(cohort.facts),
            "profile": cohort.profile.to_json(),
        }
        save_weights(folder, model.state_dict(), described, training)

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


def _describe_people(records: Sequence[ScanRecord], split: Split) -> dict[str, Any]:
    """Of the training scans, for the model card: how many of each class and of each sex."""
    chosen = set(split.train)
    sexes = Counter(record.sex or "unknown" for record in records if record.scan_id in chosen)
    classes = Counter(split.labels[scan_id] for scan_id in split.train)
    return {"num_by_class": dict(sorted(classes.items())), "num_by_sex": dict(sorted(sexes.items()))}

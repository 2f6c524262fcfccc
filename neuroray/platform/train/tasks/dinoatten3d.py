"""DinoAtten3D in training: the head learns on cached slice features, the frozen encoder comes back in at export."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import tyro
from jaxtyping import Int
from torch import Tensor, nn

from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.readers import FeatureReader
from neuroray.platform.data.splits import Split, split_subjects
from neuroray.platform.evaluate.metrics import classification_metrics
from neuroray.platform.models.dinoatten3d import (
    DinoAtten3DConfig,
    DinoAtten3DHead,
    DinoAtten3DLossConfig,
    dinoatten3d_loss,
)
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.people import choose_records, spacing_range
from neuroray.platform.train.recipe import Recipe, RecipeError
from neuroray.platform.train.slice_features import feature_fingerprint, require_features, without_path
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import find_common_profile
from neuroray.storage.store import ScanStore

logger = logging.getLogger(__name__)

_MODEL_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DinoAtten3DRecipe(Recipe):
    """A run of DinoAtten3D.

    Attributes:
        model: The whole model; its `slices` and `encoder` say which cached features are read.
        loss: Terms and their weights.
        train_scope: `all` trains attention, embedding and classifier; `released` the embedding layers only, as the
            authors' scripts do.
    """

    model_name: Annotated[Literal["dinoatten3d"], tyro.conf.Suppress] = "dinoatten3d"
    model: DinoAtten3DConfig = field(default_factory=DinoAtten3DConfig)
    loss: DinoAtten3DLossConfig = field(default_factory=DinoAtten3DLossConfig)
    train_scope: Literal["all", "released"] = "all"

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        if self.data.target != self.split.stratify_by:
            raise RecipeError(
                "classes are split by their own label",
                given=f"data.target {self.data.target}, split.stratify_by {self.split.stratify_by}",
                fix=f"--data.target {self.data.target} --split.stratify-by {self.data.target}",
            )

    def task(self) -> DinoAtten3DTask:
        """What the loop needs of DinoAtten3D."""
        return DinoAtten3DTask(self)


class DinoAtten3DTask:
    """The task of a `DinoAtten3DRecipe`."""

    def __init__(self, recipe: DinoAtten3DRecipe) -> None:
        self._recipe = recipe

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people, and finds their cached features.

        Raises:
            RecipeError: no such scans, classes that do not fit the model, features that are not there.
            ProfileError: scans that were not all prepared alike.
            SplitError: too few people.
        """
        records = choose_records(store, self._recipe)
        profile = find_common_profile(store, records)
        split = split_subjects(records, self._recipe.split, catalogue_version=store.version)
        _require_classes(split, self._recipe)
        for sentence in split.tell_left_out(self._recipe.data.target):
            logger.warning("%s", sentence)
        features = feature_fingerprint(self._recipe.model)
        require_features(store, split, features, self._recipe)
        return Cohort(
            store=store.uri,
            version=store.version,
            split=split,
            features=features,
            spacing_mm=spacing_range(records, split.train),
            profile=profile,
        )

    def build(self) -> DinoAtten3DHead:
        """The head alone: slices come encoded."""
        with seeded(self._recipe.seed):
            head = self._recipe.model.build_head()
        head.requires_grad_(False)
        for parameter in head.trainable_parameters(self._recipe.train_scope):
            parameter.requires_grad_(True)
        return head

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Mean and spread of the training slices, where the model standardises."""
        assert isinstance(module, DinoAtten3DHead)
        if not self._recipe.model.standardise:
            return
        reader = self.reader(cohort)
        rows = (reader(ReadItem(scan_id=scan_id)) for scan_id in cohort.split.train)
        module.fit_scale(torch.from_numpy(row["features"][row["mask"]]) for row in rows)

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """The embedding layers; attention and classifier go with the root."""
        assert isinstance(module, DinoAtten3DHead)
        return list(module.embedding)

    def undecayed(self, module: nn.Module) -> tuple[str, ...]:
        """None."""
        return ()

    def reader(self, cohort: Cohort) -> FeatureReader:
        """Reads slice features with the index of their class."""
        classes = cohort.split.classes
        labels = {scan_id: classes.index(label) for scan_id, label in cohort.split.labels.items()}
        return FeatureReader(cohort.store, cohort.version, str(cohort.features), labels=labels)

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """Class scores and embeddings."""
        output = module(batch["features"], batch["mask"])
        return {"logits": output.logits, "embedding": output.embedding}

    def targets(self, batch: Batch) -> Int[Tensor, " row"]:
        """Class indices."""
        return batch["label"]

    def loss(self, outputs: Outputs, targets: Int[Tensor, " row"]) -> Terms:
        """Cross entropy, contrast and spread over the whole batch."""
        return dinoatten3d_loss(outputs["logits"], outputs["embedding"], targets, self._recipe.loss)

    def score(self, outputs: Outputs, targets: Int[Tensor, " row"]) -> dict[str, float]:
        """Area under the ROC curve, from probabilities, and balanced accuracy."""
        probabilities = torch.softmax(outputs["logits"].double(), dim=1).cpu().numpy()
        metrics = classification_metrics(targets.cpu().numpy(), probabilities)
        return {name: float(metrics[name][0]) for name in ("auc", "balanced_accuracy")}

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves encoder and head together, with what reads their answers."""
        with seeded(self._recipe.seed):
            model = self._recipe.model.build()
        model.head.load_state_dict(module.state_dict())
        described = {
            "format": _MODEL_FORMAT,
            "model_name": self._recipe.model_name,
            "model": without_path(self._recipe.model).to_json(),
            "classes": list(cohort.split.classes),
            "target": self._recipe.data.target,
            "modality": self._recipe.data.modality,
            "encoder_sha256": model.encoder.hash_weights(),
            "feature_fingerprint": cohort.features,
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "profile": cohort.profile.to_json(),
        }
        save_weights(folder, model.state_dict(), described, training)


def _require_classes(split: Split, recipe: DinoAtten3DRecipe) -> None:
    target, found = recipe.data.target, split.classes
    if len(found) < 2:
        raise RecipeError(f"all scans are of one class of {target}", given=", ".join(found), expected="two or more")
    if len(found) != recipe.model.num_classes:
        raise RecipeError(
            f"the model has {recipe.model.num_classes} classes, {target} has {len(found)}",
            given=", ".join(found),
            fix=f"--model.num-classes {len(found)}, or name the classes to keep: --data.classes {' '.join(found[:2])}",
        )

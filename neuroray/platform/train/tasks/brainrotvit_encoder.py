"""BrainRotViT in training, first stage: a vision transformer learns decade and sex of single slices, then encodes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.data.labels import LabelError
from neuroray.platform.data.pictures import PictureReader
from neuroray.platform.data.splits import SplitConfig, split_subjects
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.evaluate.metrics import classification_metrics
from neuroray.platform.models.brainrotvit.classifier import (
    AGE_SEX_CLASSES,
    SliceClassifier,
    SliceClassifierConfig,
    age_sex_class,
)
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.people import choose_records, spacing_range
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, RecipeError
from neuroray.platform.train.slice_features import mark_people, without_path
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import find_common_profile
from neuroray.storage.store import ScanRecord, ScanStore

logger = logging.getLogger(__name__)

_MODEL_FORMAT = 1
_ONE_PICTURE = WindowConfig(sampler="cover", num_frames=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainRotViTEncoderRecipe(Recipe):
    """A run of BrainRotViT's first stage; its `model/` is an encoder that `--encoder RUN` names.

    The people are dealt as in the second stage with the same `split`: who judges there has no part here.

    Attributes:
        model: Transformer, slices, and what of it learns.
    """

    model_name: Annotated[Literal["brainrotvit_encoder"], tyro.conf.Suppress] = "brainrotvit_encoder"
    model: SliceClassifierConfig = field(default_factory=SliceClassifierConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(target="age_years", windows=_ONE_PICTURE))
    split: SplitConfig = field(default_factory=lambda: SplitConfig(stratify_by="age_years", num_bins=5))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(name="adamw", lr=1e-4, weight_decay=0.01))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=8, num_epochs=5, select_by="val_loss"))

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        if self.data.windows != _ONE_PICTURE or self.data.target != "age_years":
            raise RecipeError(
                "the first stage learns age and sex of single pictures",
                given=f"data.target {self.data.target}, data.windows {self.data.windows}",
                fix="leave data.target and data.windows as they are",
            )
        if self.loop.select_by not in ("val_loss", "val_balanced_accuracy"):
            fix = "--loop.select-by val_loss"
            raise RecipeError("weights cannot be selected for this by this score", given=self.loop.select_by, fix=fix)

    def task(self) -> BrainRotViTEncoderTask:
        """What the loop needs of the first stage."""
        return BrainRotViTEncoderTask(self)


class BrainRotViTEncoderTask:
    """The task of a `BrainRotViTEncoderRecipe`."""

    def __init__(self, recipe: BrainRotViTEncoderRecipe) -> None:
        self._recipe = recipe

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people with an age and a sex.

        Raises:
            RecipeError: no such scans, or nobody on one side.
            ProfileError: scans that were not all prepared alike.
            SplitError: too few people.
        """
        recipe = self._recipe
        records = choose_records(store, recipe)
        profile = find_common_profile(store, records)
        try:
            split = split_subjects(records, recipe.split, catalogue_version=store.version)
        except LabelError as fault:
            raise RecipeError(fault.fault, given=fault.given, expected=fault.expected, fix=fault.fix) from fault
        # Dealt first and left out afterwards, so that the second stage deals them alike.
        unknown = {record.scan_id for record in records if record.sex not in ("M", "F")}
        if unknown:
            logger.warning("%d scans have no sex and are left out", len(unknown))
        sides = {name: tuple(one for one in split.side(name) if one not in unknown) for name in ("train", "val")}
        if not all(sides.values()):
            raise RecipeError(
                "nobody with an age and a sex is left on a side", given={k: len(v) for k, v in sides.items()}
            )
        split = dataclasses.replace(split, **sides)
        return Cohort(
            store=store.uri,
            version=store.version,
            split=split,
            spacing_mm=spacing_range(records, split.train),
            num_frames={record.scan_id: recipe.model.slices.num_slices for record in records},
            facts={"trained_on": mark_people(records, [*split.train, *split.val])},
            profile=profile,
        )

    def build(self) -> SliceClassifier:
        """Transformer, adapters and classifier."""
        with seeded(self._recipe.seed):
            return self._recipe.model.build()

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Nothing."""

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """The transformer's blocks; embedding, norm and classifier go with the root."""
        assert isinstance(module, SliceClassifier)
        return list(module.backbone.blocks)

    def undecayed(self, module: nn.Module) -> Collection[str]:
        """Tokens and tables of positions."""
        return ("backbone.cls_token", "backbone.pos_embed")

    def reader(self, cohort: Cohort) -> PictureReader:
        """Reads pictures with the index of their person's class."""
        records = ScanStore(cohort.store, version=cohort.version).records()
        labels = {record.scan_id: _label_of(record) for record in records if _label_of(record) is not None}
        return PictureReader(cohort.store, cohort.version, self._recipe.model.slices, labels=labels)  # type: ignore[arg-type]

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """Class scores of every picture."""
        return {"logits": module(batch["picture"][:, None].float() / 255).logits}

    def targets(self, batch: Batch) -> Int[Tensor, " row"]:
        """Class indices."""
        return batch["label"]

    def loss(self, outputs: Outputs, targets: Int[Tensor, " row"]) -> Terms:
        """Cross entropy, without weights, as the authors have it."""
        return {"loss": functional.cross_entropy(outputs["logits"], targets)}

    def score(self, outputs: Outputs, targets: Int[Tensor, " row"]) -> dict[str, float]:
        """Balanced accuracy over the pictures of the classes that are there."""
        truth = targets.cpu().numpy()
        present, labels = np.unique(truth, return_inverse=True)
        if len(present) < 2:
            return {"balanced_accuracy": float((outputs["logits"].argmax(1).cpu().numpy() == truth).mean())}
        scores = torch.softmax(outputs["logits"][:, present.tolist()].double(), dim=1).cpu().numpy()
        return {"balanced_accuracy": float(classification_metrics(labels, scores)["balanced_accuracy"][0])}

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves the transformer as an encoder: adapters merged, classifier dropped, timm's names."""
        assert isinstance(module, SliceClassifier)
        recipe = self._recipe
        described = {
            "format": _MODEL_FORMAT,
            "model_name": recipe.model_name,
            "model": without_path(recipe.model).to_json(),
            "classes": list(AGE_SEX_CLASSES),
            "target": "age_sex",
            "modality": recipe.data.modality,
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "profile": cohort.profile.to_json(),
            **cohort.facts,
        }
        save_weights(folder, module.encoder_state(), described, training)


def _label_of(record: ScanRecord) -> int | None:
    if record.age_years is None or record.sex not in ("M", "F"):
        return None
    return AGE_SEX_CLASSES.index(age_sex_class(record.age_years, record.sex))

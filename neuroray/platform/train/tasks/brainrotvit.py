"""BrainRotViT in training, second stage: the residual CNN learns age on cached maps of slices, sex beside them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.data.labels import LabelError
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.readers import FeatureReader
from neuroray.platform.data.splits import Split, SplitConfig, split_subjects
from neuroray.platform.data.targets import Target, TargetError, number_target
from neuroray.platform.evaluate.conformal import Calibration, calibrate_errors
from neuroray.platform.evaluate.metrics import regression_metrics
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.models.brainrotvit import BrainRotViTConfig, BrainRotViTHead, encode_sex
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.people import choose_records, spacing_range
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, RecipeError
from neuroray.platform.train.slice_features import feature_fingerprint, require_features, require_unseen, without_path
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import find_common_profile
from neuroray.storage.store import ScanRecord, ScanStore

logger = logging.getLogger(__name__)

_MODEL_FORMAT = 1
_SCORES = frozenset({"val_r", "val_r2", "val_mae", "val_loss"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainRotViTRecipe(Recipe):
    """A run of BrainRotViT's second stage, on features that `neuroray extract` has made.

    Attributes:
        model: The whole model; its `slices` and `encoder` say which cached features are read.
        quantiles: Learn these quantiles of the target, the median among them, by the pinball loss, one output each;
            empty: learn its mean by squared error, in its own unit.
        mirror_share: Share of the training maps that are mirrored, anew in every step.
    """

    model_name: Annotated[Literal["brainrotvit"], tyro.conf.Suppress] = "brainrotvit"
    model: BrainRotViTConfig = field(default_factory=BrainRotViTConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(target="age_years"))
    split: SplitConfig = field(default_factory=lambda: SplitConfig(stratify_by="age_years", num_bins=5))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=5e-4))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(select_by="val_mae"))
    quantiles: tuple[float, ...] = ()
    mirror_share: float = 0.0

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        if self.split.stratify_by != self.data.target or self.split.num_bins is None:
            raise RecipeError(
                "people are dealt by bins of the measure that is learned",
                given=f"split.stratify_by {self.split.stratify_by}, split.num_bins {self.split.num_bins}",
                fix=f"--split.stratify-by {self.data.target} --split.num-bins 5",
            )
        if self.loop.select_by not in _SCORES:
            raise RecipeError(
                "weights cannot be selected for a measure by this score",
                given=self.loop.select_by,
                expected=f"one of {', '.join(sorted(_SCORES))}",
                fix="--loop.select-by val_mae",
            )
        self._check_quantiles()
        if not 0 <= self.mirror_share <= 1:
            raise RecipeError("mirror_share is no fraction", given=self.mirror_share, expected="0 to 1")

    def task(self) -> BrainRotViTTask:
        """What the loop needs of BrainRotViT."""
        return BrainRotViTTask(self)

    def _check_quantiles(self) -> None:
        given = self.quantiles
        if given and (0.5 not in given or list(given) != sorted(set(given)) or not 0 < given[0] <= given[-1] < 1):
            raise RecipeError(
                "quantiles are no rising fractions with the median among them",
                given=given,
                fix="--quantiles 0.05 0.5 0.95",
            )
        needed = len(given) or 1
        if self.model.num_outputs != needed:
            raise RecipeError(
                "the model has another number of outputs than are learned",
                given=f"{self.model.num_outputs} for {len(given)} quantiles",
                expected=needed,
                fix=f"--model.num-outputs {needed}",
            )


class BrainRotViTTask:
    """The task of a `BrainRotViTRecipe`."""

    def __init__(self, recipe: BrainRotViTRecipe) -> None:
        self._recipe = recipe
        self._groups: tuple[str, ...] = ()

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people, and finds their cached features.

        Raises:
            RecipeError: no such scans, a target that is no measure or the same for all, features that are not there.
            ProfileError: scans that were not all prepared alike.
            SplitError: too few people.
        """
        recipe = self._recipe
        records = choose_records(store, recipe)
        profile = find_common_profile(store, records)
        try:
            split = split_subjects(records, recipe.split, catalogue_version=store.version)
            target = self._make_target(split)
        except (LabelError, TargetError) as fault:
            raise RecipeError(fault.fault, given=fault.given, expected=fault.expected, fix=fault.fix) from fault
        require_unseen(recipe.model, records, split)
        features = feature_fingerprint(recipe.model)
        require_features(store, split, features, recipe)
        facts = self._describe_people(records, split)
        _tell_of_people(split, facts, recipe.data.target)
        return Cohort(
            store=store.uri,
            version=store.version,
            split=split,
            features=features,
            spacing_mm=spacing_range(records, split.train),
            targets=(target,),
            facts=facts,
            groups={record.scan_id: name_group(record.subject, record.family_id) for record in records},
            profile=profile,
        )

    def _make_target(self, split: Split) -> Target:
        """By the split's own labels: in a control experiment they are the shuffled ones."""
        numbers = {scan_id: float(text) for scan_id, text in split.labels.items()}
        return number_target(self._recipe.data.target, numbers, train=split.train)

    def _describe_people(self, records: Sequence[ScanRecord], split: Split) -> dict[str, Any]:
        """Of the training scans, for the model card: the range of the target, and how many of each sex."""
        values = [float(split.labels[scan_id]) for scan_id in split.train]
        return {"target_range": [min(values), max(values)], "num_by_sex": count_sexes(records, split)}

    def build(self) -> BrainRotViTHead:
        """The head alone: maps come encoded."""
        with seeded(self._recipe.seed):
            return self._recipe.model.build_head()

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Sets its level to that of the training scans, and the scale of the map where the model standardises.

        Keeps who is whose scan, for the intervals.
        """
        assert isinstance(module, BrainRotViTHead)
        self._groups = tuple(cohort.groups[scan_id] for scan_id in cohort.scan_ids)
        target, quantiles = cohort.targets[0], self._recipe.quantiles
        values = [target.value(scan_id) for scan_id in cohort.split.train]
        level = np.quantile(values, quantiles).tolist() if quantiles else [target.mean]
        module.set_level(level, spread=target.std)
        self._fit_map_scale(module, cohort)

    def _fit_map_scale(self, module: BrainRotViTHead, cohort: Cohort) -> None:
        if self._recipe.model.standardise:
            reader = self.reader(cohort)
            rows = (reader(ReadItem(scan_id=scan_id)) for scan_id in cohort.split.train)
            module.fit_scale(torch.from_numpy(np.array(row["features"])) for row in rows)

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """The wide layers, where nearly all parameters are; blocks and answer go with the root."""
        assert isinstance(module, BrainRotViTHead)
        return list(module.layers)

    def undecayed(self, module: nn.Module) -> Collection[str]:
        """None."""
        return ()

    def reader(self, cohort: Cohort) -> FeatureReader:
        """Reads maps with three numbers each: the target, sex as the head takes it, and the number of the scan."""
        records = ScanStore(cohort.store, version=cohort.version).records()
        sexes = {record.scan_id: encode_sex(record.sex) for record in records}
        numbers = {scan_id: float(number) for number, scan_id in enumerate(cohort.scan_ids)}
        values = cohort.targets[0].values
        labels = {scan_id: (values[scan_id], sexes[scan_id], number) for scan_id, number in numbers.items()}
        return FeatureReader(cohort.store, cohort.version, str(cohort.features), labels=labels, cache_bytes=2**29)

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """Outputs of every map; of the label's numbers it sees the sex alone."""
        features = batch["features"]
        if module.training and self._recipe.mirror_share > 0:
            chosen = torch.rand(len(features), device=features.device) < self._recipe.mirror_share
            features = torch.where(chosen[:, None, None], features.flip(1), features)
        return {"outputs": module(features, batch["label"][:, 1]).outputs}

    def targets(self, batch: Batch) -> Float[Tensor, "row 2"]:
        """The target, in its own unit, and the number of the scan."""
        return batch["label"][:, [0, 2]]

    def loss(self, outputs: Outputs, targets: Float[Tensor, "row 2"]) -> Terms:
        """Squared error, or the pinball loss of all quantiles."""
        said = outputs["outputs"]
        if not self._recipe.quantiles:
            return {"loss": functional.mse_loss(said[:, 0], targets[:, 0])}
        return {"loss": pinball_loss(said, targets[:, 0], self._recipe.quantiles)}

    def score(self, outputs: Outputs, targets: Float[Tensor, "row 2"]) -> dict[str, float]:
        """Correlation, explained variance and mean absolute error."""
        metrics = regression_metrics(targets[:, 0].double().cpu().numpy(), self._answers(outputs))
        scores = {"r": metrics["pearson_r"], "r2": metrics["r2"], "mae": metrics["mae"]}
        # A model that says the same of everybody has no correlation: it is worth none.
        return {name: float(np.nan_to_num(value[0], nan=0.0)) for name, value in scores.items()}

    def intervals(self, outputs: Outputs, targets: Float[Tensor, "row 2"]) -> dict[str, Calibration]:
        """From the errors in the validation people."""
        errors = self._answers(outputs) - targets[:, 0].double().cpu().numpy()
        groups = [self._groups[number] for number in targets[:, 1].long().tolist()]
        return {self._recipe.data.target: calibrate_errors(errors.tolist(), groups)}

    @property
    def _quantiles(self) -> tuple[float, ...]:
        return self._recipe.quantiles

    def _answers(self, outputs: Outputs) -> Float[np.ndarray, " row"]:
        middle = self._recipe.quantiles.index(0.5) if self._recipe.quantiles else 0
        return outputs["outputs"][:, middle].double().cpu().numpy()

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves encoder and head together, with what reads their answers."""
        recipe = self._recipe
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
            "quantiles": list(self._quantiles),
            "modality": recipe.data.modality,
            "encoder_sha256": model.encoder.hash_weights(),
            "feature_fingerprint": cohort.features,
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "people": dict(cohort.facts),
            "profile": cohort.profile.to_json(),
        }
        save_weights(folder, model.state_dict(), described, training)


def pinball_loss(
    said: Float[Tensor, "row quantile"], targets: Float[Tensor, " row"], quantiles: Sequence[float]
) -> Float[Tensor, ""]:
    """Mean over rows and quantiles of `max(q d, (q - 1) d)`, d = target - said; least where said is the quantile."""
    levels = said.new_tensor(quantiles)
    missed = targets[:, None] - said
    return torch.maximum(levels * missed, (levels - 1) * missed).mean()


def count_sexes(records: Sequence[ScanRecord], split: Split) -> dict[str, int]:
    """How many training scans there are of each sex, the unknown among them."""
    chosen = set(split.train)
    return dict(sorted(Counter(record.sex or "unknown" for record in records if record.scan_id in chosen).items()))


def _tell_of_people(split: Split, facts: dict[str, Any], target: str) -> None:
    for sentence in split.tell_left_out(target):
        logger.warning("%s", sentence)
    unknown = sum(count for sex, count in facts["num_by_sex"].items() if sex not in ("M", "F"))
    if unknown:
        logger.warning("%d training scans have no sex; they count as halfway between both", unknown)

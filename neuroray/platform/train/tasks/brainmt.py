"""BrainMT in training: windows of runs to z-scores on the device, one loss term per target, scores in its unit."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.data.augment import AugmentConfig, augment
from neuroray.platform.data.standardise import StandardiseConfig, standardise
from neuroray.platform.data.targets import Target, slice_outputs
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.evaluate.conformal import Calibration, calibrate_errors
from neuroray.platform.evaluate.metrics import classification_metrics, regression_metrics
from neuroray.platform.models.brainmt import BrainMT, BrainMTConfig
from neuroray.platform.train.frame_pretraining import PretrainConfig, pretrain_on
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.probe import fit_scales, freeze_encoder
from neuroray.platform.train.recipe import DataConfig, Recipe, RecipeError
from neuroray.platform.train.start_weights import StartConfig, join_start, load_encoder
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.platform.train.window_cohort import prepare_window_cohort
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

logger = logging.getLogger(__name__)

_MODEL_FORMAT = 2
_CLASS_SCORES = frozenset({"val_auc", "val_balanced_accuracy", "val_loss"})
_NUMBER_SCORES = frozenset({"val_r", "val_r2", "val_mae", "val_loss"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainMTRecipe(Recipe):
    """A run of BrainMT.

    `data.target` is the main target: people are dealt by it, and weights are selected by it.

    Attributes:
        model: Its outputs are those of all targets, the main one first: one for a measure or two classes, else one a
            class.
        classify: Labels that are learned as classes.
        regress: Labels that are learned as measures, in standard deviations of the training scans.
        class_weights: `balanced`: all classes count the same in the loss, however many people they have.
        standardise: How stored numbers become scores.
        augment: What is done to training windows.
        pretrain: What the frame encoder alone learns first, without labels, from the training people's windows.
        freeze: What labels do not teach: `frames`, the frame encoder; or `encoder`, all but the head (a linear probe),
            which then also runs as in an evaluation.
        start: The run whose encoder this one starts from (`neuroray train --init`); None: drawn weights.
    """

    model_name: Annotated[Literal["brainmt"], tyro.conf.Suppress] = "brainmt"
    model: BrainMTConfig = field(default_factory=BrainMTConfig)
    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            modality="bold", target="sex", windows=WindowConfig(sampler="random", num_frames=200)
        )
    )
    classify: tuple[str, ...] = ("sex",)
    regress: tuple[str, ...] = ()
    class_weights: Literal["equal", "balanced"] = "equal"
    standardise: StandardiseConfig = field(default_factory=StandardiseConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    freeze: Literal["nothing", "frames", "encoder"] = "nothing"
    start: Annotated[StartConfig | None, tyro.conf.Suppress] = None

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        main, names = self.data.target, [*self.classify, *self.regress]
        if main not in names or len(set(names)) < len(names):
            raise RecipeError(
                "the main target is not learned, or a target is named twice",
                given=f"data.target {main}; classify {', '.join(self.classify)}; regress {', '.join(self.regress)}",
                fix=f"--classify {main}, or --regress {main}",
            )
        self._check_split()
        fitting = _NUMBER_SCORES if main in self.regress else _CLASS_SCORES
        if self.loop.select_by not in fitting:
            raise RecipeError(
                f"weights cannot be selected for {main} by this score",
                given=self.loop.select_by,
                expected=f"one of {', '.join(sorted(fitting))}",
                fix=f"--loop.select-by {'val_r' if main in self.regress else 'val_auc'}",
            )
        if (self.augment.flip_sign or self.pretrain.num_epochs) and self.standardise.by != "voxel":
            raise RecipeError(
                "only of fluctuations can signs be changed, or be foretold what is hidden",
                given=f"augment.flip_sign {self.augment.flip_sign}, pretrain.num_epochs {self.pretrain.num_epochs}",
                fix="--standardise.by voxel",
            )
        if self.data.windows.sampler == "whole" and self.loop.batch_size > 1:
            raise RecipeError(
                "whole runs differ in length",
                given=f"batches of {self.loop.batch_size}",
                fix="--loop.batch-size 1, or --data.windows.sampler random --data.windows.num-frames N",
            )

    @property
    def target_names(self) -> tuple[str, ...]:
        """The main one, then the others in the order in which they are named."""
        main = self.data.target
        return (main, *(name for name in (*self.classify, *self.regress) if name != main))

    def task(self) -> BrainMTTask:
        """What the loop needs of BrainMT."""
        return BrainMTTask(self)

    def _check_split(self) -> None:
        main, split = self.data.target, self.split
        if split.stratify_by != main:
            fix = f"--split.stratify-by {main}"
            raise RecipeError("people are dealt by the main target", given=split.stratify_by, expected=main, fix=fix)
        if (split.num_bins is not None) != (main in self.regress):
            raise RecipeError(
                "a measure is dealt by bins of it, and classes as they are",
                given=f"split.num_bins {split.num_bins} for {main}",
                fix="--split.num-bins 5" if main in self.regress else "--split.num-bins None",
            )
        if split.shuffle_labels_seed is not None and len(self.target_names) > 1:
            raise RecipeError(
                "labels are shuffled for one target at a time", given=", ".join(self.target_names), fix="name only one"
            )


class BrainMTTask:
    """The task of a `BrainMTRecipe`."""

    def __init__(self, recipe: BrainMTRecipe) -> None:
        self._recipe = recipe
        self._targets: tuple[Target, ...] = ()
        self._groups: tuple[str, ...] = ()

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people, and finds out what there is to learn of them.

        Raises:
            RecipeError: see `prepare_window_cohort`; or outputs of the model that are not as many as the targets need.
            ProfileError: scans that were not all prepared alike.
            SplitError: too few people.
        """
        recipe = self._recipe
        balanced = recipe.class_weights == "balanced"
        cohort = prepare_window_cohort(
            store, recipe, names=recipe.target_names, regress=recipe.regress, balanced=balanced
        )
        needed = sum(target.num_outputs for target in cohort.targets)
        if recipe.model.num_outputs != needed:
            raise RecipeError(
                "the model has another number of outputs than its targets need",
                given=f"{recipe.model.num_outputs} for {', '.join(recipe.target_names)}",
                expected=needed,
                fix=f"--model.num-outputs {needed}",
            )
        if recipe.start is None:
            return cohort
        return join_start(cohort, recipe.start, recipe.model, standard=recipe.standardise)

    def build(self) -> BrainMT:
        """The model, its weights drawn; every parameter learns, but for what the recipe freezes."""
        with seeded(self._recipe.seed):
            module = self._recipe.model.build()
        if self._recipe.freeze == "encoder":
            freeze_encoder(module)
        elif self._recipe.freeze == "frames":
            module.frame_encoder.requires_grad_(False)
        return module

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Loads the weights to start from, pretrains, finds a probe's scale; keeps what loss and scores need.

        That is means, spreads and class weights of the training scans, and who is whose scan.

        Raises:
            RecipeError: the weights to start from are gone, or others; a pretraining on runs of several grids.
        """
        assert isinstance(module, BrainMT)
        self._targets = cohort.targets
        self._groups = tuple(cohort.groups[scan_id] for scan_id in cohort.scan_ids)
        if self._recipe.start is not None:
            load_encoder(module, self._recipe.start)
        if self._recipe.pretrain.num_epochs:
            pretrain_on(
                cohort,
                self.reader(cohort),
                module,
                self._recipe.pretrain,
                recipe=self._recipe,
                standard=self._recipe.standardise,
            )
        fit_scales(module, self._recipe, cohort, self.reader(cohort), standard=self._recipe.standardise)

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """Every layer of the sequence part; convolutions, tables, shared MLP and head go with the root."""
        assert isinstance(module, BrainMT)
        return [*module.mamba_layers, *module.attention_layers]

    def undecayed(self, module: nn.Module) -> Collection[str]:
        """Tables of positions, the CLS token, and the decays of the scans."""
        assert isinstance(module, BrainMT)
        return module.names_without_decay()

    def reader(self, cohort: Cohort) -> WindowReader:
        """Reads windows with one number per target, NaN where unknown, and the number of the scan.

        With that, the windows of a scan are put together again in `score`.
        """
        labels = {
            scan_id: (*(target.value(scan_id) for target in cohort.targets), float(number))
            for number, scan_id in enumerate(cohort.scan_ids)
        }
        with_brain = cohort.profile.name == "fmri_minimal"
        return WindowReader(cohort.store, cohort.version, labels=labels, with_brain=with_brain)

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """Outputs of every window; padding and unacquired frames are background."""
        standard = self._recipe.standardise
        voxels = standardise(batch, config=standard)
        if module.training:
            voxels = augment(voxels, batch["frame_mask"], self._recipe.augment, background=standard.background)
        if self._recipe.freeze == "encoder":
            module.eval()  # what does not learn is not dropped either; a step's train() sets it back
        return {"outputs": module(voxels).outputs}

    def targets(self, batch: Batch) -> Float[Tensor, "row column"]:
        """A column per target, and the number of the scan."""
        return batch["label"]

    def loss(self, outputs: Outputs, targets: Float[Tensor, "row column"]) -> Terms:
        """The sum of the targets' terms, each the mean over the rows that have the label."""
        pairs = zip(self._targets, slice_outputs(self._targets), strict=True)
        terms = {
            target.name: _target_loss(target, outputs["outputs"][:, part], targets[:, column])
            for column, (target, part) in enumerate(pairs)
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    def score(self, outputs: Outputs, targets: Float[Tensor, "row column"]) -> dict[str, float]:
        """Scores over scans, of which all windows are averaged; those of further targets under `NAME_score`."""
        scan_numbers = targets[:, -1].long()
        scores: dict[str, float] = {}
        for column, (target, part) in enumerate(zip(self._targets, slice_outputs(self._targets), strict=True)):
            found = _score_target(target, outputs["outputs"][:, part], targets[:, column], scan_numbers)
            # Of a further target a validation side may know too few people: then it has no score there.
            further = {f"{target.name}_{name}": value for name, value in found.items() if np.isfinite(value)}
            scores |= found if column == 0 else further
        return scores

    def intervals(self, outputs: Outputs, targets: Float[Tensor, "row column"]) -> dict[str, Calibration]:
        """Of each measure, from the errors of scan averages in its unit."""
        found = {}
        for column, (target, part) in enumerate(zip(self._targets, slice_outputs(self._targets), strict=True)):
            values, known = targets[:, column], targets[:, column].isfinite()
            if target.kind == "number":
                said = target.numbers(outputs["outputs"][:, part])[:, None]
                averaged, truth, numbers = _average_scans(said[known], values[known], targets[known, -1].long())
                groups = [self._groups[number] for number in numbers]
                found[target.name] = calibrate_errors((averaged[:, 0] - truth).tolist(), groups)
        return found

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves the weights, with what prepares windows for them and reads their answers."""
        recipe = self._recipe
        described = {
            "format": _MODEL_FORMAT,
            "model_name": recipe.model_name,
            "model": recipe.model.to_json(),
            "classes": list(cohort.targets[0].classes),
            "target": recipe.data.target,
            "targets": [target.to_json() for target in cohort.targets],
            "modality": recipe.data.modality,
            "windows": recipe.data.windows.covering().to_json(),
            "standardise": recipe.standardise.to_json(),
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "runs": cohort.facts,
            "profile": cohort.profile.to_json(),
        }
        started = {} if recipe.start is None else {"start": recipe.start.to_json()}
        save_weights(folder, module.state_dict(), described, training | started)


def _target_loss(
    target: Target, outputs: Float[Tensor, "row output"], values: Float[Tensor, " row"]
) -> Float[Tensor, ""]:
    """Squared error of standard scores, or weighted cross entropy, over the rows with a label; 0 where none has."""
    known = values.isfinite()
    if not known.any():
        return outputs.sum() * 0.0
    outputs, values = outputs[known], values[known]
    if target.kind == "number":
        return functional.mse_loss(outputs[:, 0], (values - target.mean) / target.std)
    weights = outputs.new_tensor(target.class_weights)[values.long()]
    if target.num_outputs == 1:
        each = functional.binary_cross_entropy_with_logits(outputs[:, 0], values, reduction="none")
    else:
        each = functional.cross_entropy(outputs, values.long(), reduction="none")
    return (each * weights).sum() / weights.sum()


def _score_target(
    target: Target,
    outputs: Float[Tensor, "row output"],
    values: Float[Tensor, " row"],
    scan_numbers: Float[Tensor, " row"],
) -> dict[str, float]:
    known = values.isfinite()
    said = target.probabilities(outputs) if target.kind == "class" else target.numbers(outputs)[:, None]
    if not known.any():
        return {}
    averaged, truth, _ = _average_scans(said[known], values[known], scan_numbers[known])
    if target.kind == "class":
        metrics = classification_metrics(truth.astype(np.int64), averaged)
        return {name: float(metrics[name][0]) for name in ("auc", "balanced_accuracy")}
    metrics = regression_metrics(truth, averaged[:, 0])
    scores = {"r": metrics["pearson_r"], "r2": metrics["r2"], "mae": metrics["mae"]}
    # A model that says the same of everybody has no correlation: it is worth none.
    return {name: float(np.nan_to_num(value[0], nan=0.0)) for name, value in scores.items()}


def _average_scans(
    said: Float[Tensor, "row column"], values: Float[Tensor, " row"], scan_numbers: Tensor
) -> tuple[Float[np.ndarray, "scan column"], Float[np.ndarray, " scan"], list[int]]:
    """The mean of what is said of the windows of each scan, the scan's own value, and the scan's number."""
    names, index, counts = torch.unique(scan_numbers, return_inverse=True, return_counts=True)
    sums = said.new_zeros((len(names), said.shape[1])).index_add_(0, index, said)
    truth = values.double().new_zeros(len(names)).index_add_(0, index, values.double())
    return (sums / counts[:, None]).cpu().numpy(), (truth / counts).cpu().numpy(), names.tolist()

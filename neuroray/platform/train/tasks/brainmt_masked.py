"""Masked pretraining of BrainMT: hidden space-time patches are told from the rest of the window; no label is needed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import tyro
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.data.standardise import StandardiseConfig, standardise
from neuroray.platform.data.window_reader import WindowReader
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.models.brainmt import moments
from neuroray.platform.models.brainmt.masked_windows import MaskedBrainMT, MaskedBrainMTConfig
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.patch_content import TRIVIAL, Content, hidden_error, pool_cells, standardise_cells
from neuroray.platform.train.patch_masks import MaskConfig, draw_mask, find_places, hide, make_key
from neuroray.platform.train.recipe import DataConfig, LoopConfig, Recipe, RecipeError
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.platform.train.window_cohort import prepare_window_cohort
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

_MODEL_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBrainMTRecipe(Recipe):
    """A masked pretraining of BrainMT.

    Attributes:
        model: Encoder and decoder.
        mask: What is hidden.
        content: What is told of a cell: its `fluctuation`, so that anatomy, which the rest of the run shows anyway,
            earns nothing; or its `level`, as a z-score of the scan.
        standardise: How stored numbers become the encoder's input; by voxel, over the frames in which it is seen. A run
            that starts from this one should do as this one.
    """

    model_name: Annotated[Literal["brainmt_masked"], tyro.conf.Suppress] = "brainmt_masked"
    model: MaskedBrainMTConfig = field(default_factory=MaskedBrainMTConfig)
    data: DataConfig = field(
        default_factory=lambda: DataConfig(
            modality="bold", target="", windows=WindowConfig(sampler="random", num_frames=200)
        )
    )
    split: SplitConfig = field(default_factory=lambda: SplitConfig(stratify_by=None))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(select_by="val_loss"))
    mask: MaskConfig = field(default_factory=MaskConfig)
    content: Literal["fluctuation", "level"] = "fluctuation"
    standardise: StandardiseConfig = field(default_factory=lambda: StandardiseConfig(by="voxel"))

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        if self.loop.select_by != "val_loss":
            given, fix = self.loop.select_by, "--loop.select-by val_loss"
            raise RecipeError("a pretraining knows no labels to be selected by", given=given, fix=fix)
        if self.data.sampling != "shuffled":
            given, fix = self.data.sampling, "--data.sampling shuffled"
            raise RecipeError("a pretraining knows no classes to balance", given=given, fix=fix)
        if self.standardise.drift_degree:
            given, fix = f"degree {self.standardise.drift_degree}", "--standardise.drift-degree 0"
            raise RecipeError("drift that is fitted to a whole window tells of what is hidden", given=given, fix=fix)
        frames = self.data.windows.num_frames
        if frames is None:
            given, fix = "whole runs", "--data.windows.sampler random --data.windows.num-frames N"
            raise RecipeError("a pretraining reads windows of one length", given=given, fix=fix)
        if self.mask.shape != "tube" and self.mask.block_frames >= frames:
            raise RecipeError(
                "a hidden block leaves nothing of its place to see",
                given=f"blocks of {self.mask.block_frames} frames in windows of {frames}",
                fix="a smaller --mask.block-frames; or --mask.shape tube, if that is meant",
            )

    def task(self) -> MaskedBrainMTTask:
        """What the loop needs of it."""
        return MaskedBrainMTTask(self)


class MaskedBrainMTTask:
    """The task of a `MaskedBrainMTRecipe`."""

    def __init__(self, recipe: MaskedBrainMTRecipe) -> None:
        self._recipe = recipe
        self._scan_ids: tuple[str, ...] = ()

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people; labels are not looked at, unless the split is to be stratified by one.

        Raises:
            RecipeError: see `prepare_window_cohort`.
            ProfileError: scans that were not all prepared alike.
            SplitError: too few people.
        """
        return prepare_window_cohort(store, self._recipe, names=(), regress=(), balanced=False)

    def build(self) -> MaskedBrainMT:
        """The model; every parameter learns."""
        with seeded(self._recipe.seed):
            return self._recipe.model.build()

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Keeps which scan has which number, for masks are drawn by the scan."""
        self._scan_ids = cohort.scan_ids

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """Every layer of the sequence part; convolutions, tables, shared MLP and decoder go with the root."""
        assert isinstance(module, MaskedBrainMT)
        return [*module.encoder.mamba_layers, *module.encoder.attention_layers]

    def undecayed(self, module: nn.Module) -> Collection[str]:
        """Tables of positions, the CLS token, and the decays of the scans."""
        assert isinstance(module, MaskedBrainMT)
        return module.names_without_decay()

    def reader(self, cohort: Cohort) -> WindowReader:
        """Reads windows with the number of their scan."""
        labels = {scan_id: (float(number),) for number, scan_id in enumerate(cohort.scan_ids)}
        with_brain = cohort.profile.name == "fmri_minimal"
        return WindowReader(cohort.store, cohort.version, labels=labels, with_brain=with_brain)

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """The error of every window on its hidden patches; in validation also that of what is told without a model."""
        scores = standardise(batch)
        brain, held = find_brain(scores, batch), find_held(scores, batch)
        content = pool_cells(scores, brain, self._recipe.model.cell_voxels)
        if self._recipe.content == "fluctuation":
            content = standardise_cells(content, held)
        masks = self._draw_masks(brain, scores.shape[1], batch, is_training=module.training)
        for window, mask, is_held in zip(scores, masks, held, strict=True):
            hide(window, mask, is_held, by=self._recipe.standardise.by)
        hidden, seen = masks & held[:, None], ~masks & held[:, None]
        outputs = {"error": hidden_error(module(scores).content, content, hidden)}
        return outputs if module.training else outputs | _judge_trivial(content, hidden, seen)

    def targets(self, batch: Batch) -> Float[Tensor, "row 1"]:
        """The number of the scan: what is to be told is in the voxels."""
        return batch["label"]

    def loss(self, outputs: Outputs, targets: Float[Tensor, "row 1"]) -> Terms:
        """The mean over windows of their errors."""
        return {"loss": outputs["error"].mean()}

    def score(self, outputs: Outputs, targets: Float[Tensor, "row 1"]) -> dict[str, float]:
        """The loss as a share of what each trivial answer has, and of the best of them (`ratio`): 1 is no better."""
        loss = float(outputs["error"].double().mean())
        trivial = {name: float(outputs[name].double().mean()) for name in TRIVIAL}
        ratios = {f"ratio_to_{name}": loss / max(value, 1e-12) for name, value in trivial.items()}
        return {"ratio": max(ratios.values()), **ratios}

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves encoder and decoder, with what prepares windows for them."""
        recipe = self._recipe
        described = {
            "format": _MODEL_FORMAT,
            "model_name": recipe.model_name,
            "model": recipe.model.to_json(),
            "classes": [],
            "target": "",
            "targets": [],
            "modality": recipe.data.modality,
            "windows": recipe.data.windows.covering().to_json(),
            "mask": recipe.mask.to_json(),
            "content": recipe.content,
            "standardise": recipe.standardise.to_json(),
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "runs": cohort.facts,
            "profile": cohort.profile.to_json(),
        }
        save_weights(folder, module.state_dict(), described, training)

    def _draw_masks(
        self, brain: Bool[Tensor, "batch x y z"], num_frames: int, batch: Batch, *, is_training: bool
    ) -> Bool[Tensor, "batch place time"]:
        recipe = self._recipe
        masks = []
        for row, is_brain in enumerate(brain):
            if is_training and recipe.mask.redraw:
                # From the step's own generator, which a continued run has again.
                key = int(torch.randint(2**62, ()))
            else:
                number, first = int(batch["label"][row, 0]), int(batch["first_frame"][row])
                key = make_key("mask", recipe.seed, self._scan_ids[number], first)
            masks.append(draw_mask(find_places(is_brain), num_frames, recipe.mask, key=key))
        return torch.stack(masks)


def find_brain(scores: Float[Tensor, "batch time x y z"], batch: Batch) -> Bool[Tensor, "batch x y z"]:
    """The stored mask; without one, what is above the background in some frame."""
    if "brain" in batch:
        return batch["brain"]
    return scores.amax(1) > scores.amin((1, 2, 3, 4))[:, None, None, None]


def find_held(scores: Float[Tensor, "batch time x y z"], batch: Batch) -> Bool[Tensor, "batch time"]:
    """Frames with something in them: neither padding nor all of one value, which `standardise` makes of lost ones."""
    return batch["frame_mask"] & moments.find_held(scores)


def _judge_trivial(
    content: Content, hidden: Bool[Tensor, "batch place time"], seen: Bool[Tensor, "batch place time"]
) -> Outputs:
    return {name: hidden_error(say(content, seen), content, hidden) for name, say in TRIVIAL.items()}

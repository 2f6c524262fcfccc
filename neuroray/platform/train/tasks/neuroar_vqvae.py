"""NeuroAR's tokenizer in training: volumes there and back, an adversary from some epoch on, the codebook watched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Int
from torch import Tensor, nn

from neuroray.config import Config
from neuroray.platform.data.brain_place import LEAST_OVERLAP, BrainPlace, learn_place
from neuroray.platform.data.brain_volumes import BrainVolumeReader, Grid, choose_grid
from neuroray.platform.data.collate import ITEM
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.splits import Split, SplitConfig, split_subjects
from neuroray.platform.models.neuroar import VQVAEConfig
from neuroray.platform.models.neuroar.discriminator import PatchDiscriminator
from neuroray.platform.models.neuroar.loss import (
    VQVAELossConfig,
    absolute_error,
    balance_gradients,
    deceive,
    judge_made,
    judge_real,
    score_frozen,
    squared_error,
)
from neuroray.platform.models.neuroar.perceptual import PerceptualDistance
from neuroray.platform.models.neuroar.quantiser import count_codes, describe_usage, measure_usage
from neuroray.platform.models.neuroar.vqvae import VQVAE, VQVAEOutput
from neuroray.platform.train.optim import Rival
from neuroray.platform.train.parallel import seeded, sum_over_ranks
from neuroray.platform.train.people import choose_records, spacing_range
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, RecipeError
from neuroray.platform.train.slice_features import mark_people
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import find_common_profile
from neuroray.storage.store import ScanRecord, ScanStore

_MODEL_FORMAT = 1
_NUM_PLACED = 24
_PAPER_GRID = (160, 192, 176)
_MOST_TO_START_FROM = 256
_SCORES = frozenset({"val_loss", "val_psnr"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversaryConfig(Config):
    """How the adversary learns; it has the optimiser, schedule and warm-up of `optim`, and all else for itself.

    Attributes:
        lr: Peak learning rate; None: that of the tokenizer.
        betas: How slowly its moments forget.
        weight_decay: See `OptimConfig`.
        clip_norm: Largest norm of its own gradient; None: no clipping.
    """

    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        is_none = (self.lr is not None and self.lr <= 0) or (self.clip_norm is not None and self.clip_norm <= 0)
        if is_none or self.weight_decay < 0 or not all(0 <= beta < 1 for beta in self.betas):
            given, expected = self.to_json(), "rate and norm above 0, decay 0 or more, betas below 1"
            raise RecipeError("the adversary cannot learn like this", given=given, expected=expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuroARVQVAERecipe(Recipe):
    """A run of NeuroAR's first stage; its `model/` is the tokenizer of the second.

    Attributes:
        model: The tokenizer.
        loss: Terms and their weights.
        adversary: How the adversary learns.
        grid_shape: Volumes are padded and cut to it; None: the smallest that holds them all.
        min_overlap: Of a brain with the mean brain, for a scan to count as registered, here and wherever the tokenizer
            is used; 0: any, also one that is unlike the others (`BrainPlace`).
    """

    model_name: Annotated[Literal["neuroar_vqvae"], tyro.conf.Suppress] = "neuroar_vqvae"
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    loss: VQVAELossConfig = field(default_factory=VQVAELossConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    grid_shape: Grid | None = None
    min_overlap: float = LEAST_OVERLAP
    data: DataConfig = field(default_factory=lambda: DataConfig(target=""))
    split: SplitConfig = field(default_factory=lambda: SplitConfig(stratify_by=None))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(name="adamw", lr=1e-4))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=4, select_by="val_psnr"))

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        if self.loop.select_by not in _SCORES:
            given, fix = self.loop.select_by, "--loop.select-by val_psnr"
            raise RecipeError("a tokenizer knows no labels to be selected by", given=given, fix=fix)
        if self.data.sampling == "balanced":
            fix = "--data.sampling shuffled"
            raise RecipeError("a tokenizer knows no classes to balance", given=self.data.sampling, fix=fix)
        if self.grid_shape is not None:
            self.model.scales(self.grid_shape)

    def task(self) -> NeuroARVQVAETask:
        """What the loop needs of the tokenizer."""
        return NeuroARVQVAETask(self)


class TokenizerTraining(nn.Module):
    """The tokenizer with its adversary; the adversary is never exported."""

    num_passes: Tensor
    hits: Tensor

    def __init__(self, model: VQVAE, discriminator: PatchDiscriminator | None) -> None:
        super().__init__()
        self.tokenizer = model
        self.discriminator = discriminator
        # Part of a checkpoint, so that a continued run knows whether the adversary has begun.
        self.register_buffer("num_passes", torch.zeros((), dtype=torch.int64))
        # How often each scale has looked up each code in this epoch, over all ranks; a continued epoch counts on.
        config = model.config.quantiser
        scales = len(config.scales) or config.num_scales
        self.register_buffer("hits", torch.zeros(scales, config.num_codes, dtype=torch.int64))


class NeuroARVQVAETask:
    """The task of a `NeuroARVQVAERecipe`.

    Tokenizer and adversary learn in one backward pass and one step: the adversary's own terms see reconstructions
    without their gradient, and the term by which the tokenizer deceives it sees its weights without theirs. So each
    learns from its own terms alone; and by its own rate, moments and clipping (`Rival`), as by two optimisers.
    """

    def __init__(self, recipe: NeuroARVQVAERecipe) -> None:
        self._recipe = recipe
        self._perceptual: PerceptualDistance | None = None
        self._passes_before = 0
        self._scale_sizes: list[int] = []

    def prepare(self, store: ScanStore) -> Cohort:
        """Chooses the people, and the grid that holds all of their volumes; no label is needed.

        Raises:
            RecipeError: no such scans, or no volumes.
            ProfileError: scans that were not all prepared alike.
            SplitError: too few people.
            ModelError: a grid that cannot be halved so often.
            UnregisteredError: some of the scans lie elsewhere than the others.
        """
        recipe = self._recipe
        records = choose_records(store, recipe)
        require_volumes(records, recipe)
        profile = find_common_profile(store, records)
        split = split_subjects(records, recipe.split, catalogue_version=store.version)
        named = recipe.grid_shape or recipe.model.grid
        grid = named or choose_grid([record.shape for record in records], recipe.model.factor)
        return Cohort(
            store=store.uri,
            version=store.version,
            split=split,
            spacing_mm=spacing_range(records, split.train),
            facts={
                "grid_shape": list(grid),
                "scales": [list(scale) for scale in recipe.model.scales(grid)],
                "brain_place": _learn_place(store, records, split, grid, recipe.min_overlap).to_json(),
                "trained_on": mark_people(records, [*split.train, *split.val]),
            },
            profile=profile,
        )

    def build(self) -> TokenizerTraining:
        """Tokenizer and, where it has a weight, the adversary."""
        loss = self._recipe.loss
        with seeded(self._recipe.seed):
            model = self._recipe.model.build()
            adversary = PatchDiscriminator(loss.discriminator_channels) if loss.adversarial_weight else None
            return TokenizerTraining(model, adversary)

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Finds out when the adversary begins, builds the perceptual network, and starts the model from training data.

        Raises:
            RecipeError: its weights are not there.
            ModelError: no such network, or weights that do not fit it.
        """
        recipe = self._recipe
        steps_per_epoch = -(-len(cohort.split.train) // recipe.loop.batch_size)
        self._passes_before = round(recipe.loss.adversarial_epochs * steps_per_epoch) * recipe.optim.passes
        self._scale_sizes = [x * y * z for x, y, z in recipe.model.scales(_grid_of(cohort))]
        if recipe.model.reference != "none" or recipe.model.shortcut:
            assert isinstance(module, TokenizerTraining)
            module.tokenizer.start_from(self._read_some(cohort))
        if recipe.loss.perceptual_weight:
            self._perceptual = PerceptualDistance(recipe.loss, _read_weights(recipe.loss.perceptual_weights))

    def stand_ins(self, grid_shape: Grid | None) -> tuple[TokenizerTraining, Callable[[int], Batch]]:
        """With the adversary begun, random perceptual features, and codes as weights: running means ask for values."""
        recipe = self._recipe
        grid = self._choose_grid(grid_shape)
        quantiser = dataclasses.replace(recipe.model.quantiser, update="gradient")
        model = dataclasses.replace(recipe.model, quantiser=quantiser)
        with_gradient = NeuroARVQVAETask(dataclasses.replace(recipe, model=model))
        self._passes_before = -1
        self._scale_sizes = [x * y * z for x, y, z in recipe.model.scales(grid)]
        if recipe.loss.perceptual_weight:
            self._perceptual = PerceptualDistance(recipe.loss)

        def make_batch(num_rows: int) -> Batch:
            shape = (num_rows, *grid)
            brain = torch.ones(shape, dtype=torch.bool)
            return {"volume": torch.zeros(shape), "brain": brain, ITEM: torch.arange(num_rows)}

        return with_gradient.build(), make_batch

    def name_row(self, grid_shape: Grid | None) -> str:
        """Volumes."""
        return f"volumes of {' x '.join(map(str, self._choose_grid(grid_shape)))}"

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """Encoder and decoder; the quantiser and the adversary, which runs twice, go with the root."""
        assert isinstance(module, TokenizerTraining)
        return [module.tokenizer.encoder, module.tokenizer.decoder]

    def rivals(self, module: nn.Module) -> Sequence[Rival]:
        """The adversary."""
        adversary, optim = self._recipe.adversary, self._recipe.optim
        return [
            Rival(
                name="discriminator",
                prefix="discriminator.",
                lr_share=1.0 if adversary.lr is None else adversary.lr / optim.lr,
                betas=adversary.betas,
                weight_decay=adversary.weight_decay,
                clip_norm=adversary.clip_norm,
            )
        ]

    def undecayed(self, module: nn.Module) -> Collection[str]:
        """Codes, where they are weights."""
        return ("tokenizer.quantiser.codebook.codes",)

    def reader(self, cohort: Cohort) -> BrainVolumeReader:
        """Reads volumes on the grid, with the brain."""
        return BrainVolumeReader(cohort.store, cohort.version, _grid_of(cohort))

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """Terms of each volume; in validation its tokens, and errors for the signal-to-noise ratio, besides."""
        assert isinstance(module, TokenizerTraining)
        volume = batch["volume"]
        # Of a rank without rows a stand-in runs, from which the codebook must not learn.
        made = module.tokenizer(volume, counted=batch[ITEM] >= 0)
        error = absolute_error(made.reconstruction, volume, batch["brain"], self._recipe.loss.brain_weight)
        outputs = {"l1": error, "quantiser": made.quantiser_loss}
        if self._recipe.loss.l2_weight:
            weight = self._recipe.loss.brain_weight
            outputs["l2"] = squared_error(made.reconstruction, volume, batch["brain"], weight)
        if self._perceptual is not None:
            outputs["perceptual"] = self._perceptual(made.reconstruction, volume)
        if not module.training:
            return outputs | _judge_volumes(made, volume, batch["brain"])
        module.num_passes += 1
        num_codes = self._recipe.model.quantiser.num_codes
        module.hits += sum_over_ranks(count_codes(made.tokens, self._scale_sizes, num_codes, batch[ITEM] >= 0))
        if module.discriminator is not None and int(module.num_passes) > self._passes_before:
            outputs |= self._challenge(module.discriminator, made.reconstruction, volume, outputs)
        return outputs

    def targets(self, batch: Batch) -> Int[Tensor, " row"]:
        """Which item of the plan each row is; what is to be told is in the voxels."""
        return batch[ITEM]

    def loss(self, outputs: Outputs, targets: Int[Tensor, " row"]) -> Terms:
        """The weighted sum of the terms' means over volumes; the adversary's own terms in training alone."""
        loss = self._recipe.loss
        weights = {
            "l1": loss.l1_weight,
            "l2": loss.l2_weight,
            "quantiser": loss.quantiser_weight,
            "perceptual": loss.perceptual_weight,
            "deceive": loss.adversarial_weight,
            "discriminate": 1.0,
        }
        terms = {name: outputs[name].mean() for name in weights if name in outputs}
        return {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum(), **terms}

    def summarise_epoch(self, module: nn.Module) -> dict[str, float]:
        """How the codebook was used, over all training volumes of the epoch."""
        assert isinstance(module, TokenizerTraining)
        whole, _, perplexities = describe_usage(module.hits)
        module.hits.zero_()
        return {"codes_used": whole, **_name_by_scale(perplexities)}

    def score(self, outputs: Outputs, targets: Int[Tensor, " row"]) -> dict[str, float]:
        """Peak signal-to-noise ratios (of values in [0, 1], the mean over volumes), and how the codebook is used."""
        tokens = outputs["tokens"].round().long()
        whole, _, perplexities = measure_usage(tokens, self._scale_sizes, self._recipe.model.quantiser.num_codes)
        return {
            "psnr": float(outputs["psnr_brain"].double().mean()),
            "psnr_whole": float(outputs["psnr_whole"].double().mean()),
            "codes_used": whole,
            **_name_by_scale(perplexities),
        }

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves the tokenizer, with the grid and the profile that its volumes had."""
        assert isinstance(module, TokenizerTraining)
        recipe = self._recipe
        described = {
            "format": _MODEL_FORMAT,
            "model_name": recipe.model_name,
            "model": recipe.model.to_json(),
            "classes": [],
            "target": "",
            "modality": recipe.data.modality,
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "profile": cohort.profile.to_json(),
            **cohort.facts,
        }
        save_weights(folder, module.tokenizer.state_dict(), described, training)

    def _choose_grid(self, grid_shape: Grid | None) -> Grid:
        return grid_shape or self._recipe.grid_shape or self._recipe.model.grid or _PAPER_GRID

    def _read_some(self, cohort: Cohort) -> Tensor:
        """Training volumes, or some of them spread evenly over all: the same on every rank."""
        scan_ids, reader = cohort.split.train, self.reader(cohort)
        chosen = [scan_ids[index] for index in range(0, len(scan_ids), -(-len(scan_ids) // _MOST_TO_START_FROM))]
        return torch.stack([torch.from_numpy(np.array(reader(ReadItem(scan_id=one))["volume"])) for one in chosen])

    def _challenge(
        self, discriminator: nn.Module, reconstruction: Tensor, volume: Tensor, outputs: Outputs
    ) -> dict[str, Tensor]:
        loss = self._recipe.loss
        deceived = deceive(score_frozen(discriminator, reconstruction), loss.adversarial_kind)
        if loss.adaptive:
            weights = {"l1": loss.l1_weight, "l2": loss.l2_weight, "perceptual": loss.perceptual_weight}
            own = torch.stack([weight * outputs[name] for name, weight in weights.items() if name in outputs]).sum(0)
            deceived = balance_gradients(own, deceived, reconstruction) * deceived
        real = judge_real(discriminator(volume), loss.adversarial_kind)
        fake = judge_made(discriminator(reconstruction.detach()), loss.adversarial_kind)
        return {"deceive": deceived, "discriminate": (real + fake) / 2}


def require_volumes(records: Sequence[ScanRecord], recipe: Recipe) -> None:
    """Raises RecipeError where some of the scans are no volumes."""
    runs = [record for record in records if len(record.shape) != 3]
    if runs:
        raise RecipeError(
            f"{len(runs)} of {len(records)} {recipe.data.modality} scans are no volumes",
            given=f"{runs[0].scan_id} of shape {' x '.join(map(str, runs[0].shape))}",
            expected="x y z",
            fix="--data.modality T1w",
        )


def _learn_place(
    store: ScanStore, records: Sequence[ScanRecord], split: Split, grid: Grid, required: float
) -> BrainPlace:
    """From a few people's first scans, evenly over all of those that are trained on or selected by."""
    known = {*split.train, *split.val}
    firsts: dict[str, str] = {}
    for record in sorted(records, key=lambda record: record.scan_id):
        if record.scan_id in known:
            firsts.setdefault(record.subject, record.scan_id)
    scan_ids = list(firsts.values())
    places = np.unique(np.linspace(0, len(scan_ids) - 1, min(len(scan_ids), _NUM_PLACED)).round().astype(int))
    chosen = [scan_ids[place] for place in places]
    reader = BrainVolumeReader(store.uri, store.version, grid, cache_bytes=0)
    volumes = ((scan_id, reader(ReadItem(scan_id=scan_id))["volume"]) for scan_id in chosen)
    return learn_place(volumes, required=required)


def _judge_volumes(made: VQVAEOutput, volume: Tensor, brain: Tensor) -> dict[str, Tensor]:
    """Tokens as floats, which hold them exactly, for outputs become floats; decibels of each volume."""
    error = ((made.reconstruction.float().clamp(-1, 1) - volume) / 2).square().flatten(1)
    inside = brain.flatten(1).float()
    of_brain = (error * inside).sum(1) / inside.sum(1).clamp_min(1)
    return {
        "tokens": made.tokens.float(),
        "psnr_brain": -10 * of_brain.clamp_min(1e-10).log10(),
        "psnr_whole": -10 * error.mean(1).clamp_min(1e-10).log10(),
    }


def _name_by_scale(perplexities: list[float]) -> dict[str, float]:
    return {f"perplexity_{number}": value for number, value in enumerate(perplexities, start=1)}


def _grid_of(cohort: Cohort) -> Grid:
    x, y, z = cohort.facts["grid_shape"]
    return x, y, z


def _read_weights(path: str | None) -> dict[str, Tensor] | None:
    if path is None:
        return None
    if not Path(path).is_file():
        raise RecipeError("the perceptual network's weights are not there", given=path, expected="a local file")
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)

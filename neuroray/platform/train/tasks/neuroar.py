"""NeuroAR's transformer in training: pairs of visits as tokens, teacher forcing, judged against copying."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import Config, without_effect
from neuroray.platform.data.brain_volumes import BrainVolumeReader
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.splits import Split, SplitConfig, split_subjects
from neuroray.platform.data.tokens import (
    Tokenizer,
    TokenPair,
    TokenPairReader,
    check_tokens,
    load_tokenizer,
    open_tokens,
)
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.models.neuroar.generate import Decode, Detail, SamplingConfig, generate_latent
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer, describe_before, describe_previous
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.people import choose_records, spacing_range
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig, Recipe, RecipeError
from neuroray.platform.train.slice_features import mark_people
from neuroray.platform.train.task import Batch, Cohort, Outputs, Terms
from neuroray.platform.train.tasks.neuroar_vqvae import require_volumes
from neuroray.platform.train.visit_pairs import Direction, count_diagnoses, pair_sides, scans_of, split_pairs
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import find_common_profile, require_profile
from neuroray.storage.store import ScanRecord, ScanStore

_MODEL_FORMAT = 1
_SIDES = ("previous", "target")
_MOST_TO_START_FROM = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig(Config):
    """Which tokenizer.

    Attributes:
        sha256: Of its weights: another one under the same path is refused.
        folder: Its model folder.
    """

    sha256: str
    folder: str = without_effect("")


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuroARRecipe(Recipe):
    """A run of NeuroAR's second stage.

    Attributes:
        model: The transformer; its quantiser and grid are those of the tokenizer.
        tokenizer: The first stage (`neuroray train --encoder RUN`).
        direction: Whether targets are later scans alone, or earlier ones too.
        with_same: Whether each scan is also its own target, at its own age.
        scale_weights: `token`: all tokens count the same, so the last scale has most of the loss; `scale`: all scales.
        label_smoothing: Of the cross entropy.
        decode: What runs of this recipe decode where nothing else is asked for (`SamplingConfig`).
        detail: What they make of the scan's detail then.
        min_psnr_db: Signal-to-noise ratio on its validation people that the tokenizer must have reached.
    """

    model_name: Annotated[Literal["neuroar"], tyro.conf.Suppress] = "neuroar"
    model: NeuroARConfig = field(default_factory=NeuroARConfig)
    tokenizer: Annotated[TokenizerConfig | None, tyro.conf.Suppress] = None
    data: DataConfig = field(default_factory=lambda: DataConfig(target=""))
    split: SplitConfig = field(default_factory=lambda: SplitConfig(stratify_by=None))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(name="adamw", lr=1e-4, weight_decay=0.05))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(batch_size=8, select_by="val_loss"))
    direction: Direction = "forward"
    with_same: bool = False
    scale_weights: Literal["token", "scale"] = "token"
    label_smoothing: float = 0.0
    decode: Decode = "codes"
    detail: Detail = "none"
    min_psnr_db: float = 25.0

    def __post_init__(self) -> None:
        # Named, because a dataclass with slots is made anew, and the bare super() would still know the old one.
        Recipe.__post_init__(self)
        if self.loop.select_by != "val_loss":
            given, fix = self.loop.select_by, "--loop.select-by val_loss"
            raise RecipeError("the transformer is selected by its loss", given=given, fix=fix)

    def task(self) -> NeuroARTask:
        """What the loop needs of the transformer."""
        return NeuroARTask(self)


def use_tokenizer(recipe: NeuroARRecipe, run: str) -> NeuroARRecipe:
    """The recipe with the tokenizer of a finished run, its quantiser and its grid.

    Raises:
        TokenError: there is none.
    """
    found = load_tokenizer(run)
    config = found.model.config
    model = dataclasses.replace(recipe.model, quantiser=config.quantiser, latent_shape=config.latent_shape(found.grid))
    return dataclasses.replace(recipe, model=model, tokenizer=TokenizerConfig(sha256=found.sha256, folder=found.folder))


class NeuroARTask:
    """The task of a `NeuroARRecipe`."""

    def __init__(self, recipe: NeuroARRecipe) -> None:
        self._recipe = recipe
        self._quantiser: MultiScaleQuantiser | None = None

    def prepare(self, store: ScanStore) -> Cohort:
        """Pairs the visits of each person, side by side of the split, and finds their tokens.

        Raises:
            RecipeError: no tokenizer, or a bad one; nobody with two visits; tokens that are not there; people who judge
                and have trained the tokenizer.
            TokenError: tokens that are none of this tokenizer's.
            StoreError: tokens that are damaged.
            ProfileError: scans that were not all prepared alike, or otherwise than the tokenizer's.
            SplitError: too few people.
        """
        recipe = self._recipe
        tokenizer = self.require_tokenizer()
        records = choose_records(store, recipe)
        require_volumes(records, recipe)
        profile = find_common_profile(store, records)
        require_profile(records, tokenizer.card)
        split = split_subjects(records, recipe.split, catalogue_version=store.version)
        _require_unseen(tokenizer, records, split)
        pairs = pair_sides(records, split, recipe.direction, with_same=recipe.with_same)
        cache = open_tokens(store, tokenizer)
        _require_tokens(store, cache.missing(sorted(scans_of([*pairs["train"], *pairs["val"]]))), recipe)
        model = recipe.model
        check_tokens(cache, scans_of([*pairs["train"], *pairs["val"]]), model.num_tokens, model.quantiser.num_codes)
        named = {pair.name: pair for side in pairs.values() for pair in side}
        ages = [age for pair in pairs["train"] for age in pair.ages_years]
        gaps = [pair.gap_years for pair in pairs["train"]]
        return Cohort(
            store=store.uri,
            version=store.version,
            split=split_pairs(split, pairs),
            features=tokenizer.fingerprint,
            spacing_mm=spacing_range(records, split.train),
            facts={
                "grid_shape": list(tokenizer.grid),
                "age_range_years": [min(ages), max(ages)],
                "gap_range_years": [min(gaps), max(gaps)],
                "brain_place": tokenizer.card.get("brain_place"),
                "diagnoses": count_diagnoses(records, scans_of(pairs["train"])),
                "num_pairs": {side: len(found) for side, found in pairs.items()},
                "ages_years": {name: list(pair.ages_years) for name, pair in named.items()},
            },
            profile=profile,
        )

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            RecipeError: there is none, it is not the one that the run started with, or it reconstructs too little.
        """
        tokenizer, wanted_db = self._load_tokenizer(), self._recipe.min_psnr_db
        reached_db = tokenizer.provenance.get("val_scores", {}).get("val_psnr", 0.0)
        if reached_db < wanted_db:
            raise RecipeError(
                "the tokenizer does not reconstruct well enough to be worth a transformer",
                given=f"{reached_db:.1f} dB on its validation people",
                expected=f"{wanted_db:g} dB",
                fix="train it for longer, or insist: --min-psnr-db 0",
            )
        return tokenizer

    def build(self) -> NeuroARTransformer:
        """The transformer; the tokenizer does not learn, and stands beside it."""
        with seeded(self._recipe.seed):
            return self._recipe.model.build()

    def calibrate(self, module: nn.Module, cohort: Cohort) -> None:
        """Loads the quantiser, and shows the model its codes where it compares with them.

        Raises:
            RecipeError: it is not the one that the run started with.
        """
        tokenizer = self._load_tokenizer()
        self._quantiser = tokenizer.model.quantiser
        assert isinstance(module, NeuroARTransformer)
        module.adopt(self._quantiser)
        if self._recipe.model.head == "nearest":
            module.start_from(*self._read_changes(cohort, tokenizer))

    def stand_ins(self, grid_shape: tuple[int, int, int] | None) -> tuple[NeuroARTransformer, Callable[[int], Batch]]:
        """Transformer and quantiser as described, and pairs of equal tokens; the grid is that of the tokenizer."""
        model = self._recipe.model
        self._quantiser = MultiScaleQuantiser(model.quantiser).eval()

        def make_batch(num_rows: int) -> Batch:
            tokens = {side: torch.zeros(num_rows, model.num_tokens, dtype=torch.int64) for side in _SIDES}
            return {**tokens, "ages_years": torch.ones(num_rows, 2)}

        return self.build(), make_batch

    def name_row(self, grid_shape: tuple[int, int, int] | None) -> str:
        """Pairs of visits."""
        return f"pairs of {self._recipe.model.num_tokens:,} tokens"

    def blocks(self, module: nn.Module) -> Sequence[nn.Module]:
        """Every block; embeddings and head go with the root."""
        assert isinstance(module, NeuroARTransformer)
        return list(module.blocks)

    def undecayed(self, module: nn.Module) -> Collection[str]:
        """Tables of places, levels, roles and starts."""
        assert isinstance(module, NeuroARTransformer)
        return module.names_without_decay()

    def reader(self, cohort: Cohort) -> TokenPairReader:
        """Reads pairs of tokens with their ages."""
        model = self._recipe.model
        pairs = {}
        for name, (before, after) in cohort.facts["ages_years"].items():
            previous, target = name.split(" ")
            pairs[name] = TokenPair(previous=previous, target=target, ages_years=(before, after))
        return TokenPairReader(
            cohort.store,
            cohort.version,
            str(cohort.features),
            pairs,
            num_tokens=model.num_tokens,
            num_codes=model.quantiser.num_codes,
        )

    def forward(self, module: nn.Module, batch: Batch) -> Outputs:
        """Cross entropy of each pair by scale; in validation what is right, and how far off generated latents are."""
        assert isinstance(module, NeuroARTransformer)
        quantiser, shape = self._place(batch["target"].device), self._recipe.model.latent_shape
        previous, target, ages = batch["previous"], batch["target"], batch["ages_years"]
        shown = describe_previous(quantiser, previous, shape)
        before = describe_before(quantiser, target)
        logits = module(quantiser.teacher_inputs(target, shape), ages, shown, before=before).logits
        smoothing = self._recipe.label_smoothing if module.training else 0.0
        entropy = functional.cross_entropy(logits.transpose(1, 2), target, reduction="none", label_smoothing=smoothing)
        scales = [entropy[:, start:end].mean(1) for start, end in pairwise(self._recipe.model.ends)]
        outputs = {"entropy": torch.stack(scales, 1)}
        if module.training:
            return outputs
        made = generate_latent(module, quantiser, previous, ages, SamplingConfig(decode=self._recipe.decode)).latent
        return (
            outputs
            | _judge_tokens(logits.argmax(-1), previous, target)
            | _judge_latents(made, *(quantiser.decode(tokens, shape) for tokens in (previous, target)))
        )

    def targets(self, batch: Batch) -> Float[Tensor, "row 2"]:
        """Ages; what is to be told is in the tokens."""
        return batch["ages_years"]

    def loss(self, outputs: Outputs, targets: Float[Tensor, "row 2"]) -> Terms:
        """The mean over pairs, and over tokens or scales; each scale's own mean besides."""
        model = self._recipe.model
        by_scale = outputs["entropy"].mean(0)
        sizes = by_scale.new_tensor([end - start for start, end in pairwise(model.ends)])
        weights = sizes if self._recipe.scale_weights == "token" else torch.ones_like(sizes)
        loss = (weights * by_scale).sum() / weights.sum()
        return {"loss": loss, **{f"entropy_{number}": one for number, one in enumerate(by_scale.unbind(), start=1)}}

    def score(self, outputs: Outputs, targets: Float[Tensor, "row 2"]) -> dict[str, float]:
        """Shares of tokens that are right: all, those that differ from the previous scan's, and those of copying.

        `error_to_copy` is the squared error of the generated latent as a share of that of the previous scan's: below 1
        it is nearer to the target.
        """
        total = {name: float(values.double().sum()) for name, values in outputs.items() if name != "entropy"}
        return {
            "accuracy": total["right"] / total["tokens"],
            "changed_accuracy": total["right_changed"] / max(1.0, total["changed"]),
            "copy_accuracy": 1 - total["changed"] / total["tokens"],
            "error_to_copy": total["made_error"] / max(1e-12, total["copy_error"]),
        }

    def export(self, module: nn.Module, cohort: Cohort, folder: Location, training: dict[str, Any]) -> None:
        """Saves transformer and tokenizer together: a folder that needs no other."""
        recipe = self._recipe
        tokenizer = self._load_tokenizer()
        state = {f"transformer.{name}": value for name, value in module.state_dict().items()}
        state |= {f"tokenizer.{name}": value for name, value in tokenizer.model.state_dict().items()}
        facts = {name: value for name, value in cohort.facts.items() if name != "ages_years"}
        described = {
            "format": _MODEL_FORMAT,
            "model_name": recipe.model_name,
            "model": recipe.model.to_json(),
            "tokenizer": {"model": tokenizer.card["model"], "sha256": tokenizer.sha256},
            "sampling": {"decode": recipe.decode, "detail": recipe.detail},
            "classes": [],
            "target": "",
            "modality": recipe.data.modality,
            "spacing_mm": [list(bound) for bound in cohort.spacing_mm],
            "profile": cohort.profile.to_json(),
            **facts,
        }
        save_weights(folder, state, described, training)

    def _read_changes(self, cohort: Cohort, tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
        """Latents of training people at one visit and at the next, and their ages at both.

        Of the scans themselves, for their tokens tell too little of a small change: a code stands for all that is
        nearest to it, and what moves within its reach does not move it.
        """
        ages = {name: cohort.facts["ages_years"][name] for name in cohort.split.train}
        forward = [name for name, (before, after) in ages.items() if after > before]
        chosen = forward[:: -(-len(forward) // _MOST_TO_START_FROM)]
        read = BrainVolumeReader(cohort.store, cohort.version, tokenizer.grid)

        def encode(scan_id: str) -> Tensor:
            volume = torch.from_numpy(np.array(read(ReadItem(scan_id=scan_id))["volume"]))
            return tokenizer.model.encode_latent(volume[None])[0]

        before, after = (torch.stack([encode(name.split(" ")[side]) for name in chosen]) for side in range(2))
        return before, after, torch.tensor([ages[name] for name in chosen], dtype=torch.float32)

    def _place(self, device: torch.device) -> MultiScaleQuantiser:
        assert self._quantiser is not None  # the loop calibrates first
        if self._quantiser.codebook.codes.device != device:
            self._quantiser = self._quantiser.to(device)
        return self._quantiser

    def _load_tokenizer(self) -> Tokenizer:
        wanted = self._recipe.tokenizer
        if wanted is None:
            raise RecipeError(
                "the transformer needs a tokenizer",
                given="none",
                expected="the run of a first stage",
                fix="neuroray train neuroar/vqvae:base --store STORE --out TOKENIZER, then --encoder TOKENIZER",
            )
        found = load_tokenizer(wanted.folder)
        if found.sha256 != wanted.sha256:
            raise RecipeError(
                "the tokenizer is another one than when the run started",
                given=found.sha256[:16],
                expected=wanted.sha256[:16],
                fix="restore its folder, or start anew with another --out",
            )
        return found


def _require_tokens(store: ScanStore, missing: Sequence[str], recipe: NeuroARRecipe) -> None:
    if missing:
        folder = recipe.tokenizer.folder if recipe.tokenizer else "TOKENIZER"
        raise RecipeError(
            f"{len(missing)} scans have no tokens of this tokenizer",
            fix=f"neuroray extract {store.uri} --recipe {recipe.name} --encoder {folder}, or add --extract",
        )


def _require_unseen(tokenizer: Tokenizer, records: Sequence[ScanRecord], split: Split) -> None:
    seen = set(tokenizer.card.get("trained_on", ())) & set(mark_people(records, split.test))
    if seen:
        raise RecipeError(
            f"{len(seen)} of the test people have trained or selected the tokenizer",
            given=tokenizer.folder,
            fix="train it with the same --split fields as this run, fold by fold",
        )


def _judge_tokens(told: Tensor, previous: Tensor, target: Tensor) -> dict[str, Tensor]:
    right, changed = told == target, previous != target
    return {
        "tokens": torch.full_like(right[:, 0], target.shape[1], dtype=torch.float32),
        "right": right.sum(1).float(),
        "changed": changed.sum(1).float(),
        "right_changed": (right & changed).sum(1).float(),
    }


def _judge_latents(made: Tensor, previous: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {
        "made_error": (made - target).square().flatten(1).sum(1),
        "copy_error": (previous - target).square().flatten(1).sum(1),
    }

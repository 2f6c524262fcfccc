"""A store of tiny runs whose people are told apart by where their signal is strong, and recipes small enough for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.data.windows import WindowConfig
from neuroray.platform.models.brainmt import BrainMTConfig, MaskedBrainMTConfig
from neuroray.platform.train.parallel import seeded
from neuroray.platform.train.patch_masks import MaskConfig
from neuroray.platform.train.recipe import DataConfig, LoopConfig, OptimConfig
from neuroray.platform.train.tasks.brainmt import BrainMTRecipe
from neuroray.platform.train.tasks.brainmt_masked import MaskedBrainMTRecipe
from neuroray.storage.bids import Participant
from neuroray.storage.locations import Location
from neuroray.storage.profiles.profile import find_profile
from neuroray.storage.profiles.steps import prepare
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

GRID = (17, 20, 18)
MODEL = BrainMTConfig(
    grid_shape=GRID, num_frames=6, width=8, mamba_depth=1, attention_depth=1, frames_at_once=5, drop_path=0.2
)


def tiny(**changes: Any) -> BrainMTRecipe:
    """Sex, from windows of 6 frames."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": MODEL,
        "data": DataConfig(
            modality="bold", target="sex", windows=WindowConfig(sampler="random", num_frames=6, per_scan=1)
        ),
        "split": SplitConfig(stratify_by="sex", num_parts=5, num_folds=5),
        "optim": OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0),
        "loop": LoopConfig(batch_size=4, num_epochs=4),
        **changes,
    }
    return BrainMTRecipe(**settings)


def tiny_cognition() -> BrainMTRecipe:
    """Cognition, from the same."""
    recipe = tiny()
    return dataclasses.replace(
        recipe,
        classify=(),
        regress=("cognition",),
        data=dataclasses.replace(recipe.data, target="cognition"),
        split=SplitConfig(stratify_by="cognition", num_bins=2, num_parts=5, num_folds=5),
        loop=dataclasses.replace(recipe.loop, select_by="val_r"),
    )


def tiny_both(**changes: Any) -> BrainMTRecipe:
    """Both, sex first."""
    recipe = tiny(regress=("cognition",), model=dataclasses.replace(MODEL, num_outputs=2))
    return dataclasses.replace(recipe, split=dataclasses.replace(recipe.split, keep_unlabelled=True), **changes)


def write_run_cohort(store_uri: str | Path, *, num_people: int = 24) -> ScanStore:
    """Half of them women; the last two lack sex, or cognition; runs have 8 to 13 frames, of 2 s each."""
    store = ScanStore.create(str(store_uri))
    store.commit([write_person(store, number) for number in range(num_people)])
    write_person(store, 900, commit=True, sex=None)
    write_person(store, 901, commit=True, cognition=None)
    return store


def make_run(number: int, *, is_woman: bool, cognition: float, repetition_time_s: float | None = 2.0) -> Scan:
    """One run: brighter on the left in women, and at the top with cognition."""
    generator = np.random.default_rng(number)
    voxels = generator.normal(500, 30, (8 + number % 6, *GRID))
    voxels[:, : GRID[0] // 2] += 60 * is_woman
    voxels[:, :, :, GRID[2] // 2 :] += 3 * (cognition - 100)
    voxels[:, :2], voxels[:, :, -3:] = 0, 0
    return Scan(
        voxels=np.rint(voxels).astype(np.int16),
        affine=np.diag([8.0, 8.0, 8.0, 1.0]),
        repetition_time_s=repetition_time_s,
    )


def write_person(store: ScanStore, number: int, *, commit: bool = False, **changes: Any) -> Any:
    """One person with a run; `changes` are of the person's labels, or of the run's repetition time."""
    labels = {"sex": "FM"[number % 2], "cognition": 100.0 + 4 * (number % 7 - 3), **changes}
    time_s = labels.pop("repetition_time_s", 2.0)
    run = make_run(
        number,
        is_woman=labels["sex"] == "F",
        cognition=labels["cognition"] or 100.0,
        repetition_time_s=time_s,
    )
    person = Participant(subject=f"{number:03d}", age_years=30.0 + number, **labels)
    return store.write(
        prepare(run, find_profile("fmri_minimal")),
        scan_id=f"sub-{number:03d}_bold",
        subject=person.subject,
        modality="bold",
        participant=person,
        commit=commit,
    )


def export_untrained(recipe: BrainMTRecipe, store: ScanStore, folder: str | Path, *, seed: int = 0) -> Path:
    """The model folder that the recipe's task writes, its weights drawn and not learned."""
    task = recipe.task()
    cohort = task.prepare(store)
    module = task.build()
    with torch.no_grad(), seeded(seed):
        # Weights so large that windows and people are told apart, as trained ones do.
        for parameter in module.head.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    task.export(module, cohort, Location(str(folder)), {"seed": seed})
    return Path(folder)


def tiny_pretrain(**changes: Any) -> MaskedBrainMTRecipe:
    """Masked pretraining of the same encoder; 8 places, of which blocks of 2 frames are hidden."""
    settings: dict[str, Any] = {
        "name": "tiny_pretrain",
        "model": MaskedBrainMTConfig(encoder=MODEL, cell_voxels=8),
        "data": DataConfig(modality="bold", target="", windows=WindowConfig(sampler="random", num_frames=6)),
        "split": SplitConfig(stratify_by=None, num_parts=5, num_folds=5),
        "optim": OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, clip_norm=1.0),
        "loop": LoopConfig(batch_size=4, num_epochs=2, select_by="val_loss"),
        "mask": MaskConfig(ratio=0.5, block_frames=2),
        **changes,
    }
    return MaskedBrainMTRecipe(**settings)

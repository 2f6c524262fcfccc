"""A tiny NeuroAR run of a few steps and a scan to ask it about: what it says is nonsense, how it is said is not."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from contracts.brain_cohort import TOKENIZER, draw_brain, tiny_tokenizer, write_brain_cohort

from neuroray.platform.data.brain_place import LEAST_OVERLAP
from neuroray.platform.data.tokens import extract_tokens, load_tokenizer
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig, OptimConfig
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe, use_tokenizer


def train_ageing_run(folder: Path, *, num_people: int = 4, min_overlap: float = LEAST_OVERLAP) -> Path:
    """Writes `store`, `tokenizer` and `run` into a folder.

    Of more than a few people their balls are not alike enough to count as registered: a `min_overlap` of 0 insists.
    """
    store = write_brain_cohort(folder / "store", num_people=num_people)
    few = LoopConfig(batch_size=3, num_epochs=4, select_by="val_psnr")
    fit(tiny_tokenizer(loop=few, min_overlap=min_overlap), store=store.uri, out=str(folder / "tokenizer"))
    tokenizer = str(folder / "tokenizer")
    extract_tokens(store, load_tokenizer(tokenizer), [record.scan_id for record in store.records()])
    recipe = NeuroARRecipe(
        name="tiny",
        model=NeuroARConfig(
            quantiser=TOKENIZER.quantiser, latent_shape=(5, 5, 5), width=16, depth=1, num_heads=2, gamma=0.3
        ),
        split=tiny_tokenizer().split,
        optim=OptimConfig(name="adamw", lr=3e-3, clip_norm=2.0),
        loop=LoopConfig(batch_size=5, num_epochs=2, select_by="val_loss"),
        direction="both",
        min_psnr_db=0.0,
    )
    fit(use_tokenizer(recipe, tokenizer), store=store.uri, out=str(folder / "run"))
    return folder


def write_ball(path: Path) -> Path:
    """A brain whose file runs from right to left, of another shape than the model's grid."""
    voxels = draw_brain((17, 19, 18), 7.0, 62.0, np.random.default_rng(7))
    affine = np.array([[-4.0, 0, 0, 30], [0, 4.0, 0, -41], [0, 0, 4.0, -22], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def ages_of(run: Path) -> tuple[float, float]:
    """Youngest and oldest of its training."""
    low, high = json.loads((run / "model" / "config.json").read_text())["age_range_years"]
    return low, high

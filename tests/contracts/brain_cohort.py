"""A store of tiny brains that shrink with age around a ventricle that grows; most people come twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.models.neuroar import QuantiserConfig, VQVAEConfig
from neuroray.platform.models.neuroar.loss import VQVAELossConfig
from neuroray.platform.train.recipe import LoopConfig, OptimConfig
from neuroray.platform.train.tasks.neuroar_vqvae import NeuroARVQVAERecipe
from neuroray.storage.bids import Participant
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

TOKENIZER = VQVAEConfig(
    channels=6,
    multipliers=(1, 2, 2),
    num_blocks=1,
    norm_groups=2,
    checkpoint=False,
    quantiser=QuantiserConfig(num_codes=24, code_dim=6, num_scales=3, num_refiners=3, decay=0.9),
)


def tiny_tokenizer(**changes: Any) -> NeuroARVQVAERecipe:
    """A recipe for these volumes, which no change to the package's own recipes moves."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": TOKENIZER,
        "loss": VQVAELossConfig(brain_weight=3.0, adversarial_epochs=8.0, discriminator_channels=2),
        "split": SplitConfig(stratify_by=None, num_parts=4, num_folds=2),
        "optim": OptimConfig(name="adamw", lr=3e-3, clip_norm=1.0),
        "loop": LoopConfig(batch_size=3, num_epochs=12, select_by="val_psnr", checkpoint_every_steps=4),
        **changes,
    }
    return NeuroARVQVAERecipe(**settings)


def write_brain_cohort(store_uri: str | Path, *, num_people: int = 8) -> ScanStore:
    """Everybody but the first person comes twice, 2 to 8 years apart; the last scan is of a larger grid."""
    store = ScanStore.create(str(store_uri))
    generator = np.random.default_rng(3)
    records = []
    for number in range(num_people):
        age, size = round(float(generator.uniform(50, 75)), 1), float(generator.uniform(6.5, 7.5))
        ages = [age] if number == 0 else [age, round(age + float(generator.uniform(2, 8)), 1)]
        for visit, years in enumerate(ages, start=1):
            shape = (18, 19, 17) if number == num_people - 1 else (17, 19, 17)
            records.append(_write_scan(store, number, visit, years, draw_brain(shape, size, years, generator)))
    store.commit(records)
    return store


def draw_brain(
    shape: tuple[int, int, int], size: float, age_years: float, generator: np.random.Generator
) -> np.ndarray:
    """A bright ball with a dark hole, whose radius grows by age, on background of 0."""
    axes = [np.arange(length) - (length - 1) / 2 for length in shape]
    radius = np.sqrt(sum(one**2 for one in np.meshgrid(*axes, indexing="ij")))
    inner = 1 + (age_years - 50) / 12
    voxels = np.where(radius < inner, 150.0, 700.0) + generator.normal(0, 15, shape)
    return np.where(radius < size, voxels, 0).astype(np.float32)


def _write_scan(store: ScanStore, number: int, visit: int, age_years: float, voxels: np.ndarray):
    person = Participant(subject=f"{number:03d}", sex="FM"[number % 2], age_years=age_years)
    return store.write(
        Scan(voxels=voxels, affine=np.diag([4.0, 4.0, 4.0, 1.0])),
        scan_id=f"sub-{number:03d}_ses-{visit:02d}_T1w",
        subject=person.subject,
        session=f"{visit:02d}",
        modality="T1w",
        participant=person,
        commit=False,
    )

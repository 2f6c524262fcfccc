"""A store of tiny heads whose maps of slices are made up: age stands in a few places of the map, sex in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.models.brainrotvit import BrainRotViTConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig
from neuroray.platform.train.recipe import LoopConfig, OptimConfig
from neuroray.platform.train.slice_features import feature_fingerprint
from neuroray.platform.train.tasks.brainrotvit import BrainRotViTRecipe
from neuroray.storage.bids import Participant
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

MODEL = BrainRotViTConfig(
    slices=ResampledStackConfig(num_slices=12, image_size=32),
    encoder=SliceEncoderConfig(backbone="test_vit", readout="mean"),
    kernels=((2, 9), (2, 5), (2, 3)),
    widths=(4, 3, 1),
    hidden=(16, 8),
    dropout=0.0,
    scale_outputs=True,
)


def tiny(**changes: Any) -> BrainRotViTRecipe:
    """A recipe for these features, which no change to the package's own recipes moves."""
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": MODEL,
        "optim": OptimConfig(name="adamw", lr=3e-3),
        "split": SplitConfig(stratify_by="age_years", num_bins=3),
        "loop": LoopConfig(num_epochs=40, select_by="val_mae", checkpoint_every_steps=1000),
        **changes,
    }
    return BrainRotViTRecipe(**settings)


def write_age_cohort(store_uri: str | Path, *, num_people: int = 60, with_features: bool = True) -> ScanStore:
    """People of 20 to 80; every fifth without a sex, and one more without an age."""
    store = ScanStore.create(str(store_uri))
    generator = np.random.default_rng(7)
    ages = [*generator.uniform(20, 80, num_people).round(1).tolist(), None]
    records = store.commit([_write_person(store, number, age, generator) for number, age in enumerate(ages)])
    if with_features:
        features = FeatureStore(store, feature_fingerprint(MODEL))
        features.commit([features.write(one, _draw_map(generator, one.age_years), commit=False) for one in records])
    return store


def _write_person(store: ScanStore, number: int, age_years: float | None, generator: np.random.Generator):
    voxels = generator.normal(100, 10, (8, 9, 7)).astype(np.float32)
    voxels[0] = 0
    scan = Scan(voxels=voxels, affine=np.diag([2.0, 2.0, 2.0 + (number % 3) / 2, 1.0]))
    person = Participant(subject=f"{number:03d}", sex=("M", "F", "F", "M", None)[number % 5], age_years=age_years)
    return store.write(
        scan,
        scan_id=f"sub-{number:03d}_T1w",
        subject=person.subject,
        modality="T1w",
        participant=person,
        commit=False,
    )


def _draw_map(generator: np.random.Generator, age_years: float | None) -> FeatureSet:
    slices, channels = MODEL.slices.num_slices, MODEL.num_channels
    features = generator.normal(size=(slices, channels)).astype(np.float32)
    features[3:9, :40] += ((age_years or 50.0) - 50) / 10
    return FeatureSet(
        features=features,
        mask=np.ones(slices, dtype=bool),
        position_mm=np.linspace(0, 14, slices, dtype=np.float32),
        slice_index=np.linspace(0, 7, slices).round().astype(np.int64),
    )

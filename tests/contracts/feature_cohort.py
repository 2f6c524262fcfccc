"""A store of tiny scans whose slice features are made up: two groups of people, told apart by a few slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig
from neuroray.platform.train.recipe import LoopConfig
from neuroray.platform.train.slice_features import feature_fingerprint
from neuroray.platform.train.tasks.dinoatten3d import DinoAtten3DRecipe
from neuroray.storage.bids import Participant
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

MODEL = DinoAtten3DConfig(
    slices=SliceStackConfig(num_slices=6, image_size=32),
    encoder=SliceEncoderConfig(backbone="resnet10t.c3_in1k", weights="random", readout="pool"),
    hidden=16,
    embedding=(32, 16),
)


def tiny() -> DinoAtten3DRecipe:
    """A recipe for these features, which no change to the package's own recipes moves."""
    return DinoAtten3DRecipe(name="tiny", model=MODEL, loop=LoopConfig(num_epochs=3))


def write_feature_cohort(store_uri: str | Path, *, num_people: int = 40, with_features: bool = True) -> ScanStore:
    """Half of them `control`, half `disease`; one more has no diagnosis."""
    store = ScanStore.create(str(store_uri))
    generator = np.random.default_rng(7)
    records = [_write_person(store, number, num_people, generator) for number in range(num_people + 1)]
    records = store.commit(records)
    if with_features:
        features = FeatureStore(store, feature_fingerprint(MODEL))
        features.commit(
            [
                features.write(one, _draw_features(generator, one.diagnosis == "disease"), commit=False)
                for one in records
            ]
        )
    return store


def _write_person(store: ScanStore, number: int, num_people: int, generator: np.random.Generator):
    diagnosis = None if number == num_people else ("control", "disease")[number % 2]
    zooms_mm = (2.0, 2.0, 2.0 + (number % 3) / 2)
    voxels = generator.normal(100, 10, (8, 9, 7)).astype(np.float32)
    scan = Scan(voxels=voxels, affine=np.diag([*zooms_mm, 1.0]))
    person = Participant(
        subject=f"{number:03d}", sex="FM"[number // 2 % 2], age_years=60.0 + number, diagnosis=diagnosis
    )
    return store.write(
        scan,
        scan_id=f"sub-{number:03d}_T1w",
        subject=person.subject,
        modality="T1w",
        participant=person,
        commit=False,
    )


def _draw_features(generator: np.random.Generator, is_ill: bool) -> FeatureSet:
    features = generator.normal(size=(6, MODEL.encoder.resolve_channels(MODEL.slices.image_size))).astype(np.float32)
    features[2:4, :20] += 1.5 * is_ill
    mask = np.array([True] * 5 + [False])
    features[~mask] = 0
    return FeatureSet(
        features=features,
        mask=mask,
        position_mm=np.where(mask, np.arange(6.0), np.nan).astype(np.float32),
        slice_index=np.where(mask, np.arange(6), -1),
    )

"""Cached slice features as a recipe of a slice model needs them: which ones, and whether they are all there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from neuroray.config import Config
from neuroray.platform.data.splits import Split
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SlicePlan
from neuroray.platform.train.recipe import Recipe, RecipeError
from neuroray.storage.checkpoint import CONFIG, WEIGHTS
from neuroray.storage.features import FeatureStore
from neuroray.storage.store import ScanRecord, ScanStore


class EncodedModel(Protocol):
    """The configuration of a model that looks at slices through a frozen encoder."""

    @property
    def slices(self) -> SlicePlan:
        """How a volume becomes pictures."""
        ...

    @property
    def encoder(self) -> SliceEncoderConfig:
        """The frozen encoder."""
        ...


def feature_fingerprint(model: EncodedModel) -> str:
    """What the cached features of this model's encoder are found by."""
    return model.encoder.build(model.slices.image_size).fingerprint(model.slices)


def require_features(store: ScanStore, split: Split, features: str, recipe: Recipe) -> None:
    """Makes sure that everybody who trains or selects has been encoded.

    Raises:
        RecipeError: some have not; says how many, and how to.
    """
    wanted = [*split.train, *split.val]
    missing = FeatureStore(store, features).missing(wanted)
    if missing:
        raise RecipeError(
            f"{len(missing)} of {len(wanted)} scans have no cached features of this encoder",
            given=f"encoder {features[:16]}",
            fix=f"neuroray extract {store.uri} --recipe {recipe.name}, or add --extract to this command "
            "(needed where --model fields were changed)",
        )


def without_path[M: Config](model: M) -> M:
    """Of a local weights file only the name is handed on: its place tells of a machine, not of the model."""
    described: Any = model
    if described.encoder.weights_file is None:
        return model
    encoder = dataclasses.replace(described.encoder, weights_file=Path(described.encoder.weights_file).name)
    return dataclasses.replace(described, encoder=encoder)


def mark_people(records: Iterable[ScanRecord], scan_ids: Iterable[str]) -> list[str]:
    """Marks of the people of these scans by which they can be recognised, but not named."""
    subjects = {record.scan_id: record.subject for record in records}
    return sorted({hashlib.sha256(f"neuroray {subjects[one]}".encode()).hexdigest()[:16] for one in scan_ids})


def use_encoder[M: Config](model: M, run: str) -> M:
    """The model with the encoder that a first stage has made.

    Args:
        model: Whose encoder to replace: backbone and weights; how it is read out stays.
        run: The first stage's run folder, or its `model` folder.

    Raises:
        RecipeError: there is no such encoder.
    """
    folder = next((path for path in (Path(run, "model"), Path(run)) if (path / WEIGHTS).is_file()), None)
    card = json.loads((folder / CONFIG).read_text()) if folder is not None and (folder / CONFIG).is_file() else {}
    if folder is None or card.get("model_name") != "brainrotvit_encoder":
        raise RecipeError(
            "there is no encoder here",
            given=run,
            expected="the run folder of a first stage, after its training has ended",
            fix="neuroray train brainrotvit:stage1 --store STORE --out RUN",
        )
    described: Any = model
    encoder = dataclasses.replace(
        described.encoder,
        backbone=card["model"]["encoder"]["backbone"],
        weights="file",
        weights_file=str(folder / WEIGHTS),
        weights_sha256=card["weights"]["sha256"],
    )
    return dataclasses.replace(described, encoder=encoder)


def require_unseen(model: EncodedModel, records: Iterable[ScanRecord], split: Split) -> None:
    """Makes sure that nobody who is to judge has trained the encoder, as far as a card beside its weights tells.

    Raises:
        RecipeError: some have; says how many.
    """
    if model.encoder.weights_file is None:
        return
    path = Path(model.encoder.weights_file).with_name(CONFIG)
    card = json.loads(path.read_text()) if path.is_file() else {}
    seen = set(card.get("trained_on", ())) & set(mark_people(records, split.test))
    if seen:
        raise RecipeError(
            f"{len(seen)} of the test people have trained or selected the encoder",
            given=path.parent,
            fix="train it with the same --split fields as this run, fold by fold",
        )

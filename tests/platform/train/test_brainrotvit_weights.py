"""An encoder from a local file: its hash is checked before anything is trained, and stands in the model's card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from contracts.age_cohort import MODEL, tiny, write_age_cohort
from safetensors.torch import save_file

from neuroray.platform.models.brainrotvit import BrainRotViTConfig
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig
from neuroray.platform.train.slice_features import feature_fingerprint
from neuroray.serve.predictor import load_predictor
from neuroray.storage.store import ScanStore

LOOP = LoopConfig(num_epochs=1, select_by="val_mae")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store", num_people=30)


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, str]:
    """The random encoder of these features, saved under timm's names."""
    encoder = MODEL.encoder.build(MODEL.slices.image_size)
    path = tmp_path / "mine.safetensors"
    save_file({name: value.contiguous() for name, value in encoder.backbone.state_dict().items()}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def from_file(path: Path, sha256: str) -> BrainRotViTConfig:
    settings: dict[str, Any] = {"weights": "file", "weights_file": str(path), "weights_sha256": sha256}
    return dataclasses.replace(MODEL, encoder=SliceEncoderConfig(backbone="test_vit", readout="mean", **settings))


def test_a_run_records_the_hash_and_needs_the_file_no_more(
    store: ScanStore, weights: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = weights
    model = from_file(path, sha256)
    # The tensors count and not where they came from, so the features of the same weights by seed are found.
    assert feature_fingerprint(model) == feature_fingerprint(MODEL)
    fit(tiny(model=model, loop=LOOP), store=store.uri, out=str(tmp_path / "run"))
    card = json.loads((tmp_path / "run/model/config.json").read_text())
    assert card["model"]["encoder"]["weights_sha256"] == sha256
    assert card["model"]["encoder"]["weights_file"] == "mine.safetensors"
    assert card["encoder_sha256"] == MODEL.encoder.build(MODEL.slices.image_size).hash_weights()
    path.unlink()
    predictor = load_predictor(str(tmp_path / "run"))
    assert predictor.card.fingerprints["encoder_sha256"] == card["encoder_sha256"]
    assert predictor.predict(store.read("sub-001_T1w")).targets[0].value is not None


def test_a_file_of_other_bytes_stops_the_run_before_it_begins(
    store: ScanStore, weights: tuple[Path, str], tmp_path: Path
) -> None:
    path, sha256 = weights
    for model, fault in (
        (from_file(path, "0" * 64), r"mine\.safetensors is not the file that was asked for"),
        (from_file(path.with_name("other.safetensors"), sha256), "the encoder's weight file is not there"),
    ):
        with pytest.raises(ModelError, match=fault):
            fit(tiny(model=model, loop=LOOP), store=store.uri, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()

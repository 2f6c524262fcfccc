"""A tiny model with random weights in an exported folder, and the real T1 to ask it about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

REAL_T1 = Path(__file__).parents[1] / "data/pumi/sub-001/anat/sub-001_T1w.nii.gz"
HARD = Path(__file__).parents[1] / "data/hard"


def save_tiny_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Writes an exported model folder as training does; `changes` replace fields of its config."""
    from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
    from neuroray.platform.models.layers.encoder import SliceEncoderConfig
    from neuroray.platform.models.layers.slices import SliceStackConfig
    from neuroray.storage.checkpoint import save_weights

    config = DinoAtten3DConfig(
        slices=SliceStackConfig(num_slices=7, image_size=32),
        encoder=SliceEncoderConfig(backbone="vit_tiny_patch16_224", seed=seed),
        hidden=8,
        embedding=(16, 8),
    )
    torch.manual_seed(seed)
    model = config.build()
    card = {
        "format": 1,
        "model_name": "dinoatten3d",
        "model": config.to_json(),
        "classes": ["control", "patient"],
        "target": "diagnosis",
        "modality": "T1w",
        "encoder_sha256": model.encoder.hash_weights(),
        "feature_fingerprint": model.encoder.fingerprint(config.slices),
        "spacing_mm": [[1.9, 1.9, 1.9], [2.1, 2.1, 2.1]],
    }
    save_weights(folder, model.state_dict(), card | changes, {"seed": seed})
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def real_t1() -> Path:
    return REAL_T1


@pytest.fixture(scope="session")
def hard_folder() -> Path:
    return HARD

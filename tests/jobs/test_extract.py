from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuroray.config import ConfigError
from neuroray.jobs.extract import Args, run
from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig
from neuroray.storage.features import FeatureStore
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    store = ScanStore.create(tmp_path / "store")
    for number, (modality, shape) in enumerate([("T1w", (8, 9, 7)), ("bold", (3, 8, 9, 7)), ("T1w", (8, 8, 8))]):
        voxels = np.random.default_rng(number).normal(size=shape).astype(np.float32)
        store.write(Scan(voxels=voxels, affine=np.eye(4)), scan_id=f"scan-{number}", subject="s", modality=modality)
    return store


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = DinoAtten3DConfig(
        slices=SliceStackConfig(image_size=32, num_slices=4), encoder=SliceEncoderConfig(backbone="test_vit")
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"format": 1, "model": config.to_json()}))
    return path


def test_scans_of_the_recipes_modality_get_features_and_a_second_run_does_nothing(
    store: ScanStore, model: Path, tmp_path: Path
) -> None:
    args = Args(store=store.uri, recipe="dinoatten3d:smoke", model=str(model), out=str(tmp_path / "out"))
    first, second = run(args), run(args)
    assert (first["num_extracted"], first["extracted"], second["num_extracted"]) == (2, ("scan-0", "scan-2"), 0)
    assert second["num_present"] == 2
    assert set(FeatureStore(store, first["fingerprint"]).records()) == {"scan-0", "scan-2"}
    assert "0 T1w scans encoded, 2 were there already; 4 slices" in second["text"]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["status"], record["fingerprint"]) == ("done", first["fingerprint"])
    json.dumps(first)  # what --json prints


def test_a_model_file_that_cannot_be_read_is_wrong_use(store: ScanStore, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        run(Args(store=store.uri, recipe="dinoatten3d:smoke", model=str(tmp_path / "bad.json")))


def test_a_model_of_whole_runs_has_no_features_to_extract(store: ScanStore) -> None:
    with pytest.raises(ConfigError, match=r"only models of slices.*neuroray train brainmt:smoke"):
        run(Args(store=store.uri, recipe="brainmt:smoke"))

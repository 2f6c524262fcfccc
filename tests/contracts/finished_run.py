"""A finished run without the training loop: a small store, a split, a tiny model whose head was fitted for a second."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroray.platform.data.splits import SplitConfig, split_subjects
from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.slices import SliceStackConfig
from neuroray.storage.bids import Participant
from neuroray.storage.checkpoint import save_weights
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

GRID = (20, 22, 18)
CLASSES = ("control", "patient")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """Where it lies."""

    folder: Path
    store: Path


def tiny_config(**changes: Any) -> DinoAtten3DConfig:
    """DinoAtten3D at a size for tests: seven slices, pictures of 32 pixels, a random ViT-Tiny."""
    settings: dict[str, Any] = {
        "slices": SliceStackConfig(num_slices=7, image_size=32),
        "encoder": SliceEncoderConfig(backbone="vit_tiny_patch16_224"),
        "hidden": 8,
        "embedding": (16, 8),
    }
    return DinoAtten3DConfig(**settings | changes)


def make_head_scan(rng: np.random.Generator, *, is_patient: bool) -> Scan:
    """A ball of tissue in noise, in patients darker around a place low in it; 8 mm voxels, a slightly oblique grid."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in GRID), indexing="ij")
    voxels = 100.0 * (x**2 + y**2 + z**2 < 0.9)
    if is_patient:
        voxels[x**2 + y**2 + (z + 0.2) ** 2 < 0.2] *= 0.75
    voxels += rng.normal(0, 12, GRID)
    tilt = 0.05
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = 8.0 * turn
    affine[:3, 3] = (-80.0, -96.0, -60.0)
    return Scan(voxels=np.clip(voxels, 0, None).astype(np.float32), affine=affine)


def make_store(path: Path, *, num_subjects: int = 40, seed: int = 0) -> ScanStore:
    """People in turn control and patient; every fourth pair of neighbours is one family."""
    store = ScanStore.create(path)
    rng = np.random.default_rng(seed)
    records = []
    for number in range(num_subjects):
        subject = f"p{number:03d}"
        person = Participant(
            subject=subject,
            age_years=float(20 + number % 50),
            sex="F" if number % 3 else "M",
            diagnosis=CLASSES[number % 2],
            site=f"site{(number // 2) % 2}",
            family_id=f"f{number // 2}" if (number // 2) % 4 == 0 else None,
        )
        scan = make_head_scan(rng, is_patient=bool(number % 2))
        records.append(
            store.write(
                scan, scan_id=f"{subject}_T1w", subject=subject, modality="T1w", participant=person, commit=False
            )
        )
    store.commit(records)
    return store


def make_finished_run(
    folder: Path,
    store: ScanStore,
    *,
    split: SplitConfig | None = None,
    config: DinoAtten3DConfig | None = None,
    num_steps: int = 60,
    cache_features: bool = True,
) -> FinishedRun:
    """Writes a run folder as training does; the head is fitted by full-batch Adam on the training people."""
    split = split or SplitConfig(num_parts=5, num_folds=5)
    parted = split_subjects(store.records(), split, catalogue_version=store.version)
    torch.manual_seed(0)
    model = (config or tiny_config()).build()
    fingerprint = model.encoder.fingerprint(model.config.slices)
    features, cached = {}, []
    cache = FeatureStore(store, fingerprint)
    missing = set(cache.missing(record.scan_id for record in store.records()))
    for record in store.records():
        scan = store.read(record.scan_id)
        with torch.no_grad():
            view = model.encode(torch.tensor(scan.voxels), spacing_mm=scan.zooms_mm)
        features[record.scan_id] = view
        if cache_features and record.scan_id in missing:
            cached.append(cache.write(record, _feature_set(scan, view, model.config.slices), commit=False))
    if cached:
        cache.commit(cached)
    losses = _fit_head(model.head, features, parted, num_steps)
    card = {
        "format": 1,
        "model_name": "dinoatten3d",
        "model": model.config.to_json(),
        "classes": list(parted.classes),
        "target": "diagnosis",
        "modality": "T1w",
        "encoder_sha256": model.encoder.hash_weights(),
        "feature_fingerprint": fingerprint,
        "spacing_mm": [[8.0] * 3, [8.0] * 3],
    }
    folder.mkdir(parents=True)
    save_weights(folder / "model", model.state_dict(), card, {"seed": 0, "recipe": "dinoatten3d:test"})
    parted.write_json(folder / "splits.json")
    recipe = {"name": "dinoatten3d:test", "model_name": "dinoatten3d", "seed": 0}
    data = {"store": store.uri, "version": store.version, "modality": "T1w", "target": "diagnosis"}
    (folder / "config.json").write_text(json.dumps({**recipe, "data": data}))
    rows = [{"step": step, "epoch": step // 5, "split": "train", "loss": loss} for step, loss in enumerate(losses)]
    rows += [
        {"step": 5 * e, "epoch": e, "split": "val", "loss": 0.8 - 0.01 * e, "auc": 0.5 + 0.02 * e} for e in range(9)
    ]
    (folder / "result.json").write_text(json.dumps({"best_step": 20}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FinishedRun(folder=folder, store=Path(store.uri))


def _fit_head(head: Any, features: dict[str, Any], split: Any, num_steps: int) -> list[float]:
    stacked = torch.stack([features[scan_id].features for scan_id in split.train])
    masks = torch.stack([features[scan_id].mask for scan_id in split.train])
    labels = torch.tensor([split.classes.index(split.labels[scan_id]) for scan_id in split.train])
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    losses = []
    for _ in range(num_steps):
        loss = torch.nn.functional.cross_entropy(head(stacked, masks).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _feature_set(scan: Scan, view: Any, slices: SliceStackConfig) -> FeatureSet:
    from neuroray.platform.models.layers.slices import slice_positions_mm

    index = view.slice_index.numpy()
    return FeatureSet(
        features=view.features.numpy(),
        mask=view.mask.numpy(),
        position_mm=slice_positions_mm(scan.grid_shape, scan.affine, slices, index).astype(np.float32),
        slice_index=index,
    )

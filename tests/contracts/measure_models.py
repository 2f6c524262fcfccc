"""Small models that tell a number from slices, and heads for them to look at."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.models.brainrotvit import BrainRotViTConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig
from neuroray.storage.scan import Scan

CONFIG = BrainRotViTConfig(
    slices=ResampledStackConfig(num_slices=20, image_size=64),
    encoder=SliceEncoderConfig(backbone="test_vit", readout="mean"),
    kernels=((3, 9), (2, 5), (2, 3)),
    widths=(4, 3, 1),
    hidden=(16, 8),
)


def build_measure_model(*, quantiles: tuple[float, ...] = (), **changes: Any) -> SliceMeasureModel:
    """Untrained, its weights the same every time; `changes` are those of the configuration."""
    torch.manual_seed(3)
    config = dataclasses.replace(CONFIG, num_outputs=max(1, len(quantiles)), **changes)
    module = config.build().eval().requires_grad_(False)
    card = {
        "targets": [{"name": "age_years", "kind": "number", "unit": "years", "mean": 0.0, "std": 1.0}],
        "quantiles": list(quantiles),
        "model_name": "brainrotvit",
        "target": "age_years",
        "modality": "T1w",
    }
    return SliceMeasureModel(module=module, card=card, provenance={})


def draw_head_scan(shape: tuple[int, int, int] = (31, 40, 27), *, spacing_mm: float = 5.0, seed: int = 0) -> Scan:
    """A smooth bright body, off the middle, in a dark field around the world's origin."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    inside = ((x - 0.1) / 0.7) ** 2 + ((y + 0.05) / 0.8) ** 2 + (z / 0.75) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    voxels = np.clip(inside * (80 + 30 * texture / 0.05), 20 * inside, None)
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -spacing_mm * (np.array(shape) - 1) / 2
    return Scan(voxels=voxels.astype(np.float32), affine=affine)

"""A trained model out of its folder, in the halves that evidence needs apart: slices to vectors, vectors to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.models import MODELS
from neuroray.platform.models.layers.slices import SliceStackConfig
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.locations import Location
from neuroray.storage.scan import Scan, ScanError

SliceModule = Any
"""An `nn.Module` with `config.slices`, `encoder`, `head(features, mask)` and `encode(volume, spacing_mm=)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceView:
    """A scan as the head of a slice model takes it.

    Attributes:
        features: One vector per slice; zeros where masked.
        mask: True where a stored slice was encoded.
        slice_index: Which one along the canonical axis; -1 where masked.
    """

    features: Float[Tensor, "slice channel"]
    mask: Bool[Tensor, " slice"]
    slice_index: Int[Tensor, " slice"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says of one scan.

    Attributes:
        logits: Of every class.
        slice_weights: Attention of every slice, masked ones included (exactly 0).
    """

    logits: Float[Tensor, " class"]
    slice_weights: Float[Tensor, " slice"]

    @property
    def probabilities(self) -> Float[np.ndarray, " class"]:
        """Softmax of the logits, in float64 so that they sum to 1 as closely as can be."""
        return torch.softmax(self.logits.detach().double(), dim=-1).cpu().numpy()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A slice model with its card.

    Attributes:
        module: In eval mode, no parameter asks for a gradient.
        card: `config.json` of the model folder: `model_name`, `classes`, `target`, `modality`, fingerprints.
        provenance: How it came about.
    """

    module: SliceModule
    card: Mapping[str, Any]
    provenance: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the logits; with two, the last is the positive one."""
        return tuple(self.card["classes"])

    @property
    def slices(self) -> SliceStackConfig:
        """How a volume becomes pictures."""
        return self.module.config.slices

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def encode(self, scan: Scan) -> SliceView:
        """Slices of a scan through the frozen encoder.

        Raises:
            ScanError: a time series.
            ModelError: a volume that cannot be cut into slices.
        """
        view = self.module.encode(self.volume(scan), spacing_mm=scan.zooms_mm)
        return SliceView(features=view.features, mask=view.mask, slice_index=view.slice_index)

    def volume(self, scan: Scan) -> Float[Tensor, "x y z"]:
        """The voxels as a tensor where the weights are.

        Raises:
            ScanError: a time series.
        """
        if scan.is_timeseries:
            raise ScanError(
                "a time series cannot be looked at as one volume",
                given=f"{scan.num_frames} frames",
                expected="a three-dimensional scan",
            )
        return torch.tensor(np.asarray(scan.voxels, dtype=np.float32), device=self.device)

    def answer(self, view: SliceView) -> Answer:
        """The head's answer; gradients pass when the features ask for them."""
        output = self.module.head(view.features[None].to(self.device), view.mask[None].to(self.device))
        return Answer(logits=output.logits[0], slice_weights=output.attention[0])


def load_model(folder: Location | str | PathLike[str], *, device: str = "cpu") -> LoadedModel:
    """Rebuilds a model from its folder alone.

    Raises:
        EvaluationError: a model that this version does not know, or one that has no slices.
        StoreError: the folder is incomplete or its weights are not those that were saved.
    """
    state, card, provenance = load_weights(folder)
    name = card.get("model_name")
    if name not in MODELS:
        raise EvaluationError("an unknown model", given=name, expected=f"one of {', '.join(MODELS)}")
    config: Any = MODELS[name].from_json(card["model"])
    module = config.build(load_weights=False)
    module.load_state_dict(state)
    module.requires_grad_(False)
    return LoadedModel(module=module.to(device).eval(), card=card, provenance=provenance)

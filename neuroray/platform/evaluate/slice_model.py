"""A trained model of slices, in the halves that evidence needs apart: slices to vectors, vectors to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from neuroray.platform.models.layers.slices import SliceStackConfig
from neuroray.storage.scan import Scan, ScanError

# Odd lengths, so that padding has its part.
_PROBE_SHAPE: Final = (61, 73, 65)
_PROBE_SEED: Final = 20

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
class SliceModel:
    """A model of slices with its card.

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

    @classmethod
    def build(cls, config: Any) -> nn.Module:
        """The module of a configuration, its encoder's weights not looked for."""
        return config.build(load_weights=False)

    @torch.no_grad()
    def probe(self) -> dict[str, Tensor]:
        """What it answers on a volume made up here, the same everywhere."""
        volume = torch.rand(_PROBE_SHAPE, generator=torch.Generator().manual_seed(_PROBE_SEED))
        output = self.module(volume[None].to(self.device), spacing_mm=(3.0, 3.0, 3.0))
        return {"logits": output.logits[0].cpu(), "attention": output.attention[0].cpu()}

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
        require_volume(scan)
        return torch.tensor(np.asarray(scan.voxels, dtype=np.float32), device=self.device)

    def answer(self, view: SliceView) -> Answer:
        """The head's answer; gradients pass when the features ask for them."""
        output = self.module.head(view.features[None].to(self.device), view.mask[None].to(self.device))
        return Answer(logits=output.logits[0], slice_weights=output.attention[0])


def require_volume(scan: Scan) -> None:
    """Raises ScanError for a time series."""
    if scan.is_timeseries:
        raise ScanError(
            "a time series cannot be looked at as one volume",
            given=f"{scan.num_frames} frames",
            expected="a three-dimensional scan",
        )

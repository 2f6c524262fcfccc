"""Who tells a brain at another age: the model, as `neuroray generate` asks it, and whatever stands beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int

from neuroray.platform.evaluate.visits import Visit
from neuroray.platform.generate.ageing_model import AgeingModel
from neuroray.platform.generate.generated import tell_at_age
from neuroray.platform.models.neuroar.generate import SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A brain at some age.

    Attributes:
        volume: On the model's grid, in [-1, 1].
        start: What the same row tells of the scan's own age, by which its predicted change is counted.
        tokens: `1 token`; None of what has no tokens.
    """

    volume: Float32[np.ndarray, "x y z"]
    start: Float32[np.ndarray, "x y z"]
    tokens: Int[torch.Tensor, "1 token"] | None = None


class AgeTeller(Protocol):
    """Something that tells a brain at another age from one scan."""

    @property
    def name(self) -> str:
        """Of its row."""
        ...

    def tell(self, visit: Visit, age_years: float) -> Told:
        """The same brain at this age."""
        ...


@dataclass(frozen=True, slots=True)
class ModelTeller:
    """The model, greedily: bit for bit what `neuroray generate` makes of the same scan, before it is laid back.

    Its changes are against the tokenizer's reconstruction of the scan, as those of `generate` are; where the run's
    recipe keeps the scan's detail, against the scan.
    """

    model: AgeingModel

    @property
    def name(self) -> str:
        """Of its row."""
        return "model"

    def tell(self, visit: Visit, age_years: float) -> Told:
        """The likeliest code everywhere, or what the run's recipe decodes in its place."""
        ages, sampling = (visit.age_years, age_years), self.model.complete(SamplingConfig())
        told = tell_at_age(self.model, visit.tokens, ages, sampling=sampling, volume=visit.volume)
        start = visit.volume if sampling.detail == "scan" else decode_visit(self.model, visit)
        return Told(volume=told.volume, start=start, tokens=told.tokens)


def decode_visit(model: AgeingModel, visit: Visit) -> Float32[np.ndarray, "x y z"]:
    """What the tokenizer makes of a scan."""
    return model.tokenizer.decode(visit.tokens, model.grid)[0].cpu().numpy()

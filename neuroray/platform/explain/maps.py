"""Explanation: a map on the grid of the scan, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int

from neuroray.errors import NeurorayError


class ExplainError(NeurorayError, ValueError):
    """A map that cannot be made: an unknown method or class, or a backbone without what the method reads."""


class SignedMap(Protocol):
    """What parts of the brain are measured in, whatever the model."""

    @property
    def values(self) -> Float[np.ndarray, "x y z"]:
        """What each voxel adds, signed."""
        ...

    @property
    def magnitudes(self) -> Float[np.ndarray, "x y z"]:
        """What each voxel adds or takes, whichever."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceProfile:
    """What each slice that the model looked at counted.

    Attributes:
        axis: `axial`, `coronal` or `sagittal`.
        spacing_mm: Distance of neighbouring voxels along that axis.
        slice_index: Along the canonical axis.
        position_mm: World coordinate of its middle.
        weight: Attention; sums to 1.
        probability_change: Probability of the target class minus what it is without this slice: where positive, the
            slice speaks for the class.
    """

    axis: str
    spacing_mm: float
    slice_index: Int[np.ndarray, " slice"]
    position_mm: Float[np.ndarray, " slice"]
    weight: Float[np.ndarray, " slice"]
    probability_change: Float[np.ndarray, " slice"]

    @property
    def entropy_fraction(self) -> float:
        """Entropy of the weights over that of equal weights: 1 is even, 0 is all on one slice."""
        positive = self.weight[self.weight > 0]
        return float(-(positive * np.log(positive)).sum() / np.log(len(self.weight))) if len(self.weight) > 1 else 1.0

    @property
    def effective_slices(self) -> float:
        """exp(entropy): the number of slices that, weighted alike, would be as spread."""
        positive = self.weight[self.weight > 0]
        return float(np.exp(-(positive * np.log(positive)).sum()))

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "axis": self.axis,
            "spacing_mm": self.spacing_mm,
            "slice_index": self.slice_index.tolist(),
            "position_mm": self.position_mm.tolist(),
            "weight": self.weight.tolist(),
            "uniform_weight": 1 / len(self.weight),
            "entropy_fraction": self.entropy_fraction,
            "effective_slices": self.effective_slices,
            "probability_change": self.probability_change.tolist(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A map of what an answer rests on.

    Attributes:
        method: How it was made.
        target: The class whose probability is explained.
        classes: All of them.
        probabilities: What the model said of this scan.
        values: On the scan's canonical grid (RAS+); 0 where the model did not look.
        quantity: What a value is, in words and unit.
        is_signed: Whether values may speak against the target.
        is_slicewise: Whether all voxels of a slice have the same value.
        profile: What each slice counted, whatever the method.
        facts: Sums and checks that belong to the method.
    """

    method: str
    target: str
    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, " class"]
    values: Float[np.ndarray, "x y z"]
    quantity: str
    is_signed: bool
    is_slicewise: bool
    profile: SliceProfile
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target_index(self) -> int:
        """The target among the classes."""
        return self.classes.index(self.target)

    def to_json(self) -> dict[str, Any]:
        """All but the map, which is a NIfTI file of its own."""
        return {
            "method": self.method,
            "target": self.target,
            "probabilities": dict(zip(self.classes, self.probabilities.tolist(), strict=True)),
            "quantity": self.quantity,
            "is_signed": self.is_signed,
            "map": {
                "minimum": float(self.values.min()),
                "maximum": float(self.values.max()),
                "sum": float(self.values.sum(dtype=np.float64)),
                "num_nonzero": int(np.count_nonzero(self.values)),
            },
            "slices": self.profile.to_json(),
            **self.facts,
        }

"""Target: what a model learns to say of a person, a class or a number, and how its outputs are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroray.errors import NeurorayError

_UNITS = {"age_years": "years"}


class TargetError(NeurorayError, ValueError):
    """A target that cannot be learned: one class only, a number that is the same for everybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing that is learned.

    Attributes:
        name: The label.
        kind: `class`: one of some classes. `number`: a measure.
        classes: Sorted; of two the last is the positive one, and they share one output, a logit.
        class_weights: How much a person of each class counts in the loss.
        mean: Of the number over the training scans, in its own unit; outputs are standard scores against it.
        std: Their spread (population).
        unit: Of the number; "" where it has none or it is not known.
        values: Class index or number by scan; scans without the label are missing.
    """

    name: str
    kind: Literal["class", "number"]
    classes: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    unit: str = ""
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_outputs(self) -> int:
        """Numbers that a model gives for it."""
        return len(self.classes) if len(self.classes) > 2 else 1

    def value(self, scan_id: str) -> float:
        """Class index or number of a scan; NaN where it has no label."""
        return self.values.get(scan_id, math.nan)

    def probabilities(self, outputs: Float[Tensor, "row output"]) -> Float[Tensor, "row class"]:
        """Of every class, in float64, from the target's outputs."""
        outputs = outputs.double()
        if self.num_outputs > 1:
            return torch.softmax(outputs, dim=1)
        positive = torch.sigmoid(outputs)
        return torch.cat([1 - positive, positive], dim=1)

    def numbers(self, outputs: Float[Tensor, "row 1"]) -> Float[Tensor, " row"]:
        """In the target's own unit, in float64, from its output."""
        return outputs[:, 0].double() * self.std + self.mean

    def to_json(self) -> dict[str, Any]:
        """All but whose value is which: for a model card and for people."""
        described: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.kind == "class":
            return described | {"classes": list(self.classes), "class_weights": list(self.class_weights)}
        return described | {"mean": self.mean, "std": self.std, "unit": self.unit}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` described."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**fields)


def class_target(
    name: str, labels: Mapping[str, str], *, train: Sequence[str], balanced: bool, classes: Sequence[str] = ()
) -> Target:
    """A target of classes.

    Args:
        name: The label.
        labels: Class by scan.
        train: The training scans: of them class weights are taken, and every class must be among them.
        balanced: Weigh each class by the inverse of its frequency, so that all count the same; else everybody counts 1.
        classes: In this order; those that are found, sorted, when not given.

    Raises:
        TargetError: fewer than two classes, or a class without a training scan.
    """
    found = tuple(classes) or tuple(sorted(set(labels.values())))
    if len(found) < 2:
        raise TargetError(f"all scans are of one class of {name}", given=", ".join(found), expected="two or more")
    tally = Counter(labels[scan_id] for scan_id in train if scan_id in labels)
    missing = [one for one in found if tally[one] == 0]
    if missing:
        raise TargetError(f"nobody of class {missing[0]} of {name} is trained on", given=dict(tally))
    weights = [sum(tally.values()) / (len(found) * tally[one]) if balanced else 1.0 for one in found]
    values = {scan_id: float(found.index(label)) for scan_id, label in labels.items()}
    return Target(name=name, kind="class", classes=found, class_weights=tuple(weights), values=values)


def number_target(name: str, numbers: Mapping[str, float], *, train: Sequence[str]) -> Target:
    """A target that is a measure; its mean and spread are those of the training scans alone.

    Raises:
        TargetError: fewer than two training scans have it, or all of them the same.
    """
    known = np.array([numbers[scan_id] for scan_id in train if scan_id in numbers], dtype=np.float64)
    if len(known) < 2:
        raise TargetError(f"too few training scans have a {name}", given=len(known), expected="2 or more")
    mean, std = float(known.mean()), float(known.std())
    # Rounding leaves a spread of some 1e-16 of the mean where all are the same.
    if not std > 1e-9 * max(1.0, abs(mean)):
        raise TargetError(
            f"{name} is the same for all training scans",
            given=f"{mean:g} for {len(known)} of them",
            expected="a measure that differs between people",
        )
    return Target(name=name, kind="number", mean=mean, std=std, unit=_UNITS.get(name, ""), values=dict(numbers))


def slice_outputs(targets: Sequence[Target]) -> list[slice]:
    """Which of a model's outputs are of which target."""
    stops = np.cumsum([target.num_outputs for target in targets]).tolist()
    return [slice(stop - target.num_outputs, stop) for target, stop in zip(targets, stops, strict=True)]

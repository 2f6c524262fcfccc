"""What a model answers for one scan, and what is told of the model beside it; no model and no HTTP in here."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from neuroray.platform.brain_age_gap.answer_line import AnswerLine
from neuroray.platform.evaluate.window_model import TargetAnswer
from neuroray.platform.quality.run_motion import RunMotion
from neuroray.serve.age_gap import GapAnswer

Bounds = tuple[tuple[float, ...], tuple[float, ...]]
"""Smallest and largest, along x, y, z."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetCard:
    """One thing that a model answers for.

    Attributes:
        name: The label.
        kind: Classes, or a measure.
        classes: In the order of its outputs; empty for a measure.
        unit: Of a measure; "" where it has none.
    """

    name: str
    kind: Literal["class", "number"]
    classes: tuple[str, ...] = ()
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeingFacts:
    """What a model that tells brains at other ages has learned from.

    Attributes:
        age_range_years: Youngest and oldest age in its training.
        gap_range_years: Shortest and longest gap; below 0 backwards.
        diagnoses: Of its training people; "" where none was recorded; empty: not known.
        tokenizer_sha256: Of the weights of its first stage.
    """

    age_range_years: tuple[float, float]
    gap_range_years: tuple[float, float]
    diagnoses: tuple[str, ...]
    tokenizer_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is told of a model beside its answers.

    Attributes:
        model_name: The architecture.
        version: The first digits of the SHA-256 of its weights: equal versions are equal models.
        classes: Of the main target, in the order of the outputs; empty where it is a measure.
        target: The main target: what the classes are values of, or the measure.
        targets: All that it answers for, the main one first.
        modality: BIDS suffix of the scans it was trained on.
        profile: Name of the preprocessing profile of its training scans.
        profile_sha256: Hash of that profile.
        spacing_mm: Smallest and largest voxel size along x, y, z among its training scans; None: not recorded.
        fingerprints: SHA-256 digests (hex) of weights, encoder and feature recipe, as far as the folder tells them.
        members: Of an ensemble: digests of the weights of its models, in order; empty for one model.
        age_line: Of a model of age: the line of controls that corrects gaps; None where it carries none.
        no_age_line: Why it carries none.
        ageing: Of a model that tells brains at other ages, in place of targets; None for all others.
    """

    model_name: str
    version: str
    classes: tuple[str, ...]
    target: str
    targets: tuple[TargetCard, ...]
    modality: str
    profile: str
    profile_sha256: str
    spacing_mm: Bounds | None
    fingerprints: dict[str, str]
    members: tuple[str, ...] = ()
    age_line: AnswerLine | None = None
    no_age_line: str | None = None
    ageing: AgeingFacts | None = None

    @property
    def tells_age(self) -> bool:
        """Whether a gap to the true age can be told of its answers."""
        return self.age_line is not None or self.no_age_line is not None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceWeight:
    """How much one slice counted.

    Attributes:
        slice_index: Along the slice axis of the scan in RAS+ order, as its profile has prepared it.
        position_mm: World coordinate, along that axis, of the middle of the slice.
        weight: Attention weight; those of a scan sum to 1.
    """

    slice_index: int
    position_mm: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one model says of a scan that it has looked at.

    Attributes:
        targets: The main one first.
        slice_weights: Of each slice that it looked at, padding included; None for a model without attention.
        by_sex: Of a model that takes the sex into account and was not told: its main answer (of
            classes the probability of the last) for a man, for a woman.
    """

    targets: tuple[TargetAnswer, ...]
    slice_weights: Float[np.ndarray, " slice"] | None = None
    by_sex: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer for one scan.

    Attributes:
        model: Who answered.
        targets: What it says of each of its targets, the main one first; of a model that tells brains there are none.
        attention_axis: The plane of the slices: axial, coronal or sagittal; None for a model without slices.
        attention: One entry per slice that the model looked at.
        motion: Of a run.
        gap: Predicted less true age, where the model tells ages and the true one was told.
        profile: Name of the preprocessing profile that the scan went through, that of the training scans.
        profile_sha256: Hash of that profile.
        warnings: Why the answer may deserve less trust, in plain words.
    """

    model: ModelCard
    targets: tuple[TargetAnswer, ...]
    attention_axis: str | None = None
    attention: tuple[SliceWeight, ...] = ()
    motion: RunMotion | None = None
    gap: GapAnswer | None = None
    profile: str
    profile_sha256: str
    warnings: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the main target, in the order of the model's outputs."""
        return self.model.classes

    @property
    def label(self) -> str | None:
        """The most probable class of the main target; None where that is a measure, or there is none."""
        return self.targets[0].label if self.targets else None

    @property
    def probabilities(self) -> dict[str, float]:
        """Class of the main target to probability; they sum to 1. Empty where that is a measure, or none."""
        return dict(self.targets[0].probabilities) if self.targets else {}

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        described = dataclasses.asdict(self)
        return {
            "label": self.label,
            "probabilities": self.probabilities,
            **described,
            "targets": [answer.to_json() for answer in self.targets],
        }

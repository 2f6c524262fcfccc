"""A run explained: windows together as a map in scan space, a course over time, and shares of regions and networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from neuroray.platform.data.atlas import label_networks, label_regions
from neuroray.platform.explain.integrated import REFERENCES, IntegratedConfig, Score, attribute_window
from neuroray.platform.explain.maps import ExplainError, SignedMap


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some frames of a run as its model takes them.

    Attributes:
        voxels: Standardised.
        first_frame: Place in the run.
        frame_mask: False for padding; None: all are frames of the run.
        background: The score of what is no brain; None: the window's lowest.
    """

    voxels: Float[Tensor, "time x y z"]
    first_frame: int = 0
    frame_mask: Bool[Tensor, " time"] | None = None
    background: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExplanation:
    """What an answer for a run rests on.

    Attributes:
        target: What is explained, in words: a measure, or the logit of a class.
        config: Reference and steps.
        values: Sum over time of what each voxel adds, mean over windows; signed.
        magnitudes: Sum over time of what it adds or takes, whichever.
        time_course: Sum over voxels at each frame of the run; mean over the windows that show it, NaN where none does.
        time_magnitudes: The same of magnitudes.
        scores: The model's for each window.
        reference_scores: The model's where each path begins.
        completeness_errors: Of each window, relative to its sum of magnitudes.
        completeness_errors_of_change: The same, relative to the change of its score.
    """

    target: str
    config: IntegratedConfig
    values: Float[np.ndarray, "x y z"]
    magnitudes: Float[np.ndarray, "x y z"]
    time_course: Float[np.ndarray, " frame"]
    time_magnitudes: Float[np.ndarray, " frame"]
    scores: tuple[float, ...]
    reference_scores: tuple[float, ...]
    completeness_errors: tuple[float, ...]
    completeness_errors_of_change: tuple[float, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All but the maps, which are NIfTI files of their own; what is not a number becomes null."""
        courses = {"signed": self.time_course, "magnitude": self.time_magnitudes}
        return {
            "method": "integrated_gradients",
            "target": self.target,
            "reference": self.config.reference,
            "reference_meaning": REFERENCES[self.config.reference],
            "num_steps": self.config.num_steps,
            "num_windows": len(self.scores),
            "scores": list(self.scores),
            "reference_scores": list(self.reference_scores),
            "completeness_errors": list(self.completeness_errors),
            "completeness_errors_of_change": [
                value if np.isfinite(value) else None for value in self.completeness_errors_of_change
            ],
            "map": {"sum": float(self.values.sum(dtype=np.float64)), "sum_of_magnitudes": float(self.magnitudes.sum())},
            "time_course": {
                name: [float(value) if np.isfinite(value) else None for value in course]
                for name, course in courses.items()
            },
            **self.facts,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a part of the brain adds.

    Attributes:
        name: Of the network or region.
        num_voxels: In it.
        total: Sum of signed values.
        magnitude_fraction: Its part of all magnitudes on the grid.
        density: That, over its part of the voxels of all named parts: above 1, more than its size would have.
    """

    name: str
    num_voxels: int
    total: float
    magnitude_fraction: float
    density: float


def explain_run(
    module: nn.Module,
    windows: Iterable[Window],
    config: IntegratedConfig,
    *,
    score: Score,
    target: str,
    num_frames: int | None = None,
) -> RunExplanation:
    """Integrated Gradients of every window of a run, put together.

    Args:
        module: From `batch time x y z` to something with `outputs`.
        windows: Of one run, on one grid; taken one at a time.
        config: Reference and steps.
        score: Which number is explained.
        target: What it is called.
        num_frames: Of the run; up to the last window's end when None.

    Raises:
        ExplainError: no window, or windows on different grids.
    """
    seen = [_summarise(module, window, config, score) for window in windows]
    if not seen:
        raise ExplainError("a run without windows cannot be explained", expected="one or more")
    if len({each.values.shape for each in seen}) > 1:
        given = ", ".join(str(each.values.shape) for each in seen)
        raise ExplainError("windows of one run lie on different grids", given=given)
    until = max(each.first_frame + len(each.time_course) for each in seen) if num_frames is None else num_frames
    return RunExplanation(
        target=target,
        config=config,
        values=np.mean([each.values for each in seen], axis=0).astype(np.float32),
        magnitudes=np.mean([each.magnitudes for each in seen], axis=0).astype(np.float32),
        time_course=_lay_out([(each.first_frame, each.time_course) for each in seen], until),
        time_magnitudes=_lay_out([(each.first_frame, each.time_magnitudes) for each in seen], until),
        scores=tuple(each.score for each in seen),
        reference_scores=tuple(each.reference_score for each in seen),
        completeness_errors=tuple(each.completeness_error for each in seen),
        completeness_errors_of_change=tuple(each.completeness_error_of_change for each in seen),
    )


def share_by_network(
    explanation: SignedMap, affine: Float[np.ndarray, "4 4"], *, reach_mm: float = 10.0
) -> list[Share]:
    """Shares of the functional networks of Seitzman et al. 2020, largest density first.

    Only where the affine leads to MNI152 space; that is not checked, for no header says it reliably.
    """
    x, y, z = explanation.values.shape
    labels, names = label_networks((x, y, z), affine, reach_mm=reach_mm)
    return share_by_label(explanation, labels, names)


def share_by_region(explanation: SignedMap, affine: Float[np.ndarray, "4 4"], *, reach_mm: float = 10.0) -> list[Share]:
    """Shares of the 300 regions of Seitzman et al. 2020; as `share_by_network`."""
    x, y, z = explanation.values.shape
    labels, names = label_regions((x, y, z), affine, reach_mm=reach_mm)
    return share_by_label(explanation, labels, names)


def share_by_label(explanation: SignedMap, labels: Int[np.ndarray, "x y z"], names: Sequence[str]) -> list[Share]:
    """Shares of any parts on the map's grid, largest density first; parts without a voxel are left out.

    Args:
        explanation: The map.
        labels: The part of each voxel, counted from 1; 0 is in none.
        names: Of the parts.

    Raises:
        ExplainError: labels on another grid.
    """
    if labels.shape != explanation.values.shape:
        raise ExplainError("labels lie on another grid", given=labels.shape, expected=explanation.values.shape)
    size = len(names) + 1
    flat = labels.ravel()
    counts = np.bincount(flat, minlength=size)[1:]
    totals = np.bincount(flat, explanation.values.ravel(), minlength=size)[1:]
    magnitudes = np.bincount(flat, explanation.magnitudes.ravel(), minlength=size)[1:]
    everywhere, named = float(explanation.magnitudes.sum(dtype=np.float64)), magnitudes.sum()
    shares = [
        Share(
            name=name,
            num_voxels=int(count),
            total=float(total),
            magnitude_fraction=float(magnitude / everywhere) if everywhere else 0.0,
            density=float(magnitude / named * counts.sum() / count) if named else 0.0,
        )
        for name, count, total, magnitude in zip(names, counts, totals, magnitudes, strict=True)
        if count
    ]
    return sorted(shares, key=lambda share: (-share.density, share.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What is kept of a window: a run's windows together are as large as the run."""

    values: Float[np.ndarray, "x y z"]
    magnitudes: Float[np.ndarray, "x y z"]
    time_course: Float[np.ndarray, " time"]
    time_magnitudes: Float[np.ndarray, " time"]
    first_frame: int
    score: float
    reference_score: float
    completeness_error: float
    completeness_error_of_change: float


def _summarise(module: nn.Module, window: Window, config: IntegratedConfig, score: Score) -> _Seen:
    found = attribute_window(
        module, window.voxels, config, score=score, frame_mask=window.frame_mask, background=window.background
    )
    shown = np.ones(len(window.voxels), bool) if window.frame_mask is None else window.frame_mask.cpu().numpy()
    values = found.values[shown].astype(np.float64)
    return _Seen(
        values=values.sum(axis=0),
        magnitudes=np.abs(values).sum(axis=0),
        time_course=values.sum(axis=(1, 2, 3)),
        time_magnitudes=np.abs(values).sum(axis=(1, 2, 3)),
        first_frame=window.first_frame,
        score=found.score,
        reference_score=found.reference_score,
        completeness_error=found.completeness_error,
        completeness_error_of_change=found.completeness_error_of_change,
    )


def _lay_out(courses: Sequence[tuple[int, np.ndarray]], num_frames: int) -> Float[np.ndarray, " frame"]:
    """Mean over the windows that show each frame; NaN where none does."""
    total, count = np.zeros(num_frames), np.zeros(num_frames)
    for first, course in courses:
        total[first : first + len(course)] += course
        count[first : first + len(course)] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

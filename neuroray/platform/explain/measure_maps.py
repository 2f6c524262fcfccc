"""explain_measure: a model that tells a number from slices, and a scan, to a map in scan space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.released_maps import fuse_as_released
from neuroray.platform.explain.token_maps import TokenEffects, cut_pictures, multiply_tokens, roll_out_patches
from neuroray.platform.explain.token_reference import NUM_STEPS, TokenReference, integrate_tokens
from neuroray.platform.models.layers.resampled_maps import deal_out, paint
from neuroray.platform.models.layers.resampled_slices import ResampledStack
from neuroray.platform.models.layers.slices import slice_positions_mm
from neuroray.storage.scan import Scan

MEASURE_METHODS = {
    "grad_x_token": "what a voxel adds to the answer, to first order",
    "integrated_tokens": "what a voxel adds to the answer against the mean of other people",
    "rollout": "share of the voxel in the encoder's vectors by attention",
    "paper_fused": "the released score of the patch, 0 to 1 within its slice",
}
"""Each method, and what a value of its map is."""
SIGNED = ("grad_x_token", "integrated_tokens")
"""Those whose values are in the unit of the answer, and may lower it."""
ADDING_UP = (*SIGNED, "rollout")
"""Those whose values are amounts in a voxel, with a sum that means something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureExplanation:
    """A map of what a number rests on.

    Attributes:
        method: A key of `MEASURE_METHODS`.
        target: What the number is called.
        unit: Of the number.
        answer: The number as the model tells it; None where the method does not look at it.
        quantity: What a value is, in words and unit.
        is_signed: Whether values may lower the number.
        values: On the scan's canonical grid (RAS+); 0 where the model did not look.
        patches: The same where it was computed: on the patches of each picture.
        position_mm: World coordinate of each picture along the axis of the slices.
        facts: Sums and checks that belong to the method.
    """

    method: str
    target: str
    unit: str
    answer: float | None
    quantity: str
    is_signed: bool
    values: Float[np.ndarray, "x y z"]
    patches: Float[np.ndarray, "slice row column"]
    position_mm: Float[np.ndarray, " slice"]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def magnitudes(self) -> Float[np.ndarray, "x y z"]:
        """What each voxel adds or takes, whichever."""
        return np.abs(self.values)

    def to_json(self) -> dict[str, Any]:
        """All but the map, which is a NIfTI file of its own."""
        return {
            "method": self.method,
            "target": self.target,
            "unit": self.unit,
            "answer": self.answer,
            "quantity": self.quantity,
            "is_signed": self.is_signed,
            "map": {
                "minimum": float(self.values.min()),
                "maximum": float(self.values.max()),
                "sum": float(self.values.sum(dtype=np.float64)),
                "sum_of_magnitudes": float(np.abs(self.values).sum(dtype=np.float64)),
                "num_nonzero": int(np.count_nonzero(self.values)),
            },
            **self.facts,
            "slices": {
                "position_mm": self.position_mm.tolist(),
                "sum": self.patches.sum(axis=(1, 2)).tolist(),
                "sum_of_magnitudes": np.abs(self.patches).sum(axis=(1, 2)).tolist(),
            },
        }


def explain_measure(
    model: SliceMeasureModel,
    scan: Scan,
    *,
    method: str = "grad_x_token",
    sex: str | None = None,
    reference: TokenReference | None = None,
    num_steps: int = NUM_STEPS,
) -> MeasureExplanation:
    """What the number told of one scan rests on.

    Args:
        model: The model.
        scan: The scan, prepared as those of the training were; the map lies on its canonical grid.
        method: A key of `MEASURE_METHODS`.
        sex: `M` or `F` where it is known; it moves the stated answer and no map.
        reference: For `integrated_tokens`: other people, by the same model.
        num_steps: For `integrated_tokens`: nodes of the path.

    Raises:
        ExplainError: an unknown method, an encoder without tokens, or a reference that is missing.
        ScanError: a time series.
        ModelError: a volume in which nothing stands out.
    """
    if method not in MEASURE_METHODS:
        expected = f"one of {', '.join(MEASURE_METHODS)}"
        raise ExplainError("this model tells a measure from slices, by tokens", given=method, expected=expected)
    stack = cut_pictures(model, scan)
    target, config = model.targets[0], model.module.config.slices
    if method == "integrated_tokens":
        answer, patches, facts = _by_path(model, stack, sex, reference, num_steps)
    else:
        answer, patches, facts = _METHODS[method](model, stack, sex)
    adds_up = method in ADDING_UP
    values = (deal_out if adds_up else paint)(patches, stack.box, scan.grid_shape, config)
    if adds_up:
        facts |= {"map_completeness_error": compare_sums(values, patches)}
    facts |= {"mirror": _tell_mirror(model, method)}
    return MeasureExplanation(
        method=method,
        target=model.explained,
        unit=target.unit,
        answer=answer,
        quantity=name_quantity(method, target.unit),
        is_signed=method in SIGNED,
        values=values.astype(np.float32),
        patches=patches,
        position_mm=slice_positions_mm(scan.grid_shape, scan.affine, config, stack.place.cpu().double().numpy()),
        facts=facts,
    )


def compare_sums(values: Float[np.ndarray, "x y z"], patches: Float[np.ndarray, "slice row column"]) -> float:
    """How far a file's sum is from the patches', relative to the patches' magnitudes."""
    scale = float(np.abs(patches).sum())
    return abs(float(values.astype(np.float32).sum(dtype=np.float64)) - float(patches.sum())) / scale if scale else 0.0


def name_quantity(method: str, unit: str) -> str:
    """What a value of a map is, in words, with the unit where it has that of the answer."""
    return MEASURE_METHODS[method] + (f" ({unit})" if unit and method in SIGNED else "")


_Found = tuple[float | None, np.ndarray, dict[str, Any]]


def _by_gradient(model: SliceMeasureModel, stack: ResampledStack, sex: str | None) -> _Found:
    found = multiply_tokens(model, stack.images, sex=sex)
    meaning = "the map of slice vectors times the gradient of the answer"
    return found.value, found.patches, _tell_sums(found, meaning)


def _by_path(
    model: SliceMeasureModel,
    stack: ResampledStack,
    sex: str | None,
    reference: TokenReference | None,
    num_steps: int,
) -> _Found:
    if reference is None:
        raise ExplainError("a difference needs somebody to differ from", given="no reference", fix="--against 8")
    found = integrate_tokens(model, stack.images, reference, num_steps=num_steps, sex=sex)
    meaning = f"the answer less that for the mean of {reference.num_people} people"
    facts = {"num_steps": num_steps, "reference_people": reference.num_people} | _tell_sums(found, meaning)
    return found.value, found.patches, facts | {"reference_answer": found.value - found.expected_sum}


def _tell_sums(found: TokenEffects, meaning: str) -> dict[str, Any]:
    prefix = float(found.prefix.sum())
    share = float(np.abs(found.prefix).sum()) / found.magnitude if found.magnitude else 0.0
    return {
        "sum_of_tokens": found.total,
        "expected_sum": found.expected_sum,
        "expected_sum_meaning": meaning,
        "completeness_error": found.completeness_error,
        "completeness_error_of_sum": found.completeness_error_of_sum,
        "prefix_tokens": {"sum": prefix, "magnitude_fraction": share},
        "map_sums_to": "expected_sum less that of prefix_tokens, which lie nowhere in the picture",
    }


def _by_rollout(model: SliceMeasureModel, stack: ResampledStack, sex: str | None) -> _Found:
    del sex
    patches, prefix = roll_out_patches(model, stack.images)
    total = float(patches.sum() + prefix.sum())
    facts = {
        "completeness_error": abs(total - 1),
        "prefix_tokens": {"sum": float(prefix.sum())},
        "map_sums_to": "1 less prefix_tokens, which lie nowhere in the picture",
    }
    return None, patches, facts


def _as_released(model: SliceMeasureModel, stack: ResampledStack, sex: str | None) -> _Found:
    del sex
    told = "scores within a slice; neither signs nor sums mean anything, see docs/explain.md"
    return None, fuse_as_released(model, stack.images), {"caution": told}


_METHODS = {"grad_x_token": _by_gradient, "rollout": _by_rollout, "paper_fused": _as_released}


def _tell_mirror(model: SliceMeasureModel, method: str) -> str:
    if method != "rollout" and model.module.config.mirror:
        return "the answer is the mean over the map and its mirror image, and so is its gradient"
    return "not mirrored"

"""explain: model and scan to a map in scan space, by one of four methods, with checks of whether to believe it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.slice_model import SliceModel, SliceView
from neuroray.platform.explain.attention import map_attention, map_occlusion, map_patch_attention
from neuroray.platform.explain.faithfulness import (
    Deletion,
    correlate_maps,
    delete_slices,
    leave_out_each,
    scramble,
)
from neuroray.platform.explain.maps import ExplainError, Explanation, SliceProfile
from neuroray.platform.explain.saliency import multiply_gradient
from neuroray.platform.models.layers.slices import AXES, slice_positions_mm
from neuroray.storage.scan import Scan

METHODS = {
    "attention": "attention of the slice per mm",
    "attention_patch": "attention of slice and patch per cm³",
    "gradient_x_input": "log-odds added by the voxel, to first order",
    "occlusion": "probability lost without the slice",
}
"""Each method, and what a value of its map is."""

_SIGNED, _SLICEWISE = ("gradient_x_input", "occlusion"), ("attention", "occlusion")


def explain(
    model: SliceModel,
    scan: Scan,
    *,
    method: str = "attention",
    target: str | None = None,
    view: SliceView | None = None,
) -> Explanation:
    """What the answer for one scan rests on.

    Args:
        model: The model.
        scan: The scan; the map lies on its canonical grid.
        method: A key of `METHODS`.
        target: The class whose probability is explained; the likeliest one when left out.
        view: What `model.encode(scan)` gave, where it is at hand, to save encoding once more.

    Raises:
        ExplainError: an unknown method or class, or a backbone without what the method reads.
        ScanError: a time series.
    """
    if method not in METHODS:
        raise ExplainError("an unknown method", given=method, expected=f"one of {', '.join(METHODS)}")
    view = model.encode(scan) if view is None else view
    answer = model.answer(view)
    chosen = choose_target(model, answer.probabilities, target)
    profile = profile_slices(model, scan, view, chosen)
    values, facts = _make_map(model, scan, view, profile, method=method, target=chosen)
    return Explanation(
        method=method,
        target=model.classes[chosen],
        classes=model.classes,
        probabilities=answer.probabilities,
        values=values,
        quantity=METHODS[method],
        is_signed=method in _SIGNED,
        is_slicewise=method in _SLICEWISE,
        profile=profile,
        facts=facts,
    )


def choose_target(model: SliceModel, probabilities: Float[np.ndarray, " class"], target: str | None) -> int:
    """Index of the named class, or of the likeliest.

    Raises:
        ExplainError: the model has no such class.
    """
    if target is None:
        return int(np.argmax(probabilities))
    if target not in model.classes:
        raise ExplainError("the model has no such class", given=target, expected=f"one of {', '.join(model.classes)}")
    return model.classes.index(target)


def profile_slices(model: SliceModel, scan: Scan, view: SliceView, target: int) -> SliceProfile:
    """Attention of each slice, and what its absence changes."""
    shown = view.mask.cpu().numpy()
    index = view.slice_index.cpu().numpy()[shown]
    weight = model.answer(view).slice_weights.detach().double().cpu().numpy()[shown]
    return SliceProfile(
        axis=model.slices.axis,
        spacing_mm=scan.zooms_mm[AXES[model.slices.axis]],
        slice_index=index,
        position_mm=slice_positions_mm(scan.grid_shape, scan.affine, model.slices, index),
        weight=weight,
        probability_change=leave_out_each(model, view, target),
    )


def check_map(
    model: SliceModel, scan: Scan, explanation: Explanation, *, seed: int, view: SliceView | None = None
) -> tuple[Deletion, dict[str, Any]]:
    """Whether the map follows what the model computes: slices deleted in its order, its weights scrambled.

    Args:
        model: The model.
        scan: The scan.
        explanation: What `explain` gave for them.
        seed: Of random orders and scrambles.
        view: As for `explain`.

    Returns:
        The deletion curves, and both checks ready for JSON. A map that hardly changes when the weights below it are
        scrambled (a correlation near 1) tells of the scan, not of the model (Adebayo et al. 2018).
    """
    view = model.encode(scan) if view is None else view
    target = explanation.target_index
    deletion = delete_slices(model, view, slice_importance(explanation), target, seed=seed)
    scrambled = {}
    for part in ("head", "encoder"):
        other = scramble(model, part, seed=seed)
        kept = view if part == "head" else None
        again = explain(other, scan, method=explanation.method, target=explanation.target, view=kept)
        scrambled[part] = correlate_maps(explanation.values, again.values)
    described = {"seed": seed, "deletion": deletion.to_json(), "map_correlation_after_scrambling": scrambled}
    return deletion, described


def slice_importance(explanation: Explanation) -> Float[np.ndarray, " slice"]:
    """The map's sum over each slice that the model looked at: the order in which the deletion check takes them."""
    axis = AXES[explanation.profile.axis]
    in_plane = tuple(other for other in range(3) if other != axis)
    return explanation.values.sum(axis=in_plane, dtype=np.float64)[explanation.profile.slice_index]


def _make_map(
    model: SliceModel, scan: Scan, view: SliceView, profile: SliceProfile, *, method: str, target: int
) -> tuple[Float[np.ndarray, "x y z"], dict[str, Any]]:
    if method == "gradient_x_input":
        found = multiply_gradient(model, scan, view, target)
        facts = {"sum_of_pixels": found.sum_of_pixels, "completeness_error": found.completeness_error}
        return found.values, facts
    if method == "attention_patch":
        return map_patch_attention(model, scan, profile), {}
    simple: dict[str, Callable[[Scan, SliceProfile], np.ndarray]] = {
        "attention": map_attention,
        "occlusion": map_occlusion,
    }
    return simple[method](scan, profile), {}

"""The map beside an answer: what it rests on, on the grid of the scan, over its anatomy, with how exact it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.slice_model import SliceModel
from neuroray.platform.evaluate.style import to_png
from neuroray.platform.evaluate.window_model import WindowModel
from neuroray.platform.explain.explanation import explain
from neuroray.platform.explain.integrated import IntegratedConfig
from neuroray.platform.explain.measure_figures import draw_measure_map
from neuroray.platform.explain.measure_maps import explain_measure
from neuroray.platform.explain.overlay import BACKDROP, draw_overlay
from neuroray.platform.explain.run_overlay import average_frames, draw_run_map
from neuroray.platform.explain.runs import share_by_network
from neuroray.platform.explain.window_answers import explain_prepared
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.scan import Scan

NUM_STEPS = 8
"""Nodes of the path of Integrated Gradients: fewer than `neuroray explain` takes, and the error is stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMap:
    """A map of what an answer rests on.

    Attributes:
        values: On the grid of `grid`.
        grid: The volume that the map lies over, as the profile has prepared it; of a run its mean image.
        png: The map over it, without a face.
        facts: Method, target, and how exact it is, ready for JSON.
    """

    values: Float[np.ndarray, "x y z"]
    grid: Scan
    png: bytes
    facts: dict[str, Any]


def map_run(model: WindowModel, prepared: Prepared, *, num_steps: int = NUM_STEPS) -> AnswerMap:
    """Integrated Gradients of the main target (its likeliest class) against the mean frame of each window.

    Raises:
        ScanError: a run without spread.
        ExplainError: gradients that are no numbers.
    """
    found = explain_prepared(model, prepared, IntegratedConfig(num_steps=num_steps))
    anatomy = average_frames(prepared.scan)
    networks = share_by_network(found, anatomy.affine)
    kept = ("method", "target", "reference", "reference_meaning", "num_steps", "num_windows", "map")
    described = {name: value for name, value in found.to_json().items() if name in kept}
    described |= {
        "completeness_error": max(found.completeness_errors),
        "completeness_error_meaning": "how far the map's sum is from the change of the score, of its magnitudes; the "
        "largest of the windows",
        "networks": [dataclasses.asdict(share) for share in networks],
        "networks_space_assumed": "MNI152, by the affine",
    }
    png = to_png(draw_run_map(anatomy, found), background=BACKDROP)
    return AnswerMap(values=found.values, grid=anatomy, png=png, facts=described)


def map_slices(model: SliceModel, scan: Scan) -> AnswerMap:
    """Slice attention of the likeliest class, over the scan as its profile has prepared it."""
    found = explain(model, scan, method="attention")
    described = {"method": found.method, "target": found.target, "quantity": found.quantity}
    png = to_png(draw_overlay(scan, found), background=BACKDROP)
    return AnswerMap(values=found.values, grid=scan, png=png, facts=described)


def map_measure(model: SliceMeasureModel, scan: Scan) -> AnswerMap:
    """Gradient times token of the answer, over the scan as its profile has prepared it.

    Raises:
        ExplainError: an encoder without tokens.
        ModelError: a volume in which nothing stands out.
    """
    found = explain_measure(model, scan, method="grad_x_token")
    left_out = ("slices", "answer")
    described = {name: value for name, value in found.to_json().items() if name not in left_out}
    png = to_png(draw_measure_map(scan, found), background=BACKDROP)
    return AnswerMap(values=found.values, grid=scan, png=png, facts=described)

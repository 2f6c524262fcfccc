"""Integrated Gradients over a 4D window: what each voxel of each frame adds to an output (Sundararajan et al. 2017)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuroray.config import Config
from neuroray.platform.explain.maps import ExplainError

Reference = Literal["background", "mean_frame", "zeros"]
REFERENCES: dict[Reference, str] = {
    "background": "a window of background: every voxel as outside the brain",
    "mean_frame": "the window's mean frame, held: anatomy without any fluctuation",
    "zeros": "every voxel at z = 0, background included: the mean of the brain, or of each voxel",
}
"""What a window is compared with, in words."""

Score = Callable[[Float[Tensor, "batch output"]], Float[Tensor, " batch"]]
"""The number that is explained, from a model's outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegratedConfig(Config):
    """How gradients are integrated.

    Attributes:
        reference: Where the path to the window begins; the map says what changed since. `mean_frame` leaves out
            anatomy, for head size and brightness are the same at both ends.
        num_steps: Gauss-Legendre nodes on the path; each costs one forward and one backward pass of one window.
    """

    reference: Reference = "mean_frame"
    num_steps: int = 32

    def __post_init__(self) -> None:
        if self.reference not in get_args(Reference):
            raise ExplainError("an unknown reference", given=self.reference, expected=", ".join(REFERENCES))
        if self.num_steps < 1:
            raise ExplainError("a path needs a node", given=self.num_steps, expected="num_steps of 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """What each voxel of each frame of a window added.

    Attributes:
        values: Signed; they sum to `score - reference_score` up to the completeness error.
        score: The model's, for the window.
        reference_score: The model's, where the path begins.
    """

    values: Float[np.ndarray, "time x y z"]
    score: float
    reference_score: float

    @property
    def completeness_error(self) -> float:
        """How far the sum is from the change of the score, relative to the sum of magnitudes."""
        scale = float(np.abs(self.values).sum(dtype=np.float64))
        return self._missed / scale if scale else 0.0

    @property
    def completeness_error_of_change(self) -> float:
        """The same relative to the change itself: the stricter, where much cancels; infinite where nothing changed."""
        change = abs(self.score - self.reference_score)
        return self._missed / change if change else (float("inf") if self._missed else 0.0)

    @property
    def _missed(self) -> float:
        return abs(float(self.values.sum(dtype=np.float64)) - (self.score - self.reference_score))


def attribute_window(
    module: nn.Module,
    voxels: Float[Tensor, "time x y z"],
    config: IntegratedConfig,
    *,
    score: Score,
    frame_mask: Bool[Tensor, " time"] | None = None,
    background: float | None = None,
) -> Attribution:
    """Integrated Gradients by captum, one node of the path at a time: the memory is that of a training step of one.

    Args:
        module: From `batch time x y z` to something with `outputs`; taken in eval mode, left as it was.
        voxels: A standardised window on the module's device.
        config: Reference and steps.
        score: Which number of the outputs is explained.
        frame_mask: False for padding, which is background at both ends and gets nothing.
        background: The score of what is no brain; None: the window's lowest.

    Raises:
        ExplainError: a window without a frame, or gradients that are no numbers.
    """
    from captum.attr import IntegratedGradients

    if voxels.ndim != 4 or 0 in voxels.shape:
        raise ExplainError("only a window of frames is explained", given=tuple(voxels.shape), expected="time x y z")
    reference = make_reference(voxels, config.reference, frame_mask, background=background)

    def forward(window: Tensor) -> Tensor:
        return score(module(window).outputs)

    with _evaluating(module), warnings.catch_warnings():
        # One node at a time is meant.
        warnings.filterwarnings("ignore", message="Internal batch size cannot be less")
        found: Any = IntegratedGradients(forward, multiply_by_inputs=True).attribute(
            voxels[None],
            baselines=reference[None],
            n_steps=config.num_steps,
            method="gausslegendre",
            internal_batch_size=1,
        )
        with torch.no_grad():
            ends = [float(forward(window[None])) for window in (voxels, reference)]
    values = found[0].detach().float().cpu().numpy()
    if not np.isfinite(values).all():
        raise ExplainError(
            "the gradients are not all numbers", given=f"{int((~np.isfinite(values)).sum())} of {values.size} voxels"
        )
    return Attribution(values=values, score=ends[0], reference_score=ends[1])


def make_reference(
    voxels: Float[Tensor, "time x y z"],
    kind: Reference,
    frame_mask: Bool[Tensor, " time"] | None = None,
    *,
    background: float | None = None,
) -> Float[Tensor, "time x y z"]:
    """Where the path to a window begins; padded frames stay as they are."""
    shown = torch.ones(len(voxels), dtype=torch.bool) if frame_mask is None else frame_mask.cpu()
    reference = voxels.clone()
    if kind == "mean_frame":
        reference[shown] = voxels[shown].mean(dim=0)
    else:
        blank = float(voxels.min()) if background is None else background
        reference[shown] = blank if kind == "background" else 0.0
    return reference


def output_score(index: int) -> Score:
    """One output as it is: a standardised measure, or the logit of a binary target."""

    def take(outputs: Tensor) -> Tensor:
        return outputs[:, index]

    return take


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode, and no gradients kept for weights: only the window asks for one."""
    was_training = module.training
    asked = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        module.train(was_training)
        for parameter in asked:
            parameter.requires_grad_(True)

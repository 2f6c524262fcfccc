"""What tokens add against those of typical heads: Integrated Gradients from the mean map of some people to this one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.token_maps import (
    TokenEffects,
    cut_pictures,
    differentiate_answer,
    encode_pictures,
    multiply,
)
from neuroray.storage.scan import Scan

NUM_STEPS = 128
"""Nodes of the path: they go through the head alone, and its maximum has kinks that a few would step over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReference:
    """A head that is nobody's: the mean of some people's tokens, place by place.

    Attributes:
        tokens: Float64.
        num_people: Of whom.
    """

    tokens: Float[Tensor, "slice token channel"]
    num_people: int


def average_tokens(model: SliceMeasureModel, scans: Iterable[Scan]) -> TokenReference:
    """The mean of each token over scans; one scan's tokens are in memory at a time.

    Every scan is cut to the box of its head, so that the same patch lies at about the same place of every head.

    Raises:
        ExplainError: no scan, or an encoder whose vectors are no mean of tokens.
        ScanError: a time series.
        ModelError: a volume in which nothing stands out.
    """
    total, number = None, 0
    for scan in scans:
        tokens = encode_pictures(model, cut_pictures(model, scan).images).double()
        total = tokens if total is None else total + tokens
        number += 1
    if total is None:
        raise ExplainError("a reference is the mean of people", given="none", fix="--against 8, or another number")
    return TokenReference(tokens=total / number, num_people=number)


def integrate_tokens(
    model: SliceMeasureModel,
    images: Float[Tensor, "slice 3 height width"],
    reference: TokenReference,
    *,
    num_steps: int = NUM_STEPS,
    sex: str | None = None,
) -> TokenEffects:
    """What each token adds to the difference between this answer and that for the reference, signed.

    Integrated Gradients (Sundararajan et al. 2017) of the head, along the straight path from the reference's map of
    vectors to the scan's: with the gradient averaged over that path, ((t - t_reference) . gradient) / T sums to the
    difference of the two answers. Only the head is gone through at each node (Gauss-Legendre), the encoder once.

    Args:
        model: The model.
        images: As `cut_pictures` gives them.
        reference: By the same model.
        num_steps: Nodes. The sum misses the difference by what they leave, most of it at the kinks of the maximum.
        sex: `M`, `F` or neither; it moves both answers alike.

    Raises:
        ExplainError: an encoder whose vectors are no mean of tokens, a reference by another one, or no steps.
    """
    if num_steps < 1:
        raise ExplainError("a path needs nodes", given=f"num_steps {num_steps}", expected="at least 1")
    encoder: Any = model.module.encoder
    tokens = encode_pictures(model, images)
    if tokens.shape != reference.tokens.shape:
        given, expected = tuple(reference.tokens.shape), tuple(tokens.shape)
        raise ExplainError("the reference is of another encoder", given=given, expected=expected)
    features = encoder.read_out(tokens).double()
    start = encoder.read_out(reference.tokens)
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)
    gradient = torch.zeros_like(features)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        place = (start + node * (features - start)).float()
        gradient += weight * differentiate_answer(model, place, sex=sex)[1].double()
    value, _ = differentiate_answer(model, features.float(), sex=sex)
    before, _ = differentiate_answer(model, start.float(), sex=sex)
    return multiply(encoder, tokens.double() - reference.tokens, gradient, expected_sum=value - before, value=value)

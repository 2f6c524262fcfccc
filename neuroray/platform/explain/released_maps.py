"""BrainRotViT's released saliency, kept for comparison with the paper; `grad_x_token` is the map to trust."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.token_maps import differentiate_answer
from neuroray.platform.models.errors import ModelError

_LEAST_GREY = 0.05
_CONTRAST = 99.0


def fuse_as_released(
    model: SliceMeasureModel, images: Float[Tensor, "slice 3 height width"]
) -> Float[np.ndarray, "slice row column"]:
    """The authors' fused score of each patch, 0 to 1 within each slice.

    Guided backpropagation of the answer to the map of vectors, scaled to 0..1 and stretched by a logarithm; per slice
    the patch tokens times its row; times the class token's attention in the last block; times how much of the patch is
    brain. Each factor is scaled to 0..1 within the slice.

    It is a picture and no measure. What is wrong with it, and kept:

    - The gradient has a sign, and scaling it from its least value makes "no effect" a middle grey, which the logarithm
      lifts further: a slice that lowers the age looks like one that does nothing, and both look important.
    - Guided backpropagation puts the rule for ReLU on SiLU (gradients below 0, and all where the output is below 0, are
      dropped), and hardly depends on the weights it goes through (Adebayo et al. 2018).
    - Scaling within each slice makes all slices look alike, so that slices cannot be compared.
    - Attention and tokens come from the encoder, which the age head has not moved: the fused map barely depends on it,
      which the check by scrambled weights shows.
    - A token times a gradient that was scaled and stretched adds up to nothing.

    What was wrong and is not kept: the brain was found at grey above 0.05 of pictures already scaled to -1..1, that is
    above 0.525, which drops darker tissue; here it is 0.05 of 0..1. The affine was thrown away; here the map lies on
    the scan's grid.

    Raises:
        ExplainError: an encoder without a class token that attends to patches, or whose vectors are no mean of tokens.
    """
    encoder: Any = model.module.encoder
    if encoder.config.readout != "mean":
        raise _needs_class_token(f'readout "{encoder.config.readout}"')
    try:
        attention = encoder.attention_maps(images).double()
    except ModelError as error:
        raise _needs_class_token(error.fault) from error
    tokens = encoder.encode_tokens(images)
    saliency = _stretch(_guide_gradient(model, encoder.read_out(tokens)))
    patches = tokens[:, encoder.num_prefix_tokens :].double()
    scores = torch.einsum("stc,sc->st", patches, saliency).unflatten(1, encoder.grid)
    brain = functional.adaptive_avg_pool2d((images[:, :1] > _LEAST_GREY).double(), encoder.grid)[:, 0]
    return _scale(_scale(scores) * _scale(attention) * brain).cpu().numpy()


def _guide_gradient(
    model: SliceMeasureModel, features: Float[Tensor, "slice channel"]
) -> Float[Tensor, "slice channel"]:
    with _GuidedBackpropagation():
        return differentiate_answer(model, features, sex=None)[1].double()


def _stretch(gradient: Float[Tensor, "slice channel"]) -> Float[Tensor, "slice channel"]:
    """Least to greatest over the whole map to 0..1, and a logarithm that lifts the middle."""
    least, greatest = gradient.min(), gradient.max()
    unit = (gradient - least) / (greatest - least) if greatest > least else torch.zeros_like(gradient)
    return torch.log1p(_CONTRAST * unit) / np.log1p(_CONTRAST)


def _scale(maps: Float[Tensor, "slice row column"]) -> Float[Tensor, "slice row column"]:
    """Least to greatest of each slice to 0..1; a constant slice is 0."""
    least, greatest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(greatest > least, (maps - least) / (greatest - least), 0.0)


class _GuidedSilu(torch.autograd.Function):
    """SiLU whose gradient is passed where both it and the output are above 0: the rule for ReLU."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        output = functional.silu(inputs)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradients[0].clamp_min(0) * (output > 0)


class _GuidedBackpropagation(TorchFunctionMode):
    """Within it every SiLU goes back by the guided rule, whatever module calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is functional.silu:
            return _GuidedSilu.apply(args[0])
        return func(*args, **(kwargs or {}))


def _needs_class_token(given: str) -> ExplainError:
    return ExplainError(
        "the released maps need a class token that attends to patches, and vectors that are a mean of tokens",
        given=given,
        expected='a vision transformer with readout "mean"',
        fix="use --method grad_x_token",
    )

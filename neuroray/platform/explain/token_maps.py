"""What each patch of each slice adds to a number told from the map of slice vectors: gradient times token, rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.slice_model import require_volume
from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.models.brainrotvit import encode_sex
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.layers.resampled_slices import ResampledStack, resample_slices
from neuroray.storage.scan import Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEffects:
    """What tokens add, in the unit of the number.

    Attributes:
        patches: Of the patches, on their grid.
        prefix: Of the class token and registers of each slice, which lie nowhere in the picture.
        expected_sum: What all of them must add up to.
        value: The number itself, as the model answers.
    """

    patches: Float[np.ndarray, "slice row column"]
    prefix: Float[np.ndarray, " slice"]
    expected_sum: float
    value: float

    @property
    def total(self) -> float:
        """Sum over all tokens."""
        return float(self.patches.sum() + self.prefix.sum())

    @property
    def magnitude(self) -> float:
        """Sum of magnitudes over all tokens."""
        return float(np.abs(self.patches).sum() + np.abs(self.prefix).sum())

    @property
    def completeness_error(self) -> float:
        """How far the tokens' sum is from what it must be, relative to the sum of magnitudes."""
        return _relative(self.total - self.expected_sum, self.magnitude)

    @property
    def completeness_error_of_sum(self) -> float:
        """The same, relative to the sum itself: stricter where much cancels."""
        return _relative(self.total - self.expected_sum, self.expected_sum)


def cut_pictures(model: SliceMeasureModel, scan: Scan) -> ResampledStack:
    """The scan as the encoder sees it, and where in the scan that lies.

    Raises:
        ScanError: a time series.
        ModelError: a volume in which nothing stands out.
    """
    require_volume(scan)
    voxels = torch.tensor(np.asarray(scan.voxels, dtype=np.float32), device=model.device)
    return resample_slices(voxels, model.module.config.slices)


def multiply_tokens(
    model: SliceMeasureModel, images: Float[Tensor, "slice 3 height width"], *, sex: str | None = None
) -> TokenEffects:
    """Gradient times token: what each token adds to the answer, to first order, signed and in the answer's unit.

    A slice's vector e is the mean of its T last tokens, so the first-order effect of token t on the answer is
    (t . dA/de) / T, and over all tokens of all slices these sum to e . dA/de exactly. dA/de goes back through the whole
    head: residual blocks, layers, the sorted quantiles (the median is explained), and both sides of a head that
    answers with the mean over the map and its mirror image.

    Args:
        model: The model.
        images: As `cut_pictures` gives them.
        sex: `M`, `F` or neither; it joins at the last, linear layer, so it moves the answer and not the map.

    Raises:
        ExplainError: an encoder whose vectors are no mean of tokens that lie in the picture.
    """
    encoder: Any = model.module.encoder
    tokens = encode_pictures(model, images)
    features = encoder.read_out(tokens)
    value, gradient = differentiate_answer(model, features, sex=sex)
    expected = float((features.double() * gradient.double()).sum())
    return multiply(encoder, tokens, gradient, expected_sum=expected, value=value)


def encode_pictures(
    model: SliceMeasureModel, images: Float[Tensor, "slice 3 height width"]
) -> Float[Tensor, "slice token channel"]:
    """All tokens of the pictures.

    Raises:
        ExplainError: an encoder whose vectors are no mean of tokens that lie in the picture.
    """
    encoder: Any = model.module.encoder
    if encoder.config.readout not in ("mean", "grid"):
        raise _no_tokens(f'readout "{encoder.config.readout}"')
    try:
        return encoder.encode_tokens(images)
    except ModelError as error:
        raise _no_tokens(error.fault) from error


def multiply(
    encoder: Any,
    tokens: Float[Tensor, "slice token channel"],
    gradient: Float[Tensor, "slice vector"],
    *,
    expected_sum: float,
    value: float,
) -> TokenEffects:
    """Tokens, or their differences, times the gradient of what the readout makes of them."""
    prefix, grid = encoder.num_prefix_tokens, encoder.grid
    if encoder.config.readout == "mean":
        effects = torch.einsum("stc,sc->st", tokens.double(), gradient.double()) / tokens.shape[1]
    else:
        # Each patch has a stretch of the vector to itself, and the prefix has none.
        own = gradient.double().unflatten(1, (grid[0] * grid[1], -1))
        effects = torch.zeros(tokens.shape[:2], dtype=torch.float64, device=tokens.device)
        effects[:, prefix:] = (tokens[:, prefix:].double() * own).sum(-1)
    return TokenEffects(
        patches=effects[:, prefix:].unflatten(1, grid).cpu().numpy(),
        prefix=effects[:, :prefix].sum(1).cpu().numpy(),
        expected_sum=expected_sum,
        value=value,
    )


def differentiate_answer(
    model: SliceMeasureModel, features: Float[Tensor, "slice channel"], *, sex: str | None
) -> tuple[float, Float[Tensor, "slice channel"]]:
    """The answer for a map, and its gradient with respect to the map, as `SliceMeasureModel.answer` states it.

    Raises:
        ExplainError: the gradient is no number.
    """
    known = torch.tensor([encode_sex(sex)], device=model.device)
    moving = features.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        outputs = model.module.head(moving[None], known).outputs[0]
        answer = model.pick_explained(outputs)
        (gradient,) = torch.autograd.grad(answer, moving)
    if not torch.isfinite(gradient).all():
        raise ExplainError("the gradient of the answer is no number everywhere", given=f"answer {answer.item():g}")
    return answer.item(), gradient


def roll_out_patches(
    model: SliceMeasureModel, images: Float[Tensor, "slice 3 height width"]
) -> tuple[Float[np.ndarray, "slice row column"], Float[np.ndarray, " slice"]]:
    """Attention rollout of the encoder: the share of each patch in its slice's vector, and that of the prefix.

    Every slice counts alike, so patches and prefix together sum to 1 over all slices. It tells where the encoder's
    vectors come from, and nothing of what the head makes of them; LayerScale and MLPs do not enter.

    Raises:
        ExplainError: an encoder without attention that can be seen.
    """
    encoder: Any = model.module.encoder
    try:
        shares = encoder.roll_out_tokens(images).cpu().numpy() / len(images)
    except ModelError as error:
        raise _no_tokens(error.fault) from error
    prefix = encoder.num_prefix_tokens
    return shares[:, prefix:].reshape(len(images), *encoder.grid), shares[:, :prefix].sum(axis=1)


def _no_tokens(given: str) -> ExplainError:
    return ExplainError(
        "maps by tokens need an encoder whose vectors are a mean over patches",
        given=given,
        expected='a vision transformer with readout "mean" or "grid"',
        fix="train on features of such an encoder: neuroray extract, then neuroray train",
    )


def _relative(difference: float, scale: float) -> float:
    return abs(difference) / abs(scale) if scale else float(difference != 0)

"""Gradient times input: what each voxel adds to the target's log-odds, to first order, through encoder and head."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuroray.platform.evaluate.slice_model import SliceModel, SliceView
from neuroray.platform.models.layers.slices import AXES, SliceStackConfig, stack_slices
from neuroray.storage.scan import Scan

# An epsilon this far above the grey range (here 1) makes the scaling a constant, so that only the resize is
# differentiated: what the least and greatest voxel would add as "the scale" is below one part in a million.
_FLAT_EPSILON = 1e6
# The way back through a ViT-S at 224 pixels keeps about 70 MB for each picture.
_MOST_PICTURES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Saliency:
    """The map and its check.

    Attributes:
        values: Per voxel, what it adds to the target's log-odds against being black; 0 where no picture looked.
        sum_of_pixels: The same sum taken in the encoder's pictures.
    """

    values: Float[np.ndarray, "x y z"]
    sum_of_pixels: float

    @property
    def completeness_error(self) -> float:
        """How far the voxels' sum is from the pixels', relative to the sum of magnitudes."""
        scale = float(np.abs(self.values).sum(dtype=np.float64))
        return abs(float(self.values.sum(dtype=np.float64)) - self.sum_of_pixels) / scale if scale else 0.0


def multiply_gradient(model: SliceModel, scan: Scan, view: SliceView, target: int) -> Saliency:
    """Gradient of the target's log-odds times grey value, signed, on the voxels themselves.

    The chain is cut at the slice vectors and at the pictures, so that memory holds one batch of slices: head, then
    encoder, then the resize, whose transpose carries each pixel's share back to the voxels it was drawn from. The scale
    of a slice (its least and greatest value) and the rounding to 8 bits are taken as constants.

    Args:
        model: The model.
        scan: The scan.
        view: The scan as `model.encode` gives it.
        target: Class index.
    """
    volume = model.volume(scan)
    images, mask, _ = stack_slices(volume, model.slices, spacing_mm=scan.zooms_mm)
    direction = _differentiate_head(model, view, target)[mask]
    gradient = _differentiate_encoder(model, images[mask], direction)
    grey = _scale_volume(volume, model.slices)
    on_voxels = _carry_back(grey, _unmask(gradient, mask), model.slices, scan)
    values = (on_voxels * grey).cpu().numpy().astype(np.float32)
    return Saliency(values=values, sum_of_pixels=float((gradient * images[mask, 0]).double().sum()))


def log_odds(logits: Float[Tensor, "batch class"], target: int) -> Float[Tensor, " batch"]:
    """log(p / (1 - p)) of a class, exact also where p is 1 within rounding."""
    others = [index for index in range(logits.shape[-1]) if index != target]
    return logits[..., target] - torch.logsumexp(logits[..., others], dim=-1)


def _differentiate_head(model: SliceModel, view: SliceView, target: int) -> Float[Tensor, "slice channel"]:
    features = view.features.detach().clone().requires_grad_(True)
    answer = model.answer(SliceView(features=features, mask=view.mask, slice_index=view.slice_index))
    (gradient,) = torch.autograd.grad(log_odds(answer.logits[None], target).sum(), features)
    return gradient


def _differentiate_encoder(
    model: SliceModel, images: Float[Tensor, "slice 3 height width"], direction: Float[Tensor, "slice channel"]
) -> Float[Tensor, "slice height width"]:
    """Gradient with respect to the grey pictures, the three equal channels summed."""
    encoder: Any = model.module.encoder
    size = min(encoder.config.batch_size, _MOST_PICTURES)
    parts = []
    for batch, along in zip(images.split(size), direction.split(size), strict=True):
        pixels = batch.detach().clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad((encoder.encode(pixels) * along).sum(), pixels)
        parts.append(gradient.sum(dim=1))
    return torch.cat(parts)


def _scale_volume(volume: Float[Tensor, "x y z"], config: SliceStackConfig) -> Float[Tensor, "x y z"]:
    """Grey values in 0..1 as the pictures show them, before resizing; 0 where a value is no number."""
    usable = torch.isfinite(volume)
    axes = (
        tuple(axis for axis in range(3) if axis != AXES[config.axis]) if config.normalisation == "slice" else (0, 1, 2)
    )
    low = torch.where(usable, volume, torch.inf).amin(axes, keepdim=True)
    high = torch.where(usable, volume, -torch.inf).amax(axes, keepdim=True)
    grey = (volume - low) / (high - low + config.epsilon)
    return torch.where(usable & torch.isfinite(grey), grey, 0.0)


def _carry_back(
    grey: Float[Tensor, "x y z"], gradient: Float[Tensor, "slice row column"], config: SliceStackConfig, scan: Scan
) -> Float[Tensor, "x y z"]:
    """The transpose of the resize: each pixel's gradient, dealt out to voxels by the share they had in it."""
    linear = dataclasses.replace(config, quantise=False, epsilon=_FLAT_EPSILON)
    voxels = grey.detach().clone().requires_grad_(True)
    images = stack_slices(voxels, linear, spacing_mm=scan.zooms_mm).images[:, 0]
    (carried,) = torch.autograd.grad((images * gradient).sum(), voxels)
    return carried * _FLAT_EPSILON


def _unmask(
    rows: Float[Tensor, "shown height width"], mask: Bool[Tensor, " slice"]
) -> Float[Tensor, "slice height width"]:
    whole = rows.new_zeros((len(mask), *rows.shape[1:]))
    whole[mask] = rows
    return whole

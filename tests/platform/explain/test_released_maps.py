"""The released saliency: its guided gradient by hand, its scores by a plain loop, and what it cannot do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from contracts.measure_models import build_measure_model, draw_head_scan
from torch import nn
from torch.nn import functional

from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.measure_maps import explain_measure
from neuroray.platform.explain.released_maps import fuse_as_released
from neuroray.platform.explain.token_maps import cut_pictures, differentiate_answer
from neuroray.platform.models.brainrotvit import BrainRotViTOutput
from neuroray.platform.models.layers.encoder import SliceEncoderConfig


class OneSilu(nn.Module):
    """SiLU of every place of the map, weighed."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, features, sex=None):
        return BrainRotViTOutput((functional.silu(features) * self.weights).sum((1, 2))[:, None])


def rescale(values):
    return (values - values.min()) / (values.max() - values.min()) if np.ptp(values) > 0 else np.zeros_like(values)


def test_scores_are_those_of_the_formula():
    model, scan = build_measure_model(), draw_head_scan()
    images = cut_pictures(model, scan).images
    encoder = model.module.encoder
    tokens = encoder.encode_tokens(images).numpy().astype(float)
    features = tokens.mean(axis=1)
    weights = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    model.module.head = OneSilu(torch.tensor(weights))
    # The rule of guided backpropagation, by hand: what comes back above 0, where the output is above 0.
    saliency = rescale(np.maximum(weights, 0) * (features > 0))
    saliency = np.log1p(99 * saliency) / np.log1p(99)
    attention = encoder.attention_maps(images).numpy().astype(float)
    found = fuse_as_released(model, images)
    for number in (0, 9, 19):
        scores = rescale((tokens[number, 1:] @ saliency[number]).reshape(4, 4))
        inside = (images[number, 0].numpy() > 0.05).reshape(4, 16, 4, 16).mean(axis=(1, 3))
        expected = rescale(scores * rescale(attention[number]) * inside)
        np.testing.assert_allclose(found[number], expected, atol=1e-5)  # tokens in float32


def test_the_gradient_is_the_true_one_again_afterwards():
    model, scan = build_measure_model(), draw_head_scan()
    images = cut_pictures(model, scan).images
    features = model.encode(scan)
    before = differentiate_answer(model, features, sex=None)[1]
    fuse_as_released(model, images)
    torch.testing.assert_close(differentiate_answer(model, features, sex=None)[1], before, rtol=0, atol=0)


def test_it_cannot_tell_older_from_younger_where_the_default_map_can():
    """A head turned upside down: the map by gradient turns over, the released one has no sign to turn."""
    model, scan = build_measure_model(), draw_head_scan()
    turned = build_measure_model()
    turned.module.head.answer.weight.neg_()
    first, second = (explain_measure(one, scan).values for one in (model, turned))
    np.testing.assert_allclose(first, -second, atol=1e-6 * np.abs(first).max())
    for one in (model, turned):
        found = explain_measure(one, scan, method="paper_fused")
        assert found.values.min() == 0
        assert found.values.max() <= 1 + 1e-6
        assert not found.is_signed


def test_darker_tissue_is_kept():
    model, scan = build_measure_model(), draw_head_scan()
    # A quarter as bright: far below 0.525 of the slice's greatest value, and above 0.05.
    dim = np.array(scan.voxels)
    dim[:, :20] *= 0.25
    found = explain_measure(model, dataclasses.replace(scan, voxels=dim), method="paper_fused")
    assert np.abs(found.values[:, 4:18]).max() > 0.1


def test_an_encoder_without_a_class_token_is_refused():
    for encoder in (
        SliceEncoderConfig(backbone="resnet10t", readout="pool"),
        SliceEncoderConfig(backbone="test_vit", readout="grid"),
    ):
        model = build_measure_model(encoder=encoder)
        with pytest.raises(ExplainError, match="class token"):
            explain_measure(model, draw_head_scan(), method="paper_fused")

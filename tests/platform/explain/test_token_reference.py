"""Differences from other people: they add up to the difference of the answers, and vanish where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.measure_models import CONFIG, build_measure_model, draw_head_scan
from torch import nn

from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.measure_maps import explain_measure
from neuroray.platform.explain.token_maps import cut_pictures
from neuroray.platform.explain.token_reference import TokenReference, average_tokens, integrate_tokens
from neuroray.platform.models.brainrotvit import BrainRotViTOutput
from neuroray.platform.models.layers.encoder import SliceEncoderConfig


@pytest.fixture(scope="module")
def others():
    return [draw_head_scan(seed=seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("changes", [{}, {"mirror": True}, {"quantiles": (0.05, 0.5, 0.95)}])
def test_the_map_adds_up_to_the_difference_of_two_answers(changes, others):
    model, scan = build_measure_model(**changes), draw_head_scan()
    reference = average_tokens(model, others)
    found = integrate_tokens(model, cut_pictures(model, scan).images, reference, num_steps=64)
    mean = torch.stack([model.encode(other) for other in others]).mean(0)
    difference = model.answer(model.encode(scan), "F").value - model.answer(mean, "F").value
    assert found.expected_sum == pytest.approx(difference, abs=2e-6)  # answers of about 0.1 in float32
    # What 64 nodes leave at the kinks of the head's maximum.
    assert found.completeness_error < 1e-3
    assert found.magnitude > 0
    told = explain_measure(model, scan, method="integrated_tokens", reference=reference, num_steps=64)
    told_sum = told.values.sum(dtype=float) + told.facts["prefix_tokens"]["sum"]
    assert told_sum == pytest.approx(difference, abs=1e-3 * found.magnitude)
    assert told.answer - told.facts["reference_answer"] == pytest.approx(found.expected_sum, abs=1e-9)


class LinearHead(nn.Module):
    """One direction of the vectors of every slice."""

    def __init__(self, channels):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(channels, generator=torch.Generator().manual_seed(1)))

    def forward(self, features, sex=None):
        return BrainRotViTOutput((features @ self.direction).sum(1, keepdim=True))


@pytest.mark.parametrize("readout", ["mean", "grid"])
def test_of_a_linear_head_one_step_is_exact(readout, others):
    model = build_measure_model(encoder=SliceEncoderConfig(backbone="test_vit", readout=readout))
    model.module.head = LinearHead(model.module.config.num_channels)
    images = cut_pictures(model, draw_head_scan()).images
    found = integrate_tokens(model, images, average_tokens(model, others), num_steps=1)
    assert found.completeness_error < 1e-5  # float32


def test_a_scan_against_itself_has_nothing_to_add():
    model, scan = build_measure_model(), draw_head_scan()
    reference = average_tokens(model, [scan])
    found = explain_measure(model, scan, method="integrated_tokens", reference=reference, num_steps=4)
    assert not found.values.any()
    assert found.facts["expected_sum"] == 0
    assert found.facts["completeness_error"] == 0


def test_what_differs_in_one_place_lies_there():
    """Of two heads alike but for a bright spot, patches without attention between them light up at the spot alone."""
    model, scan = build_measure_model(), draw_head_scan()
    with torch.no_grad():
        for block in model.module.encoder.backbone.blocks:
            block.attn.proj.weight.zero_()  # tokens stay by themselves
    changed = np.array(scan.voxels)
    changed[14:17, 24:27, 12:15] = scan.voxels.max() * 0.9
    spotted = type(scan)(voxels=changed, affine=scan.affine)
    reference = average_tokens(model, [scan])
    found = explain_measure(model, spotted, method="integrated_tokens", reference=reference, num_steps=4)
    box = cut_pictures(model, scan).box
    lit = [np.flatnonzero(np.abs(found.values).sum(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    # Neighbouring pictures ring by the spline, and a patch is a quarter of the box.
    for voxels, part, (low, high), reach in zip(lit, box, ((14, 16), (24, 26), (12, 14)), (8, 11, 8), strict=True):
        assert len(voxels)
        assert low - reach <= voxels.min()
        assert voxels.max() <= high + reach
        assert len(voxels) < part.stop - part.start


def test_what_cannot_be_compared_is_refused(others):
    model, scan = build_measure_model(), draw_head_scan()
    with pytest.raises(ExplainError, match="mean of people"):
        average_tokens(model, [])
    with pytest.raises(ExplainError, match="a path needs nodes"):
        explain_measure(
            model, scan, method="integrated_tokens", reference=average_tokens(model, others[:1]), num_steps=0
        )
    with pytest.raises(ExplainError, match="somebody to differ from"):
        explain_measure(model, scan, method="integrated_tokens")
    other = TokenReference(tokens=torch.zeros(CONFIG.slices.num_slices, 5, 64), num_people=1)
    with pytest.raises(ExplainError, match="another encoder"):
        explain_measure(model, scan, method="integrated_tokens", reference=other)

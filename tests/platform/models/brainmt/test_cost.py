"""What BrainMT costs by arithmetic, against what torch counts, holds and allocates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.step_memory import measure_allocated, measure_resident
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.platform.models.brainmt.cost import (
    count_forward_flops,
    count_parameters,
    count_step_flops,
    list_convolutions,
)
from neuroray.platform.models.brainmt.memory import StepSize, list_moments

SMALL: dict[str, Any] = {
    "grid_shape": (33, 41, 47),
    "num_frames": 30,
    "width": 64,
    "mamba_depth": 2,
    "attention_depth": 2,
    "frames_at_once": 2,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bidirectional": False},
        {"shared_mlp": False, "head": "mlp"},
        {"frame_encoder": "patch", "final_norm": True, "num_outputs": 3},
        {"attention_depth": 0},
        {"width": 18, "expansion": 3, "state_size": 7, "conv_taps": 3, "num_heads": 3, "mlp_ratio": 1.5},
    ],
    ids=["paper", "one way", "own mlp", "patch", "no attention", "odd"],
)
def test_parameters_are_counted_to_the_last(changes: dict[str, Any]):
    config = BrainMTConfig(**changes)
    with torch.device("meta"):
        model = config.build()
    counts = count_parameters(config)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts["frames"] == sum(parameter.numel() for parameter in model.frame_encoder.parameters())
    assert counts["mamba"] == sum(parameter.numel() for parameter in model.mamba_layers.parameters())
    if not changes:
        assert sum(counts.values()) == 40_567_233


@pytest.mark.parametrize(
    ("num_frames", "conv", "mamba", "linear", "products"),
    [
        (20, 1.06, 0.23, 0.08, 0.42),
        (100, 5.28, 1.16, 0.42, 10.4),
        (200, 10.6, 2.33, 0.85, 41.6),
        (400, 21.1, 4.66, 1.69, 166.5),
    ],
)
def test_a_forward_pass_has_the_operations_worked_out_by_hand(
    num_frames: int, conv: float, mamba: float, linear: float, products: float
):
    # A table made apart from this code, in TFLOP: convolutions, 12 Mamba layers, attention's maps (the MLP has as
    # many), attention's products. It is rounded: the sum of three figures by 0.015.
    found = {name: count / 1e12 for name, count in count_forward_flops(BrainMTConfig(), num_frames).items()}
    assert found["conv stage"] == pytest.approx(conv, rel=0.005)
    assert found["attention"] == pytest.approx(products, rel=0.01)
    assert found["scan"] + found["linear maps"] == pytest.approx(mamba + 2 * linear, abs=0.02)


def test_torch_counts_the_same_operations():
    config = BrainMTConfig(**SMALL, drop_path=0.0)
    model, voxels = config.build().train(), torch.randn(2, 7, 33, 41, 47)
    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(voxels)
    with FlopCounterMode(display=False) as step, sdpa_kernel(SDPBackend.MATH):
        model(voxels).outputs.sum().backward()
    expected = {name: 2 * count for name, count in count_forward_flops(config, 7).items()}
    # Its counter knows neither our scans nor their convolutions, and counts the head, which is left out here.
    head, seen = 2 * 2 * config.num_channels, ("conv stage", "attention", "linear maps")
    assert forward.get_total_flops() == sum(expected[name] for name in seen) + head
    predicted = count_step_flops(config, 7, num_windows=2)
    # With the scores kept, as here, attention's backward is twice its forward and not 2.5 times; what is recomputed
    # ends with the last number that is needed, which is before each layer's last map.
    found = sum(predicted.by_part[name] for name in seen) - predicted.forward["attention"] // 2
    maps, hidden = config.mamba_depth * config.inner_channels, config.attention_depth * 2 * config.num_channels
    tokens = 2 * config.num_tokens(7)
    unneeded = (
        2 * tokens * config.num_channels * (maps + hidden)
        + 14 * list_convolutions(config, SMALL["grid_shape"])[-1].flops
    )
    assert step.get_total_flops() == found + 3 * head - unneeded


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("changes", "num_frames", "num_windows"),
    [
        ({}, 60, 1),
        ({"attention_depth": 6, "mamba_depth": 1, "bidirectional": False, "state_size": 8}, 31, 2),
        ({"checkpoint": False}, 17, 1),
        ({"frames_at_once": 16}, 16, 1),
        ({"frame_encoder": "patch", "mlp_ratio": 4.0}, 60, 1),
    ],
    ids=["both ways", "mostly attention", "no checkpoints", "large chunks", "patch"],
)
def test_the_predicted_peak_is_what_torch_allocates(
    changes: dict[str, Any], num_frames: int, num_windows: int, bf16: bool
):
    config = BrainMTConfig(**{**SMALL, **changes})
    size = StepSize(num_frames=num_frames, grid_shape=(33, 41, 47), num_windows=num_windows, bf16=bf16)
    predicted = max(moment.total + 4 * moment.num_gradients for moment in list_moments(config, size))
    # Predicted at a few moments, with sums of what is large at them; small tensors, and gradients of weights on their
    # way, are not followed one by one.
    assert measure_allocated(config, size) == pytest.approx(predicted, rel=0.12)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's highest mark")
def test_the_predicted_peak_is_what_a_process_takes():
    config = BrainMTConfig(**{**SMALL, "grid_shape": (48, 56, 48)})
    size = StepSize(num_frames=60, grid_shape=(48, 56, 48))
    predicted = max(moment.total + 4 * moment.num_gradients for moment in list_moments(config, size))
    # What 12 % are for above, and pages of small tensors and libraries; 4 % were seen.
    assert measure_resident(config, size) == pytest.approx(predicted, rel=0.15)


def test_memory_grows_with_a_straight_line_of_frames():
    for bf16 in (False, True):
        peaks = []
        for num_frames in (200, 400, 800):
            size = StepSize(num_frames=num_frames, grid_shape=(91, 109, 91), bf16=bf16, on_gpu=True)
            peaks.append(max(moment.total for moment in list_moments(BrainMTConfig(), size)))
        assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=1e-3)


def test_attention_never_holds_its_scores():
    # 2 heads of 4,097 x 4,097 scores would be 134 MB; the whole step is predicted, and held, below that.
    config = BrainMTConfig(grid_shape=(32, 32, 32), num_frames=512, width=8, mamba_depth=0, attention_depth=1)
    size = StepSize(num_frames=512, grid_shape=(32, 32, 32))
    scores = 4 * config.num_heads * config.num_tokens() ** 2
    assert config.num_tokens() == 4097
    assert measure_allocated(config, size) < scores / 3

"""The model gives the released model's numbers.

The numbers come from the authors' model file run on weights and inputs drawn by the rule of `brainmt_numbers.py`; those
of the bidirectional build from that file with VideoMamba's mixer. Tolerances: 1e-4 for a module, 1e-3 through the full
depth, which amplifies float32 rounding.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from contracts.brainmt_numbers import draw_normal, draw_weights
from torch import Tensor
from torch.nn import functional

from neuroray.platform.models.brainmt import BrainMT, BrainMTConfig
from neuroray.platform.models.brainmt.attention import Attention
from neuroray.platform.models.brainmt.frames import ConvFrameEncoder, ResidualUnit
from neuroray.platform.models.brainmt.mamba import MambaMixer
from neuroray.platform.models.brainmt.weights import from_released, to_released

SHALLOW = BrainMTConfig(num_frames=4, mamba_depth=2, attention_depth=2)


def released_model(config: BrainMTConfig) -> BrainMT:
    shapes = {name: tensor.shape for name, tensor in to_released(config.build()).items()}
    return from_released(draw_weights(shapes))


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """`batch time x y z`, drawn in the release's order of axes: y, x, z."""
    return draw_normal(1234, 2, 4, 109, 91, 91).transpose(-3, -2)


def first(values: Tensor, count: int) -> list[float]:
    return values.flatten()[:count].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bidirectional", "outputs", "mean", "std", "cls"),
    [
        (
            False,
            [-1.015998, -0.857868],
            -0.040752,
            1.774429,
            [
                [-0.98417, -0.59056, 1.00874, 0.68539, -0.2542, -0.25603],
                [-1.04612, -0.51231, 1.0859, 0.75272],
            ],
        ),
        (
            True,
            [0.739639, 0.662876],
            -0.134162,
            1.67798,
            [
                [-1.84403, -0.90909, 2.16664, 1.02899, 0.54744, 2.14323],
                [-2.30122, -1.23762, 3.84486, 0.84978],
            ],
        ),
    ],
    ids=["one way", "both ways"],
)
def test_the_whole_model(
    frames: Tensor, bidirectional: bool, outputs: list[float], mean: float, std: float, cls: list[list[float]]
):
    model = released_model(dataclasses.replace(SHALLOW, bidirectional=bidirectional))
    with torch.no_grad():
        answer = model(frames)
    assert answer.outputs[:, 0].tolist() == pytest.approx(outputs, abs=1e-3)
    assert answer.embedding.mean().item() == pytest.approx(mean, abs=1e-4)
    assert answer.embedding.std().item() == pytest.approx(std, abs=1e-4)
    for row, expected in enumerate(cls):
        assert first(answer.embedding[row], len(expected)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.slow
def test_each_stage_of_the_frame_encoder(frames: Tensor):
    encoder = released_model(SHALLOW).frame_encoder
    assert isinstance(encoder, ConvFrameEncoder)
    x = frames.transpose(-3, -2).flatten(0, 1).unsqueeze(1)
    with torch.no_grad():
        x = functional.relu(encoder.stem2(functional.relu(encoder.stem1(x))))
        check_stage(x, 0.230038, 0.371269, [])
        x = encoder.unit1(x)
        check_stage(x, 0.229857, 1.092623, [-1.738322, -1.079838, -0.723329])
        x = encoder.down1(x)
        check_stage(x, -0.033933, 1.03977, [-0.019833, 1.488676, -0.495958])
        x = encoder.unit2(x)
        check_stage(x, -0.032387, 1.432311, [1.548573, 2.95898, -0.392418])
        x = encoder.down2(x)
        check_stage(x, 0.015672, 1.331255, [-0.620267, -0.030299, 0.728639])


def check_stage(x: Tensor, mean: float, std: float, expected: list[float]) -> None:
    assert x.mean().item() == pytest.approx(mean, abs=1e-4)
    assert x.std().item() == pytest.approx(std, abs=1e-4)
    assert first(x, len(expected)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_one_way_cls_sees_nothing_of_the_scan(frames: Tensor):
    """Both people have the same CLS token after the Mamba layers of the release; scanned both ways they differ."""
    blind = [[0.03832, -0.21187, 0.04954]] * 2
    expected = {False: blind, True: [[0.73959, 0.30853, 0.82092], [-0.11433, -0.3594, 2.16143]]}
    for bidirectional, values in expected.items():
        model = released_model(dataclasses.replace(SHALLOW, bidirectional=bidirectional))
        seen: list[Tensor] = []
        model.mamba_norm.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            model.encode(frames)
        for row in range(2):
            assert first(seen[0][row, 0], 3) == pytest.approx(values[row], abs=1e-4)


@pytest.mark.parametrize(
    ("bidirectional", "total", "start"),
    [
        (False, 11.09948, [0.265571, 0.15596, 0.091833, -0.106284, -0.030768, -0.142527]),
        (True, 14.77031, [0.332283, 0.091568, -0.024338, -0.014653, 0.059143, -0.379004]),
    ],
    ids=["one way", "both ways"],
)
def test_the_mixer_alone(bidirectional: bool, total: float, start: list[float]):
    config = BrainMTConfig(width=8, bidirectional=bidirectional, mamba_depth=1, attention_depth=1)
    layer = "layers.0.mixer."
    names = {
        released.removeprefix(layer): ours.shape
        for released, ours in to_released(config.build()).items()
        if released.startswith(layer)
    }
    held = {f"{layer}{name}": tensor for name, tensor in draw_weights(names).items()}
    mixer = from_released(to_released(config.build()) | held).mamba_layers[0].get_submodule("mixer")
    assert isinstance(mixer, MambaMixer)
    with torch.no_grad():
        y = mixer(draw_normal(7, 2, 11, 32))
    assert first(y, 6) == pytest.approx(start, abs=1e-4)
    assert y.sum().item() == pytest.approx(total, abs=1e-3)  # a sum of 704 numbers


def test_the_residual_unit_alone():
    unit = ResidualUnit(8)
    unit.load_state_dict(draw_weights({name: tensor.shape for name, tensor in unit.state_dict().items()}))
    with torch.no_grad():
        y = unit(draw_normal(8, 1, 8, 5, 4, 3))
    assert y.sum().item() == pytest.approx(-3.44681, abs=1e-3)  # a sum of 480 numbers
    assert first(y, 6) == pytest.approx([1.496487, 1.895416, -1.869132, -1.652352, -3.269186, 1.880401], abs=1e-4)


def test_attention_alone():
    attention = Attention(32, 2)
    ours = {"qkv": "qkv", "proj": "project"}
    shapes = {
        f"{released}.{kind}": attention.get_submodule(name).get_parameter(kind).shape
        for released, name in ours.items()
        for kind in ("weight", "bias")
    }
    drawn = draw_weights(shapes)
    attention.load_state_dict({f"{ours[name.split('.')[0]]}.{name.split('.')[1]}": w for name, w in drawn.items()})
    with torch.no_grad():
        y = attention(draw_normal(9, 2, 7, 32))
    assert y.sum().item() == pytest.approx(33.35927, abs=1e-3)  # a sum of 448 numbers
    assert first(y, 6) == pytest.approx([-1.104495, 0.652419, -0.346798, -0.25045, 0.441215, -0.398637], abs=1e-4)

"""BrainMT: the model contract, the paper's sizes, other grids and lengths, and what it refuses."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract
from torch import Tensor, nn

from neuroray.config import ConfigError
from neuroray.platform.models.brainmt import BrainMT, BrainMTConfig
from neuroray.platform.models.brainmt.mamba import drop_path
from neuroray.platform.models.brainmt.weights import from_released, to_released
from neuroray.platform.models.errors import ModelError


def small_config(**changes: Any) -> BrainMTConfig:
    sizes = {
        "grid_shape": (24, 33, 17),
        "num_frames": 5,
        "num_outputs": 3,
        "width": 8,
        "mamba_depth": 2,
        "attention_depth": 2,
        "frames_at_once": 3,
    }
    return BrainMTConfig(**{**sizes, **changes})


def draw_frames(batch: int, *shape: int, seed: int = 0) -> Tensor:
    """Smooth frames that change slowly, each scan another."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 4, 4, 4, generator=generator)
    x = nn.functional.interpolate(coarse, shape[1:], mode="trilinear")
    weights = torch.rand(batch, shape[0], 3, generator=generator)
    return torch.einsum("btc,bcxyz->btxyz", weights, x)


class TestBrainMT(ModelContract):
    def make_config(self) -> BrainMTConfig:
        return small_config()

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        return {"voxels": draw_frames(batch, 5, 24, 33, 17, seed=generator.initial_seed())}

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["outputs"].square().sum() + outputs["embedding"].square().sum()

    def find_blocks(self, model: nn.Module) -> list[str]:
        return [name for name, _ in model.named_modules() if name.split(".")[-1].isdigit() and name.count(".") == 1]


class TestBrainMTWithAllItsOptions(TestBrainMT):
    def make_config(self) -> BrainMTConfig:
        return small_config(shared_mlp=False, head="mlp", halve_directions=True, frame_encoder="patch", num_frames=7)


@pytest.mark.parametrize(("time_steps", "low", "high"), [("released", 0.693, 0.694), ("mamba", 0.001, 0.1)])
def test_time_steps_of_the_scans_begin_as_the_configuration_says(time_steps: str, low: float, high: float):
    torch.manual_seed(0)
    model = small_config(time_steps=time_steps).build()
    biases = [value for name, value in model.named_parameters() if name.endswith("delta.bias")]
    steps = nn.functional.softplus(torch.cat(biases))
    assert len(biases) == 4
    assert low * 0.999 < steps.min()
    assert steps.max() < high * 1.001  # float32
    if time_steps == "mamba":
        # Logarithms equally likely: their mean, over 256 draws.
        assert float(steps.log10().mean()) == pytest.approx(-2, abs=0.2)


@pytest.mark.parametrize(
    ("bidirectional", "expected", "tensors"), [(True, 40_567_233, 268), (False, 39_104_961, 184)], ids=["both", "one"]
)
def test_the_paper_model_has_the_parameters_of_the_release(bidirectional: bool, expected: int, tensors: int):
    with torch.device("meta"):
        model = BrainMTConfig(bidirectional=bidirectional).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert len(model.state_dict()) == tensors
    assert model.config.num_tokens() == 50_401


@pytest.mark.parametrize("bidirectional", [True, False])
def test_released_weights_come_and_go_bit_for_bit(bidirectional: bool):
    model = small_config(bidirectional=bidirectional, grid_shape=(30, 20, 10)).build()
    wrapped = {f"module.{name}": tensor for name, tensor in to_released(model).items()}
    again = from_released({"epoch": 3, "model_state_dict": wrapped}, grid_shape=(30, 20, 10))
    assert not again.training
    found = dataclasses.replace(again.config, frames_at_once=model.config.frames_at_once)
    assert found == model.config
    expected, given = model.state_dict(), again.state_dict()
    assert expected.keys() == given.keys()
    assert all(torch.equal(expected[name], given[name]) for name in expected)


def test_weights_that_are_not_the_release_s_are_refused():
    released = to_released(small_config().build())
    with pytest.raises(ModelError, match="another grid"):
        from_released(released)
    with pytest.raises(ModelError, match=r"1 missing \(norm_f.weight\)"):
        from_released({k: v for k, v in released.items() if k != "norm_f.weight"}, grid_shape=(24, 33, 17))
    with pytest.raises(ModelError, match=r"1 unknown \(visual.proj\)"):
        from_released({**released, "visual.proj": torch.zeros(3)}, grid_shape=(24, 33, 17))
    with pytest.raises(ModelError, match="another shape"):
        from_released({**released, "norm_f.weight": torch.zeros(7)}, grid_shape=(24, 33, 17))
    with pytest.raises(ModelError, match="no such part"):
        to_released(small_config(shared_mlp=False).build())


@pytest.mark.parametrize("frames_at_once", [1, 4, None])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_chunks_and_checkpoints_change_no_gradient(frames_at_once: int | None, checkpoint: bool):
    inputs, results = draw_frames(2, 5, 24, 33, 17), []
    for config in (
        small_config(frames_at_once=2, checkpoint=False),
        small_config(frames_at_once=frames_at_once, checkpoint=checkpoint),
    ):
        torch.manual_seed(3)
        model = config.build().train()
        torch.manual_seed(4)  # of the drop paths
        outputs = model(inputs).outputs
        outputs.square().sum().backward()
        results.append((outputs, {name: p.grad for name, p in model.named_parameters()}))
    (expected, gradients), (given, others) = results
    # Convolutions over another number of frames add in another order.
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-3, atol=1e-5)


def test_another_grid_and_length_interpolate_the_tables(caplog: pytest.LogCaptureFixture):
    model = small_config().build().eval()
    # Tables that rise along z and along time, which linear interpolation keeps rising between their centres.
    with torch.no_grad():
        model.embedding.space[0, 1:] = torch.arange(2.0).repeat(6)[:, None]
        model.embedding.time[0] = torch.arange(5.0)[:, None]
    tokens = torch.zeros(1, 10, 32, 2 * 3 * 4)
    with caplog.at_level(logging.INFO):
        placed = model.embedding(tokens, (3, 2, 4))
        model.embedding(tokens, (3, 2, 4))
    steps = placed[0, 1:].unflatten(0, (3, 2, 4, 10))[..., 0]
    assert steps[0, 0, :, 0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.0])
    assert steps[2, 1, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75, 4.0])
    assert [record.getMessage() for record in caplog.records] == [
        "the spatial position table of (3, 2, 2) tokens is interpolated to (3, 2, 4)",
        "the temporal position table of 5 frames is interpolated to 10",
    ]
    assert model(draw_frames(1, 10, 20, 40, 50)).outputs.isfinite().all()


def test_tokens_run_through_time_first():
    model = small_config().build().eval()
    with torch.no_grad():
        model.embedding.space.zero_()
        model.embedding.time.zero_()
    tokens = torch.arange(5.0)[None, :, None, None] + 100 * torch.arange(12.0)
    sequence = model.embedding(tokens.expand(1, 5, 32, 12), model.embedding.grid)
    assert sequence[0, :7, 0].tolist() == [0, 0, 1, 2, 3, 4, 100]


def test_dropped_paths_keep_the_mean():
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(20_000, 2, 3), 0.25, is_training=True)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)  # 5 standard errors of 20,000 draws
    assert torch.equal(dropped[:, 0, 0], dropped[:, 1, 2])
    assert BrainMTConfig().drop_rates()[:3] == (0, 0, pytest.approx(0.1 / 19))
    assert BrainMTConfig().drop_rates()[12:14] == (0.1, pytest.approx(12 * 0.1 / 19))
    assert BrainMTConfig().drop_rates()[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bidirectional": False, "attention_depth": 0}, "CLS token would see nothing"),
        ({"width": 7}, "widths do not divide"),
        ({"drop_path": 1.0}, "drop_path is no fraction"),
        ({"frames_at_once": 0}, "frames_at_once is too small"),
        ({"num_outputs": 0}, "num_outputs is too small"),
    ],
)
def test_configurations_that_make_no_model_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        small_config(**changes)


def test_inputs_that_are_no_windows_are_refused():
    model = small_config().build()
    with pytest.raises(ModelError, match="use a model of volumes"):
        model(torch.zeros(2, 9, 9, 9))
    with pytest.raises(ModelError, match="at least one of each"):
        model(torch.zeros(1, 0, 9, 9, 9))
    with pytest.raises(ModelError, match="standardised voxels"):
        model(torch.zeros(1, 2, 9, 9, 9, dtype=torch.int16))


@pytest.mark.gpu
def test_the_two_ways_of_computing_agree_on_a_gpu():
    config = small_config()
    torch.manual_seed(0)
    model = config.build().eval()
    inputs = draw_frames(2, 5, 24, 33, 17)
    expected = model(inputs).outputs
    given = model.cuda()(inputs.cuda()).outputs.cpu()
    # Convolutions on a GPU round their inputs to 10 bits of mantissa (TF32).
    torch.testing.assert_close(given, expected, rtol=5e-3, atol=5e-3)
    assert isinstance(model, BrainMT)

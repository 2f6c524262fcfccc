"""The model of masked pretraining: the model contract, its cells, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract
from torch import Tensor, nn

from neuroray.config import ConfigError
from neuroray.platform.models.brainmt import BrainMTConfig, MaskedBrainMTConfig

ENCODER = BrainMTConfig(
    grid_shape=(24, 33, 17), num_frames=5, width=8, mamba_depth=2, attention_depth=2, frames_at_once=3
)


class TestMaskedBrainMT(ModelContract):
    def make_config(self) -> MaskedBrainMTConfig:
        return MaskedBrainMTConfig(encoder=ENCODER, cell_voxels=8, decoder="mlp")

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        return {"voxels": torch.randn(batch, 5, 24, 33, 17, generator=generator)}

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["content"].square().sum()

    def find_blocks(self, model: nn.Module) -> list[str]:
        names = [name for name, _ in model.named_modules()]
        return [name for name in names if name.startswith("encoder.") and name.split(".")[-1].isdigit()]


class TestProbe(ModelContract):
    def make_config(self) -> BrainMTConfig:
        return BrainMTConfig(**{**_fields(ENCODER), "pool": "mean", "head": "probe", "num_outputs": 3})

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        return {"voxels": torch.randn(batch, 5, 24, 33, 17, generator=generator)}

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["outputs"].square().sum() + outputs["embedding"].square().sum()


def _fields(config: BrainMTConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in BrainMTConfig.__slots__}


def test_places_come_before_frames_and_cells_last():
    model = MaskedBrainMTConfig(encoder=ENCODER, cell_voxels=4).build().eval()
    voxels = torch.randn(1, 5, 24, 33, 17)
    with torch.no_grad():
        found = model(voxels).content
        tokens = model.encoder.encode(voxels)
        expected = model.decoder(tokens[0, 1 + 7 * 5 + 3])  # the eighth place, the fourth frame
    assert found.shape == (1, 3 * 2 * 2, 5, 64)
    # One token through the decoder, or sixty: matrix products in another order.
    torch.testing.assert_close(found[0, 7, 3], expected, atol=1e-5, rtol=1e-5)


def test_a_probe_answers_linearly_from_the_standardised_mean_token():
    model = TestProbe().make_config().build().eval()
    rows = 3 + 2 * torch.randn(50, 32)
    rows[:, 4] = 1.5
    model.head.fit_scale(rows)
    voxels = torch.randn(1, 5, 24, 33, 17)
    with torch.no_grad():
        output = model(voxels)
        mean = model.encode(voxels)[:, 1:].mean(1)
        std = rows.std(0, correction=0)
        std[4] = 1  # what is the same for all is only centred
        expected = ((mean - rows.mean(0)) / std) @ model.head[1].weight.T + model.head[1].bias
    assert torch.equal(output.embedding, mean)
    torch.testing.assert_close(output.outputs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cell_voxels", [0, 3, 32])
def test_cells_that_do_not_fill_a_patch_are_refused(cell_voxels: int):
    with pytest.raises(ConfigError, match="1, 2, 4, 8 or 16"):
        MaskedBrainMTConfig(cell_voxels=cell_voxels)

"""What every model must do, written once: a subclass names a small config, a batch of inputs and a scalar to descend.

That an exported predictor agrees with the model stands in tests/jobs/test_export.py: it needs code above the models.
"""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any, ClassVar

import safetensors.torch
import torch
from contracts.ranks import run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from neuroray.config import Config
from neuroray.platform.train.parallel import join_team, shard

Inputs = dict[str, Tensor]


class ModelContract:
    """Subclass it as `TestX`; inputs are keyword arguments of `forward`, first axis the batch."""

    insensitive: ClassVar[frozenset[str]] = frozenset()
    """Parameters whose gradient is zero by the model's formula, named with the reason beside them."""

    def make_config(self) -> Config:
        """A small config, quick to build."""
        raise NotImplementedError

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        """Inputs in float32, each volume different."""
        raise NotImplementedError

    def build(self, config: Any) -> nn.Module:
        return config.build()

    def outputs(self, model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
        """The model's outputs by name."""
        return model(**inputs)._asdict()

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        """A scalar that depends on all that learns."""
        raise NotImplementedError

    def find_blocks(self, model: nn.Module) -> list[str]:
        """Names of the submodules that are sharded as units of their own; the rest goes with the root."""
        del model
        return []

    def make(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.build(self.make_config()).eval()

    def draw(self, batch: int = 2, seed: int = 0) -> Inputs:
        return self.make_inputs(batch, torch.Generator().manual_seed(seed))

    def test_config_survives_json_and_pickle(self) -> None:
        config = self.make_config()
        assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config
        assert pickle.loads(pickle.dumps(config)) == config
        assert type(config).from_json(config.to_json()).fingerprint() == config.fingerprint()

    def test_same_seed_same_output(self) -> None:
        first, again, other = (self.outputs(self.make(seed), self.draw()) for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)

    def test_a_batch_of_one_equals_its_row_in_a_batch_of_two(self) -> None:
        model, inputs = self.make(), self.draw(2)
        both = self.outputs(model, inputs)
        for row in range(2):
            alone = self.outputs(model, {name: value[row : row + 1] for name, value in inputs.items()})
            for name, value in alone.items():
                # Products of matrices of another height may add in another order: float32 rounding of values around 1.
                assert torch.allclose(value[0], both[name][row], rtol=1e-4, atol=1e-5), name

    def test_rows_of_a_batch_differ(self) -> None:
        outputs = self.outputs(self.make(), self.draw(2))
        assert all(not torch.equal(value[0], value[1]) for value in outputs.values())

    def test_every_parameter_gets_a_gradient(self) -> None:
        model = self.make().train()
        self.measure(self.outputs(model, self.draw(3))).backward()
        learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learned
        for name, parameter in learned.items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert name in self.insensitive or parameter.grad.abs().max() > 0, name

    def test_eval_is_deterministic(self) -> None:
        model = self.make()
        torch.manual_seed(1)
        first = self.outputs(model, self.draw())
        torch.manual_seed(2)
        again = self.outputs(model, self.draw())
        assert all(torch.equal(first[name], again[name]) for name in first)

    def test_bfloat16_is_finite_and_near(self) -> None:
        model, inputs = self.make(), self.draw()
        exact = self.outputs(model, inputs)
        halved = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        for name, value in self.outputs(model.bfloat16(), halved).items():
            assert value.isfinite().all(), name
            scale = max(exact[name].abs().max().item(), 1e-3)
            # Inputs and weights each rounded to 2^-9, through some ten layers.
            assert (value.float() - exact[name]).abs().max().item() / scale < 0.15, name

    def test_weights_round_trip_bit_for_bit(self) -> None:
        model, config = self.make(), self.make_config()
        kept = safetensors.torch.save(model.state_dict())
        torch.manual_seed(99)
        rebuilt = self.build(type(config).from_json(config.to_json())).eval()
        rebuilt.load_state_dict(safetensors.torch.load(kept))
        expected, given = self.outputs(model, self.draw()), self.outputs(rebuilt, self.draw())
        assert all(torch.equal(expected[name], given[name]) for name in expected)

    def test_sharded_over_two_ranks_it_equals_itself_unsharded(self) -> None:
        model, inputs = self.make(), self.draw(3)
        blocks = self.find_blocks(model)
        expected, expected_gradients = differentiate(model, inputs, blocks)
        for outputs, gradients in run_ranks(differentiate, model, inputs, blocks):
            for name, value in expected.items():
                torch.testing.assert_close(outputs[name], value)
            assert gradients.keys() == expected_gradients.keys()
            for name, value in expected_gradients.items():
                # Ranks hold halves of each parameter: products are split elsewhere, sums round in another order.
                torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-6)


def differentiate(model: nn.Module, inputs: Inputs, blocks: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, and the gradient of one weighted sum of them for every parameter: sharded where ranks are connected."""
    model = copy.deepcopy(model)
    shard(model, [model.get_submodule(name) for name in blocks], join_team(use_gpu=False))
    outputs = {name: value for name, value in model(**inputs)._asdict().items() if isinstance(value, Tensor)}
    weighed = [
        (value * torch.sin(torch.arange(value.numel()) + 1.0).reshape(value.shape)).sum()
        for value in outputs.values()
        if value.requires_grad
    ]
    torch.stack(weighed).sum().backward()
    gradients = {
        name: parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return {name: value.detach() for name, value in outputs.items()}, gradients

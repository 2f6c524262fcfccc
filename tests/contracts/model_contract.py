"""What every model must do, written once: a subclass names a small config, a batch of inputs and a scalar to descend.

Two parts of the contract need code above the models, and stand with the tests of that code: that a model sharded over
two ranks equals the unsharded one (training), and that an exported predictor agrees with it (serving). Both take a
subclass of this and use `make_config`, `make_inputs` and `measure`.
"""

from __future__ import annotations

import json
import pickle
from typing import Any, ClassVar

import safetensors.torch
import torch
from torch import Tensor, nn

from neuroray.config import Config

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

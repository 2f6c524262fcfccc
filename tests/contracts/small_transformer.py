"""A transformer of a few tokens, and what its tests ask of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuroray.platform.models.neuroar import NeuroARConfig, QuantiserConfig
from neuroray.platform.models.neuroar.nearest_head import NearestHead
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer, describe_before, describe_previous

GRID = (3, 2, 3)
AGES = torch.tensor([[60.0, 64.0], [40.0, 72.5], [8.0, 8.0]])


def small_config(**changes: Any) -> NeuroARConfig:
    parts = {
        "quantiser": QuantiserConfig(num_codes=12, code_dim=4, num_scales=3),
        "latent_shape": GRID,
        "width": 24,
        "depth": 2,
        "num_heads": 3,
        "gamma": 0.5,
        "num_age_periods": 5,
    }
    return NeuroARConfig(**{**parts, **changes})


def nudge(model: NeuroARTransformer) -> NeuroARTransformer:
    """Moves what starts at 0, and what starts next to it, so that ages and blocks count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("project_out.weight"):
                parameter.add_(torch.linspace(-0.2, 0.2, parameter.numel()).sin().view_as(parameter) * 0.3)
        if isinstance(model.head, NearestHead):
            model.head.change.weight.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
            model.head.codes.normal_(generator=torch.Generator().manual_seed(1))
        else:
            model.head.weight.mul_(50)
    return model


def make_levelled() -> MultiScaleQuantiser:
    """A quantiser with scales of different sizes, and codes far from each other."""
    torch.manual_seed(0)
    quantiser = MultiScaleQuantiser(QuantiserConfig(num_codes=12, code_dim=4, num_scales=3, level_sizes=True))
    quantiser.levels.sizes.copy_(torch.tensor([0.2, 1.5, 0.7]))
    return quantiser.eval()


def draw_tokens(config: NeuroARConfig, rows: int, seed: int = 0) -> Tensor:
    return torch.randint(12, (rows, config.num_tokens), generator=torch.Generator().manual_seed(seed))


def tell(model: NeuroARTransformer, quantiser: MultiScaleQuantiser, previous: Tensor, target: Tensor) -> Tensor:
    inputs, before = quantiser.teacher_inputs(target, GRID), describe_before(quantiser, target)
    return model(inputs, AGES[: len(target)], describe_previous(quantiser, previous, GRID), before=before).logits

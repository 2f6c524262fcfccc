"""The small transformer in its variants, and a quantiser that fits it."""

from __future__ import annotations

import pytest
from contracts.small_transformer import nudge, small_config

from neuroray.platform.models.neuroar import QuantiserConfig
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer


@pytest.fixture(params=["channel", "nearest", "sequence", "none", "token"])
def model(request: pytest.FixtureRequest) -> NeuroARTransformer:
    named = {"nearest": {"head": "nearest"}, "token": {"order": "token"}}
    changes = named.get(request.param, {"previous": request.param})
    return nudge(small_config(**changes).build()).eval()


@pytest.fixture
def quantiser() -> MultiScaleQuantiser:
    return MultiScaleQuantiser(QuantiserConfig(num_codes=12, code_dim=4, num_scales=3)).eval()

"""Weights of NeuroAR from before a buffer was added: what they lack begins as in a new module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import nn

_YOUNGER: Final = (
    "codebook.recent",
    "codebook.num_recent",
    "head.speeding",
    "head.leaning",
    "head.contents",
    "head.centre",
)


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """As `load_state_dict`, but for buffers that models of before did not have and that start without effect.

    Raises:
        RuntimeError: anything else is missing, too much, or of another shape.
    """
    fresh = module.state_dict()
    added = {name: fresh[name] for name in fresh if name not in state and name.endswith(_YOUNGER)}
    module.load_state_dict({**state, **added})

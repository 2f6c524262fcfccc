"""Weights from before a buffer was added: they load, and nothing else that lacks a part does."""

from __future__ import annotations

import pytest
import torch
from contracts.small_transformer import make_levelled, nudge, small_config
from torch import nn

from neuroray.platform.data.older_weights import load_state

YOUNGER = ["codebook.recent", "codebook.num_recent", "head.speeding", "head.leaning", "head.contents", "head.centre"]


@pytest.mark.parametrize(("module", "number"), [(nudge(small_config(head="nearest").build()), 4), (make_levelled(), 2)])
def test_weights_without_younger_buffers_load_and_others_that_lack_a_part_do_not(
    module: nn.Module, number: int
) -> None:
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    older = {name: value for name, value in whole.items() if not name.endswith(tuple(YOUNGER))}
    assert len(whole) == len(older) + number
    fresh = type(module)(module.config)
    load_state(fresh, older)
    for name, value in fresh.state_dict().items():
        expected = whole[name] if name in older else torch.zeros_like(value)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    last = next(reversed(older))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state(fresh, {name: value for name, value in older.items() if name != last})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load_state(fresh, {**older, "another": older[last]})

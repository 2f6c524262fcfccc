"""The transformer: the model contract in its variants, causality to the last bit, what is hidden, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract
from contracts.small_transformer import AGES, GRID, draw_tokens, nudge, small_config, tell
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar import NeuroARConfig
from neuroray.platform.models.neuroar.generate import SamplingConfig
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser, shrink
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer, describe_before, describe_previous


class TestChannelContract(ModelContract):
    changes: ClassVar[dict[str, Any]] = {}

    def make_config(self) -> NeuroARConfig:
        return small_config(**self.changes)

    def build(self, config: NeuroARConfig) -> NeuroARTransformer:
        return nudge(config.build())

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        length = self.make_config().num_tokens
        return {
            "target": torch.randn(batch, length - 1, 4, generator=generator),
            "ages_years": AGES[:batch],  # that bfloat16 has too
            "previous": torch.randn(batch, length, 12, generator=generator),
            "hide_ages": torch.tensor([False, True, False])[:batch],
            "hide_previous": torch.tensor([False, False, True])[:batch],
        }

    def measure(self, outputs: dict[str, Tensor]) -> Tensor:
        logits = outputs["logits"]
        return functional.cross_entropy(logits.flatten(0, 1), torch.arange(logits[..., 0].numel()) % 12)

    def find_blocks(self, model: nn.Module) -> list[str]:
        return [f"blocks.{index}" for index in range(2)]


class TestSequenceContract(TestChannelContract):
    changes: ClassVar[dict[str, Any]] = {"previous": "sequence", "adaln": "shared", "ages": "pair"}
    # What the last block adds to the previous scan's tokens is seen by nobody, but its keys and values are.


class TestTokenOrderContract(TestChannelContract):
    changes: ClassVar[dict[str, Any]] = {"order": "token"}

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        codes = torch.randn(batch, self.make_config().num_tokens, 4, generator=generator)
        return {**super().make_inputs(batch, generator), "before": codes}


class TestBareContract(TestChannelContract):
    changes: ClassVar[dict[str, Any]] = {"adaln": "none", "normalise_keys": False, "previous": "none"}


class TestNearestContract(TestChannelContract):
    changes: ClassVar[dict[str, Any]] = {"head": "nearest"}
    insensitive: ClassVar[frozenset[str]] = frozenset({"ages.hidden"})  # without ages there is no change to tell

    def make_inputs(self, batch: int, generator: torch.Generator) -> Inputs:
        # The last row has no years between its scans, so that nothing learned would be seen of it there.
        hidden = {"hide_previous": torch.tensor([True, False, False]), "hide_ages": torch.tensor([False, False, True])}
        return super().make_inputs(batch, generator) | {name: rows[:batch] for name, rows in hidden.items()}


def test_later_scales_change_no_bit_of_earlier_ones(model: NeuroARTransformer, quantiser: MultiScaleQuantiser) -> None:
    config, previous = model.config, draw_tokens(model.config, 2)
    target = draw_tokens(config, 2, seed=1)
    logits = tell(model, quantiser, previous, target)
    assert config.ends == (0, 1, 5, 23)
    for start, end in zip(config.ends[:-1], config.ends[1:], strict=True):
        changed = target.clone()
        changed[:, start:] = (changed[:, start:] + 5) % 12
        again = tell(model, quantiser, previous, changed)
        blind = end if config.order == "scale" else start + 1
        assert torch.equal(again[:, :blind], logits[:, :blind])
        if end < config.num_tokens:
            assert (again[:, end:] != logits[:, end:]).any(-1).all()


def test_told_one_by_one_a_token_sees_all_before_it_and_none_behind_it(quantiser: MultiScaleQuantiser) -> None:
    model = nudge(small_config(order="token").build()).eval()
    previous, target = draw_tokens(model.config, 1), draw_tokens(model.config, 1, seed=1)
    logits = tell(model, quantiser, previous, target)
    for place in range(model.config.num_tokens):
        changed = target.clone()
        changed[:, place] = (changed[:, place] + 5) % 12
        again = tell(model, quantiser, previous, changed)
        assert torch.equal(again[:, : place + 1], logits[:, : place + 1])
        if place + 1 < model.config.num_tokens:
            assert (again[:, place + 1 :] != logits[:, place + 1 :]).any(-1).all()


def test_told_one_by_one_the_code_before_is_needed(quantiser: MultiScaleQuantiser) -> None:
    model, tokens = small_config(order="token").build().eval(), draw_tokens(small_config(), 1)
    with pytest.raises(ModelError, match="codes before each token"):
        model(quantiser.teacher_inputs(tokens, GRID), AGES[:1], describe_previous(quantiser, tokens, GRID))
    with pytest.raises(ConfigError, match="one by one"):
        small_config(order="token", previous="sequence")


def test_places_of_one_scale_see_each_other_and_all_of_the_previous_scan(quantiser: MultiScaleQuantiser) -> None:
    model = nudge(small_config(previous="sequence").build()).eval()
    previous, target = draw_tokens(model.config, 1), draw_tokens(model.config, 1, seed=1)
    logits = tell(model, quantiser, previous, target)
    previous[0, -1] = (previous[0, -1] + 1) % 12
    assert (tell(model, quantiser, previous, target) != logits).any(-1).all()


def test_passes_scale_by_scale_are_one_pass_over_all(model: NeuroARTransformer, quantiser: MultiScaleQuantiser) -> None:
    config = model.config
    if config.order == "token":
        pytest.skip("has passes token by token, and a test of them")
    previous, target = draw_tokens(config, 3), draw_tokens(config, 3, seed=1)
    whole = tell(model, quantiser, previous, target)
    inputs = quantiser.teacher_inputs(target, GRID)
    conditions = model.prepare(AGES, describe_previous(quantiser, previous, GRID))
    told = []
    for index, (start, end) in enumerate(zip(config.ends[:-1], config.ends[1:], strict=True)):
        given = None if index == 0 else inputs[:, start - 1 : end - 1]
        logits, conditions = model.tell_scale(index, given, conditions)
        told.append(logits)
    # The same sums over as many numbers, in matrices of other heights.
    torch.testing.assert_close(torch.cat(told, 1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"adaln": "none"}, {"cross_attention": False}, {"adaln": "shared"}])
def test_ages_change_what_is_told_by_either_way(changes: dict[str, Any], quantiser: MultiScaleQuantiser) -> None:
    model = nudge(small_config(**changes).build()).eval()
    with torch.no_grad():
        for block in model.blocks:
            if block.modulate is not None:
                block.modulate.weight.normal_(std=0.2)
    inputs = quantiser.teacher_inputs(draw_tokens(model.config, 1), GRID)
    previous = describe_previous(quantiser, draw_tokens(model.config, 1, seed=1), GRID)
    young, old = (model(inputs, torch.tensor([[60.0, age]]), previous).logits for age in (61.0, 75.0))
    assert (young[:, 1:] - old[:, 1:]).abs().max() > 1e-3


@pytest.mark.parametrize(("hidden", "changed"), [("hide_ages", "ages"), ("hide_previous", "previous")])
def test_what_is_hidden_is_not_seen(
    model: NeuroARTransformer, quantiser: MultiScaleQuantiser, hidden: str, changed: str
) -> None:
    if model.config.previous == "sequence" and hidden == "hide_previous":
        pass  # its tokens are there, all alike but for their places
    target = draw_tokens(model.config, 1)
    inputs, before = quantiser.teacher_inputs(target, GRID), describe_before(quantiser, target)
    given = {"ages": AGES[:1], "previous": describe_previous(quantiser, draw_tokens(model.config, 1), GRID)}
    other = {**given, changed: given[changed] + 3}
    hide: dict[str, Any] = {"before": before, hidden: torch.tensor([True])}
    told = [model(inputs, one["ages"], one["previous"], **hide).logits for one in (given, other)]
    assert torch.equal(told[0], told[1])


def test_in_training_a_share_of_ages_and_previous_scans_is_hidden(quantiser: MultiScaleQuantiser) -> None:
    torch.manual_seed(0)
    model = nudge(small_config(age_dropout=0.3, previous_dropout=0.1).build()).train()
    seen: dict[str, Tensor] = {}
    prepare = model.prepare

    def watch(*given: Any, **hidden: Any) -> Any:
        seen.update(hidden)
        return prepare(*given, **hidden)

    model.prepare = watch  # type: ignore[method-assign]
    rows = 2000
    previous = describe_previous(quantiser, draw_tokens(model.config, 1), GRID).expand(rows, -1, -1)
    inputs = quantiser.teacher_inputs(draw_tokens(model.config, 1), GRID).expand(rows, -1, -1)
    with torch.no_grad():
        model(inputs, AGES[:1].expand(rows, -1), previous)
    # Five standard deviations of a share among 2000 rows are 0.05 and 0.034.
    assert float(seen["hide_ages"].float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float(seen["hide_previous"].float().mean()) == pytest.approx(0.1, abs=0.034)


def test_parameters_of_the_papers_size_are_as_many_as_counted() -> None:
    with torch.device("meta"):
        paper, shared = NeuroARConfig().build(), NeuroARConfig(adaln="shared").build()
    counts = [sum(p.numel() for p in one.parameters()) for one in (paper, shared)]
    assert NeuroARConfig().num_tokens == 1536
    # 744 and 549 million, counted without the age embedding, whose merging layer has 3 million.
    assert counts == [pytest.approx(744e6, rel=0.01), pytest.approx(549e6, rel=0.01)]


def test_inputs_of_another_grid_are_refused(quantiser: MultiScaleQuantiser) -> None:
    model, previous = small_config().build().eval(), torch.zeros(1, 23, 8)
    with pytest.raises(ModelError, match="do not fit the scales"):
        model(torch.zeros(1, 9, 4), AGES[:1], previous)
    with pytest.raises(ModelError, match="previous scan does not fit"):
        model(torch.zeros(1, 22, 4), AGES[:1], previous[:, 1:])
    with pytest.raises(ModelError, match="previous scan does not fit"):
        model(torch.zeros(1, 22, 4), AGES[:1])


def test_what_is_shown_of_the_previous_scan_is_its_sum_and_its_codes(quantiser: MultiScaleQuantiser) -> None:
    tokens = draw_tokens(small_config(), 1)
    shown = describe_previous(quantiser, tokens, GRID)[0]
    whole = quantiser.decode(tokens, GRID)
    torch.testing.assert_close(shown[0, :4], whole[0].flatten(1).mean(1))
    torch.testing.assert_close(shown[1:5, :4], shrink(whole, (2, 1, 2))[0].flatten(1).T)
    assert torch.equal(shown[:, 4:8], quantiser.codebook.codes[tokens[0]])
    before = quantiser.teacher_inputs(tokens, GRID)[0]
    assert torch.equal(shown[:, 8:], torch.cat([torch.zeros(1, 4), before]))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads that divide"):
        small_config(num_heads=5)
    with pytest.raises(ConfigError, match="last scale is not the latent grid"):
        small_config(quantiser=dataclasses.replace(small_config().quantiser, scales=((1, 1, 1), (4, 4, 4))))
    with pytest.raises(ConfigError, match="sampling is none"):
        SamplingConfig(top_p=0.0)
    with pytest.raises(ConfigError, match="guidance is none"):
        SamplingConfig(previous_guidance=float("nan"))

"""The transformer: the model contract in its variants, causality to the last bit, cached passes, guidance, sampling."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
from contracts.model_contract import Inputs, ModelContract
from torch import Tensor, nn
from torch.nn import functional

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar import NeuroARConfig, QuantiserConfig
from neuroray.platform.models.neuroar.benchmark import generate_by_whole_passes, measure, measure_page
from neuroray.platform.models.neuroar.generate import SamplingConfig, choose_codes, generate_latent, generate_tokens
from neuroray.platform.models.neuroar.nearest_head import NearestHead, measure_drift
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser, shrink
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


def test_what_a_nearest_head_has_learned_changes_nothing_at_the_scans_own_age() -> None:
    config = small_config(head="nearest")
    model, quantiser = nudge(config.build()).eval(), make_levelled()
    previous, inputs = draw_tokens(config, 1), quantiser.teacher_inputs(draw_tokens(config, 1), GRID)
    ages = torch.tensor([[60.0, 60.0], [60.0, 65.0]])
    told = model(inputs.expand(2, -1, -1), ages, describe_previous(quantiser, previous, GRID)).logits
    with torch.no_grad():
        model.head.change.weight.zero_()
    still = model(inputs.expand(2, -1, -1), ages, describe_previous(quantiser, previous, GRID)).logits
    assert torch.equal(told[0], still[0])
    assert (told[1] - still[1]).abs().max() > 0.1


@pytest.fixture(params=["channel", "nearest", "sequence", "none", "token"])
def model(request: pytest.FixtureRequest) -> NeuroARTransformer:
    named = {"nearest": {"head": "nearest"}, "token": {"order": "token"}}
    changes = named.get(request.param, {"previous": request.param})
    return nudge(small_config(**changes).build()).eval()


@pytest.fixture
def quantiser() -> MultiScaleQuantiser:
    return MultiScaleQuantiser(QuantiserConfig(num_codes=12, code_dim=4, num_scales=3)).eval()


def draw_tokens(config: NeuroARConfig, rows: int, seed: int = 0) -> Tensor:
    return torch.randint(12, (rows, config.num_tokens), generator=torch.Generator().manual_seed(seed))


def tell(model: NeuroARTransformer, quantiser: MultiScaleQuantiser, previous: Tensor, target: Tensor) -> Tensor:
    inputs, before = quantiser.teacher_inputs(target, GRID), describe_before(quantiser, target)
    return model(inputs, AGES[: len(target)], describe_previous(quantiser, previous, GRID), before=before).logits


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


def test_greedy_tokens_are_the_likeliest_of_a_pass_that_is_given_them(
    model: NeuroARTransformer, quantiser: MultiScaleQuantiser
) -> None:
    previous = draw_tokens(model.config, 3)
    made = generate_tokens(model, quantiser, previous, AGES)
    assert torch.equal(made, generate_tokens(model, quantiser, previous, AGES))
    assert torch.equal(tell(model, quantiser, previous, made).argmax(-1), made)
    assert len(made.unique()) > 3


def test_one_previous_scan_serves_many_ages(model: NeuroARTransformer, quantiser: MultiScaleQuantiser) -> None:
    previous = draw_tokens(model.config, 1)
    ages = torch.tensor([[60.0, 60.0], [60.0, 65.0], [60.0, 80.0]])
    together = generate_tokens(model, quantiser, previous, ages)
    for row in range(3):
        assert torch.equal(generate_tokens(model, quantiser, previous, ages[row : row + 1])[0], together[row])


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


def test_guidance_of_one_changes_nothing_and_more_of_it_goes_further(quantiser: MultiScaleQuantiser) -> None:
    model, previous = nudge(small_config().build()).eval(), draw_tokens(small_config(), 2)
    plain = generate_tokens(model, quantiser, previous, AGES[:2])
    nearly = SamplingConfig(age_guidance=1.0, previous_guidance=1.0 + 1e-7)
    assert torch.equal(generate_tokens(model, quantiser, previous, AGES[:2], nearly), plain)
    # Without any way towards what is hidden, tokens are those of a model that is told neither.
    nothing = SamplingConfig(age_guidance=0.0, previous_guidance=0.0, guidance_ramp=False)
    blind = generate_tokens(model, quantiser, previous, AGES[:2], nothing)
    assert torch.equal(blind[0], blind[1])
    assert not torch.equal(blind[0], plain[0])


def tell_scales(
    model: NeuroARTransformer, quantiser: MultiScaleQuantiser, previous: Tensor, target: Tensor, **hidden: Tensor
) -> Tensor:
    """Logits of all scales, told from the given tokens, with something hidden from everybody."""
    inputs = quantiser.teacher_inputs(target, GRID)
    return model(inputs, AGES[: len(target)], describe_previous(quantiser, previous, GRID), **hidden).logits


@pytest.mark.parametrize("ramp", [True, False])
def test_guidance_over_ages_is_vars_formula(quantiser: MultiScaleQuantiser, ramp: bool) -> None:
    model, previous = nudge(small_config().build()).eval(), draw_tokens(small_config(), 2)
    made = generate_tokens(model, quantiser, previous, AGES[:2], SamplingConfig(age_guidance=2.5, guidance_ramp=ramp))
    everybody = torch.ones(2, dtype=torch.bool)
    told = tell_scales(model, quantiser, previous, made)
    hidden = tell_scales(model, quantiser, previous, made, hide_ages=everybody)
    cfg, last = 1.5, len(model.config.scales) - 1
    for k, (start, end) in enumerate(zip(model.config.ends[:-1], model.config.ends[1:], strict=True)):
        t = cfg * k / last if ramp else cfg
        logits = (1 + t) * told[:, start:end] - t * hidden[:, start:end]
        assert torch.equal(logits.argmax(-1), made[:, start:end])
    assert not torch.equal(made, generate_tokens(model, quantiser, previous, AGES[:2]))


def test_guidance_over_both_adds_the_ways_to_the_previous_scan_and_to_the_ages(quantiser: MultiScaleQuantiser) -> None:
    model, previous = nudge(small_config().build()).eval(), draw_tokens(small_config(), 2)
    sampling = SamplingConfig(age_guidance=3.0, previous_guidance=0.5, guidance_ramp=False)
    made = generate_tokens(model, quantiser, previous, AGES[:2], sampling)
    everybody = torch.ones(2, dtype=torch.bool)
    told = tell_scales(model, quantiser, previous, made)
    ageless = tell_scales(model, quantiser, previous, made, hide_ages=everybody)
    nothing = tell_scales(model, quantiser, previous, made, hide_ages=everybody, hide_previous=everybody)
    assert torch.equal((nothing + 0.5 * (ageless - nothing) + 3 * (told - ageless)).argmax(-1), made)


@pytest.mark.parametrize(
    ("changes", "sampling", "message"),
    [
        ({"age_dropout": 0.0}, {"age_guidance": 2.0}, r"cannot be guided.*age_dropout 0.*--model.age-dropout 0.1"),
        ({"age_dropout": 0.0}, {"previous_guidance": 2.0}, "cannot be guided"),
        ({"previous_dropout": 0.0}, {"previous_guidance": 2.0}, r"given previous_dropout 0"),
        ({"previous": "none"}, {"previous_guidance": 2.0}, "sees no previous scan"),
    ],
)
def test_a_model_from_which_nothing_was_hidden_is_not_guided(
    quantiser: MultiScaleQuantiser, changes: dict[str, Any], sampling: dict[str, float], message: str
) -> None:
    model, previous = small_config(**changes).build().eval(), draw_tokens(small_config(), 1)
    with pytest.raises(ConfigError, match=message):
        generate_tokens(model, quantiser, previous, AGES[:1], SamplingConfig(**sampling))


def test_guidance_by_ages_alone_needs_no_hidden_previous_scans(quantiser: MultiScaleQuantiser) -> None:
    model, previous = small_config(previous_dropout=0.0).build().eval(), draw_tokens(small_config(), 1)
    assert len(generate_tokens(model, quantiser, previous, AGES[:1], SamplingConfig(age_guidance=2.0))) == 1


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


def test_drawn_tokens_follow_from_the_generator(quantiser: MultiScaleQuantiser) -> None:
    model, previous = nudge(small_config().build()).eval(), draw_tokens(small_config(), 2)
    sampling = SamplingConfig(temperature=1.0)
    one, again, other = (
        generate_tokens(model, quantiser, previous, AGES[:2], sampling, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with pytest.raises(ConfigError, match="generator"):
        generate_tokens(model, quantiser, previous, AGES[:2], sampling)


def draw_codes(shares: list[float], **sampling: Any) -> Tensor:
    logits = torch.tensor(shares).log().expand(1, 4000, -1)
    drawn = choose_codes(logits, SamplingConfig(temperature=1.0, **sampling), torch.Generator().manual_seed(0))
    return torch.bincount(drawn.flatten(), minlength=len(shares)) / 4000


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    # Five standard deviations of a share among 4000 draws are 0.04.
    torch.testing.assert_close(draw_codes([0.5, 0.3, 0.2]), torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.04)


def test_top_k_and_top_p_leave_the_unlikely_out() -> None:
    shares = [0.1, 0.5, 0.15, 0.25]
    expected = torch.tensor([0.0, 0.5 / 0.75, 0.0, 0.25 / 0.75])
    torch.testing.assert_close(draw_codes(shares, top_k=2), expected, rtol=0, atol=0.04)
    torch.testing.assert_close(draw_codes(shares, top_p=0.6), expected, rtol=0, atol=0.04)
    assert draw_codes(shares, top_p=0.01).tolist() == [0, 1, 0, 0]


def test_a_low_temperature_is_greedy() -> None:
    logits = torch.randn(2, 50, 9)
    cold = choose_codes(logits, SamplingConfig(temperature=1e-4), torch.Generator().manual_seed(0))
    assert torch.equal(cold, logits.argmax(-1))


def test_it_learns_one_pair_by_heart(quantiser: MultiScaleQuantiser) -> None:
    model = small_config(width=32, num_heads=2, depth=1, age_dropout=0.0, previous_dropout=0.0).build().train()
    previous, target = draw_tokens(model.config, 1), draw_tokens(model.config, 1, seed=1)
    shown, inputs = describe_previous(quantiser, previous, GRID), quantiser.teacher_inputs(target, GRID)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = model(inputs, AGES[:1], shown).logits
        functional.cross_entropy(logits[0], target[0]).backward()
        optimizer.step()
    assert torch.equal(generate_tokens(model.eval(), quantiser, previous, AGES[:1]), target)


def test_parameters_of_the_papers_size_are_as_many_as_counted() -> None:
    with torch.device("meta"):
        paper, shared = NeuroARConfig().build(), NeuroARConfig(adaln="shared").build()
    counts = [sum(p.numel() for p in one.parameters()) for one in (paper, shared)]
    assert NeuroARConfig().num_tokens == 1536
    # 744 and 549 million, counted without the age embedding, whose merging layer has 3 million.
    assert counts == [pytest.approx(744e6, rel=0.01), pytest.approx(549e6, rel=0.01)]


@pytest.mark.parametrize("age", [float("nan"), -1.0, 200.0])
def test_ages_that_are_none_are_refused(age: float, quantiser: MultiScaleQuantiser) -> None:
    model, previous = small_config().build().eval(), draw_tokens(small_config(), 1)
    with pytest.raises(ModelError, match="ages are none"):
        generate_tokens(model, quantiser, previous, torch.tensor([[60.0, age]]))


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


def test_generation_on_kept_keys_is_generation_by_whole_passes(
    model: NeuroARTransformer, quantiser: MultiScaleQuantiser
) -> None:
    previous = draw_tokens(model.config, 3)
    expected = generate_by_whole_passes(model, quantiser, previous, AGES)
    assert torch.equal(generate_tokens(model, quantiser, previous, AGES), expected)


def test_the_benchmark_times_what_is_equal() -> None:
    found = measure(width=64, depth=1, previous="channel", ages=2, repeats=1, bfloat16=False)
    assert found["equal_tokens"] > 0.99  # of codes with random weights two may be as likely, but for rounding
    assert found["num_tokens"] == 1536


def make_levelled() -> MultiScaleQuantiser:
    """A quantiser with scales of different sizes, and codes far from each other."""
    torch.manual_seed(0)
    quantiser = MultiScaleQuantiser(QuantiserConfig(num_codes=12, code_dim=4, num_scales=3, level_sizes=True))
    quantiser.levels.sizes.copy_(torch.tensor([0.2, 1.5, 0.7]))
    return quantiser.eval()


@pytest.mark.parametrize("share", [-30.0, 30.0])
def test_untrained_a_nearest_head_tells_what_the_previous_scan_asks_for(share: float) -> None:
    """From its codes alone, the same codes; from all that it has, what a residual quantiser would look up in it."""
    quantiser = make_levelled()
    model = small_config(quantiser=quantiser.config, head="nearest").build().eval()
    model.adopt(quantiser)
    with torch.no_grad():
        model.head.share_whole.fill_(share)
    previous = draw_tokens(model.config, 2)
    made = generate_tokens(model, quantiser, previous, AGES[:2])
    expected = previous if share < 0 else quantiser.encode(quantiser.decode(previous, GRID))
    assert torch.equal(made, expected)


def test_a_nearest_head_confuses_near_codes_before_far_ones() -> None:
    quantiser = make_levelled()
    model = small_config(quantiser=quantiser.config, head="nearest").build().eval()
    model.adopt(quantiser)
    with torch.no_grad():
        model.head.share_whole.fill_(-30)
    previous = draw_tokens(model.config, 1)
    logits = tell(model, quantiser, previous, previous)
    codes = quantiser.codebook.codes
    far = torch.cdist(codes[previous[0]], codes).square()
    sharpness = 0.4
    # Distances from the told code, up to what is the same for all.
    expected = -far * sharpness / 2
    torch.testing.assert_close(logits[0] - logits[0].amax(-1, keepdim=True), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", [{"previous": "sequence"}, {"previous": "none"}])
def test_a_nearest_head_needs_the_previous_scan_beside_the_target(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="need that scan beside the target"):
        small_config(head="nearest", **changes)


def test_the_mean_over_codes_moves_with_every_year_where_chosen_codes_stay() -> None:
    quantiser = make_levelled()
    model = nudge(small_config(quantiser=quantiser.config, head="nearest").build()).eval()
    with torch.no_grad():
        model.head.change.weight.mul_(0.05)
        model.head.codes.copy_(quantiser.codebook.codes)
    previous = draw_tokens(model.config, 1)
    ages = torch.tensor([[60.0, 60.0 + 0.25 * step] for step in range(8)])
    chosen = generate_latent(model, quantiser, previous, ages)
    mean = generate_latent(model, quantiser, previous, ages, SamplingConfig(decode="mean"))
    assert torch.equal(chosen.latent, quantiser.decode(chosen.tokens, GRID))
    steps = (mean.latent[1:] - mean.latent[:-1]).flatten(1).norm(dim=1)
    assert (steps > 0).all()
    stays = (chosen.tokens[1:] == chosen.tokens[:-1]).all(1)
    assert stays.any()
    with pytest.raises(ConfigError, match="only chosen codes are drawn"):
        SamplingConfig(decode="mean", temperature=1.0)


def test_a_sharp_mean_over_codes_is_the_likeliest_code() -> None:
    quantiser = make_levelled()
    model = nudge(small_config(quantiser=quantiser.config, head="nearest").build()).eval()
    model.adopt(quantiser)
    with torch.no_grad():
        model.head.log_sharpness.fill_(1.2)
    previous = draw_tokens(model.config, 2)
    one, other = (
        generate_latent(model, quantiser, previous, AGES[:2], SamplingConfig(decode=how)) for how in ("mean", "codes")
    )
    assert torch.equal(one.tokens, other.tokens)
    torch.testing.assert_close(one.latent, other.latent, rtol=1e-4, atol=1e-4)


def test_drift_is_the_average_change_where_it_stands_out_from_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    first = 50 + 30 * torch.rand(40, generator=generator)
    ages = torch.stack([first, first + 2 + 10 * torch.rand(40, generator=generator)], 1)
    decades, midway = (ages[:, 1] - ages[:, 0]) / 10, ages.mean(1) / 10
    change, speeding = torch.zeros(2, 4, *GRID)
    change[:, 0, 0, 0] = torch.tensor([1.0, -2.0, 0.5, 0.0])
    speeding[:, 0, 0, 0] = torch.tensor([0.0, -1.0, 0.5, 0.0])
    noise = 0.2 * torch.randn(40, 4, *GRID, generator=generator)
    true = [part.view(-1, 1, 1, 1, 1) for part in (decades, decades * (midway - 7.0))]
    drift = measure_drift(true[0] * change + true[1] * speeding + noise, ages, [(1, 1, 1), GRID])
    # A standard error is 0.2 / sqrt(sum of squares), about 0.05.
    at_seven = drift.rate + (7.0 - drift.centre) * drift.speeding
    torch.testing.assert_close(at_seven[1], change[:, 0, 0, 0], rtol=0, atol=0.2)
    torch.testing.assert_close(at_seven[0], change.mean((1, 2, 3)), rtol=0, atol=0.06)
    torch.testing.assert_close(drift.speeding[1], speeding[:, 0, 0, 0], rtol=0, atol=0.2)
    for found in (drift.rate, drift.speeding):
        elsewhere = found[2:].square().sum(1)
        # By chance about half of four standard errors squared exceed their mean.
        assert (elsewhere == 0).float().mean() > 0.3
        assert elsewhere.max() < 0.1


def test_a_drift_of_pairs_at_one_age_does_not_change_with_age() -> None:
    ages = torch.tensor([[60.0, 62.0]]).expand(5, -1)
    changes = torch.randn(4, *GRID, generator=torch.Generator().manual_seed(3)).expand(5, -1, -1, -1, -1)
    drift = measure_drift(changes, ages, [GRID])
    assert drift.centre == pytest.approx(6.1)
    torch.testing.assert_close(drift.rate, changes[0].flatten(1).T * 5)
    assert not drift.speeding.any()


def test_without_training_a_nearest_head_moves_by_the_drift_and_vectors_round_nothing_off() -> None:
    quantiser = make_levelled()
    for refiner in quantiser.refiners:
        refiner.share = 0.0  # what is looked up is added as it is
    model = small_config(quantiser=quantiser.config, head="nearest").build().eval()
    model.adopt(quantiser)
    changes = torch.randn(4, *GRID, generator=torch.Generator().manual_seed(3)).expand(5, -1, -1, -1, -1)
    # Before 60 nothing would change, and ten years later twice as much as at 65.
    first = torch.linspace(60, 70, 5)
    pace = (first + 1 - 60) / 5
    model.start_from(pace.view(-1, 1, 1, 1, 1) * changes, torch.stack([first, first + 2], 1))
    with torch.no_grad():
        model.head.share_whole.fill_(30)
    previous, ages = draw_tokens(model.config, 1), torch.tensor([[66.0, 66.0], [64.0, 68.0], [70.0, 65.0]])
    made = generate_latent(model, quantiser, previous, ages, SamplingConfig(decode="vectors")).latent
    whole = quantiser.decode(previous, GRID)
    # In two years `(midway - 60) / 5`, so in a decade five times as much.
    expected = whole + torch.tensor([0.0, 0.4 * 6, -0.5 * 7.5]).view(3, 1, 1, 1, 1) * changes[:1]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_a_linear_head_has_no_vectors_to_decode(quantiser: MultiScaleQuantiser) -> None:
    model = small_config().build().eval()
    with pytest.raises(ConfigError, match="no vector"):
        generate_latent(model, quantiser, draw_tokens(model.config, 1), AGES[:1], SamplingConfig(decode="vectors"))


def test_what_is_open_is_filled_by_the_recipe_and_drawn_codes_are_what_is_decoded() -> None:
    assert SamplingConfig().complete("mean", "scan") == SamplingConfig(decode="mean", detail="scan")
    assert SamplingConfig(decode="codes", detail="none").complete("mean", "scan") == SamplingConfig(
        decode="codes", detail="none"
    )
    assert SamplingConfig(temperature=1.0).complete("mean", "scan").decode == "codes"


def test_the_page_of_speeds_says_what_was_not_measured() -> None:
    page = measure_page(quick=True)
    assert "1 blocks of width 64" in page
    if not torch.cuda.is_available():
        assert "not measured" in page
    assert [line.count("|") for line in page.splitlines() if line.startswith("| `")] == [9, 9]

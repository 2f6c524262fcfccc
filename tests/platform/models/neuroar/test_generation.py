"""Generation: cached passes, guidance, draws, and what the benchmark of its speed compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.small_transformer import AGES, GRID, draw_tokens, nudge, small_config, tell
from torch import Tensor
from torch.nn import functional

from neuroray.config import ConfigError
from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.benchmark import generate_by_whole_passes, measure, measure_page
from neuroray.platform.models.neuroar.generate import SamplingConfig, choose_codes, generate_tokens
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer, describe_previous


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


def test_generation_on_kept_keys_is_generation_by_whole_passes(
    model: NeuroARTransformer, quantiser: MultiScaleQuantiser
) -> None:
    previous = draw_tokens(model.config, 3)
    expected = generate_by_whole_passes(model, quantiser, previous, AGES)
    assert torch.equal(generate_tokens(model, quantiser, previous, AGES), expected)


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


@pytest.mark.parametrize("age", [float("nan"), -1.0, 200.0])
def test_ages_that_are_none_are_refused(age: float, quantiser: MultiScaleQuantiser) -> None:
    model, previous = small_config().build().eval(), draw_tokens(small_config(), 1)
    with pytest.raises(ModelError, match="ages are none"):
        generate_tokens(model, quantiser, previous, torch.tensor([[60.0, age]]))


def test_what_is_open_is_filled_by_the_recipe_and_drawn_codes_are_what_is_decoded() -> None:
    assert SamplingConfig().complete("mean", "scan") == SamplingConfig(decode="mean", detail="scan")
    assert SamplingConfig(decode="codes", detail="none").complete("mean", "scan") == SamplingConfig(
        decode="codes", detail="none"
    )
    assert SamplingConfig(temperature=1.0).complete("mean", "scan").decode == "codes"


def test_the_benchmark_times_what_is_equal() -> None:
    found = measure(width=64, depth=1, previous="channel", ages=2, repeats=1, bfloat16=False)
    assert found["equal_tokens"] > 0.99  # of codes with random weights two may be as likely, but for rounding
    assert found["num_tokens"] == 1536


def test_the_page_of_speeds_says_what_was_not_measured() -> None:
    page = measure_page(quick=True)
    assert "1 blocks of width 64" in page
    if not torch.cuda.is_available():
        assert "not measured" in page
    assert [line.count("|") for line in page.splitlines() if line.startswith("| `")] == [9, 9]

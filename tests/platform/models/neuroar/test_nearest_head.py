"""The head that tells codes by their distance: what it starts from, what it learns, what is decoded of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contracts.small_transformer import AGES, GRID, draw_tokens, make_levelled, nudge, small_config, tell

from neuroray.config import ConfigError
from neuroray.platform.models.neuroar.drift import Drift
from neuroray.platform.models.neuroar.generate import SamplingConfig, generate_latent, generate_tokens
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import describe_previous


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
    half = pace.view(-1, 1, 1, 1, 1) * changes / 2
    model.start_from(-half, half, torch.stack([first, first + 2], 1))
    with torch.no_grad():
        model.head.share_whole.fill_(30)
    previous, ages = draw_tokens(model.config, 1), torch.tensor([[66.0, 66.0], [64.0, 68.0], [70.0, 65.0]])
    made = generate_latent(model, quantiser, previous, ages, SamplingConfig(decode="vectors")).latent
    whole = quantiser.decode(previous, GRID)
    # In two years `(midway - 60) / 5`, so in a decade five times as much.
    expected = whole + torch.tensor([0.0, 0.4 * 6, -0.5 * 7.5]).view(3, 1, 1, 1, 1) * changes[:1]
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_what_a_scan_has_at_a_place_changes_how_it_moves_there() -> None:
    quantiser = make_levelled()
    for refiner in quantiser.refiners:
        refiner.share = 0.0
    model = small_config(quantiser=quantiser.config, head="nearest").build().eval()
    model.adopt(quantiser)
    number = model.config.num_tokens
    leaning = torch.zeros(number, 4, 4)
    leaning[:, 1, 2] = 0.5
    still = Drift(torch.zeros(number, 4), torch.zeros(number, 4), leaning, torch.full((number, 4), 0.25), 6.0)
    with torch.no_grad():
        model.head.drift_by(still)
        model.head.share_whole.fill_(30)
    previous, ages = draw_tokens(model.config, 1), torch.tensor([[60.0, 70.0], [60.0, 55.0]])
    made = generate_latent(model, quantiser, previous, ages, SamplingConfig(decode="vectors")).latent
    whole = quantiser.decode(previous, GRID)
    expected = whole.repeat(2, 1, 1, 1, 1)
    # The first channel stays as it is, so that the rate of the second is the same halfway.
    expected[:, 2] += torch.tensor([1.0, -0.5]).view(2, 1, 1, 1) * 0.5 * (whole[:, 1] - 0.25)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


def test_a_linear_head_has_no_vectors_to_decode(quantiser: MultiScaleQuantiser) -> None:
    model = small_config().build().eval()
    with pytest.raises(ConfigError, match="no vector"):
        generate_latent(model, quantiser, draw_tokens(model.config, 1), AGES[:1], SamplingConfig(decode="vectors"))

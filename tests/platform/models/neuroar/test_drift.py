"""Drift: what is found of a known change of latents, and what chance is not taken for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuroray.platform.models.neuroar.drift import measure_drift

GRID = (3, 2, 2)
NUM_PLACES = 12


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
    half = (true[0] * change + true[1] * speeding + noise) / 2
    drift = measure_drift(-half, half, ages, [(1, 1, 1), GRID])
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
    drift = measure_drift(-changes / 2, changes / 2, ages, [GRID])
    assert drift.centre == pytest.approx(6.1)
    torch.testing.assert_close(drift.rate, changes[0].flatten(1).T * 5)
    assert not drift.speeding.any()
    assert not drift.leaning.any()


def test_how_change_depends_on_what_is_at_a_place_is_found_there_and_foretells_others() -> None:
    generator = torch.Generator().manual_seed(1)
    before, ages = draw_people(120, generator)
    leaning = torch.zeros(NUM_PLACES, 4, 4)
    leaning[5] = torch.tensor([[0.0, 1.0, 0, 0], [0, 0, -0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0.8]])
    after = let_age(before, ages, leaning) + 0.05 * torch.randn(before.shape, generator=generator)
    drift = measure_drift(before, after, ages, [GRID])
    # Contents are those halfway, which differ from the first visit's by as much as these have moved.
    torch.testing.assert_close(drift.leaning[5], leaning[5], rtol=0, atol=0.25)
    elsewhere = drift.leaning[torch.arange(NUM_PLACES) != 5]
    assert elsewhere.abs().max() < 0.15
    others, their_ages = draw_people(50, generator)
    true = (let_age(others, their_ages, leaning) - others).flatten(2)[:, :, 5]
    decades = (their_ages[:, 1] - their_ages[:, 0]) / 10
    beyond = others.flatten(2)[:, :, 5] - drift.contents[5]
    halfway = beyond + decades[:, None] / 2 * (drift.rate[5] + beyond @ drift.leaning[5])
    told = decades[:, None] * (drift.rate[5] + halfway @ drift.leaning[5])
    assert (told - true).square().mean() < 0.05 * true.square().mean()


def test_chance_in_one_visit_is_not_taken_for_a_way_back() -> None:
    generator = torch.Generator().manual_seed(2)
    people, ages = draw_people(120, generator)
    before, after = (people + 0.7 * torch.randn(people.shape, generator=generator) for _ in range(2))
    drift = measure_drift(before, after, ages, [GRID])
    # What is regressed on the first visit alone would be -0.7^2 / (1 + 0.7^2) over the mean of the decades: about -0.6.
    assert drift.leaning.diagonal(dim1=1, dim2=2).mean().abs() < 0.05


def test_where_contents_foretell_nothing_they_are_left_out_of_account() -> None:
    generator = torch.Generator().manual_seed(3)
    before, ages = draw_people(12, generator)
    moved = torch.randn(before.shape, generator=generator)
    drift = measure_drift(before - moved / 2, before + moved / 2, ages, [GRID])
    # Twelve people, four channels: without a ridge, or by one chosen on the people it is fitted to, beyond 1 by chance.
    assert drift.leaning.abs().max() < 0.3


def draw_people(number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    first = 50 + 30 * torch.rand(number, generator=generator)
    ages = torch.stack([first, first + 2 + 10 * torch.rand(number, generator=generator)], 1)
    return torch.randn(number, 4, *GRID, generator=generator), ages


def let_age(before: Tensor, ages: Tensor, leaning: Tensor) -> Tensor:
    """Latents whose rate depends on themselves, in small steps."""
    decades = ((ages[:, 1] - ages[:, 0]) / 10)[:, None, None]
    now = before.flatten(2).transpose(1, 2)
    for _ in range(100):
        now = now + decades / 100 * torch.einsum("ptc,tcd->ptd", now, leaning)
    return now.transpose(1, 2).unflatten(2, GRID)

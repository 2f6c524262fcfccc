"""The training people's mean change: what it finds in volumes whose change is known, and what it adds to a scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.brain_cohort import TOKENIZER

from neuroray.platform.baselines.brain_change import fit_latent_change, fit_population_change
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.latent_diffusion import LatentDiffusionConfig, fit_latent_diffusion
from neuroray.platform.evaluate.visits import Visit, VisitPair
from neuroray.storage.records import ScanRecord

GRID = (12, 8, 8)
BASE = np.random.default_rng(0).uniform(-0.3, 0.3, GRID).astype(np.float32)
RATE, STEEPER = (np.random.default_rng(seed).normal(0, 0.01, GRID).astype(np.float32) for seed in (1, 2))


def record(subject: str, age_years: float) -> ScanRecord:
    return ScanRecord(
        scan_id=f"{subject}-{age_years}", subject=subject, modality="T1w", path="", shape=GRID, dtype="float32",
        zooms_mm=(4.0, 4.0, 4.0), affine=tuple(np.diag([4.0, 4, 4, 1]).ravel()), voxels_sha256="", manifest_sha256="",
        size_bytes=0, written_at="", age_years=age_years,
    )  # fmt: skip


def read(one: ScanRecord) -> Visit:
    """Everybody has the same brain at 60, which changes faster and faster."""
    years = float(one.age_years or 0) - 60
    volume = BASE + np.float32(years) * RATE + np.float32(years**2 / 20) * STEEPER
    brain = np.ones(GRID, bool)
    brain[0] = False
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    return Visit(record=one, volume=np.where(brain, volume, -1).astype(np.float32), brain=brain, tokens=tokens)


def pairs() -> list[VisitPair]:
    ages = [(52.0, 56.0), (55.0, 62.5), (61.0, 63.0), (60.0, 68.0), (66.0, 70.0)]
    return [VisitPair(previous=record(str(n), one), target=record(str(n), two)) for n, (one, two) in enumerate(ages)]


def test_a_change_that_is_linear_in_gap_and_age_is_found_exactly() -> None:
    fitted = fit_population_change(pairs(), read)
    scan = read(record("new", 57.0))
    for age in (50.0, 57.0, 64.5):
        told = fitted.tell(scan, age)
        # A parabola over age is linear in the gap and in the gap times the mean age, so there is no error but rounding.
        assert told.volume == pytest.approx(read(record("new", age)).volume, abs=2e-5)
        assert told.start is scan.volume
        assert told.tokens is None


def test_values_stay_within_the_range_and_the_brain() -> None:
    told = fit_population_change(pairs(), read).tell(read(record("new", 57.0)), 400.0).volume
    assert told.min() == -1
    assert told.max() == 1
    assert (told[0] == -1).all()


def test_one_pair_is_enough_and_none_is_not() -> None:
    one = pairs()[:1]
    told = fit_population_change(one, read).tell(read(one[0].previous), 56.0).volume
    assert told == pytest.approx(read(one[0].target).volume, abs=2e-5)
    with pytest.raises(BaselineError, match="no training pairs"):
        fit_population_change([], read)


def test_the_latent_rate_is_that_of_least_squares_and_is_added() -> None:
    torch.manual_seed(0)
    tokenizer = TOKENIZER.build().eval()
    fitted = fit_latent_change(pairs(), read, tokenizer)
    latents = [
        [tokenizer.encode_latent(torch.from_numpy(read(one).volume)[None]) for one in (pair.previous, pair.target)]
        for pair in pairs()
    ]
    gaps = [pair.gap_years for pair in pairs()]
    expected = sum(gap * (after - before) for gap, (before, after) in zip(gaps, latents, strict=True))
    assert torch.allclose(fitted.rate, expected / sum(gap**2 for gap in gaps), atol=1e-6)
    scan = read(record("new", 57.0))
    latent = tokenizer.encode_latent(torch.from_numpy(scan.volume)[None])
    told = fitted.tell(scan, 62.0)
    assert np.allclose(told.volume, tokenizer.decode_latent(latent + 5 * fitted.rate)[0].numpy(), atol=1e-6)
    assert np.allclose(told.start, tokenizer.decode_latent(latent)[0].numpy(), atol=1e-6)
    assert not np.allclose(told.volume, told.start, atol=1e-6)


def test_a_small_diffusion_learns_which_way_latents_move() -> None:
    torch.manual_seed(0)
    tokenizer = TOKENIZER.build().eval()
    config = LatentDiffusionConfig(channels=8, num_blocks=1, num_steps=150, num_draw_steps=4, num_draws=2)
    fitted = fit_latent_diffusion(pairs(), read, tokenizer, config)
    pair = pairs()[3]
    before, after = (
        tokenizer.encode_latent(torch.from_numpy(read(one).volume)[None]) for one in (pair.previous, pair.target)
    )
    drawn = fitted.draw_change(before, pair.ages_years).mean(0, keepdim=True)
    # Most of the change of a pair that it has learned from, where saying nothing leaves all of it.
    assert (before + drawn - after).square().mean() < 0.3 * (before - after).square().mean()
    told = fitted.tell(read(pair.previous), pair.ages_years[1])
    again = fit_latent_diffusion(pairs(), read, tokenizer, config).tell(read(pair.previous), pair.ages_years[1])
    assert np.array_equal(told.volume, again.volume)
    assert not np.array_equal(told.volume, told.start)
    with pytest.raises(BaselineError, match="no training pairs"):
        fit_latent_diffusion([], read, tokenizer, config)

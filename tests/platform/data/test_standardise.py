"""Scores of each voxel over its window: by the formula, on odd sizes, whatever is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from neuroray.config import ConfigError
from neuroray.platform.data.augment import AugmentConfig, augment
from neuroray.platform.data.standardise import BY_SCAN, StandardiseConfig, read_standard, standardise

SHAPE = (19, 5, 7, 3)  # frames: not a multiple of what is worked on at once
BY_VOXEL = StandardiseConfig(by="voxel")
SCALES = ((1.0, 0.0), (0.25, -30.0))


def make_batch(stored: Tensor, brain: Tensor | None, *, held: int = SHAPE[0]) -> dict[str, Tensor]:
    """Rows of stored numbers with different scalings; statistics that a score by voxel must not depend on."""
    count = len(stored)
    batch = {
        "voxels": stored,
        "frame_mask": (torch.arange(stored.shape[1]) < held).expand(count, -1),
        "slope": torch.tensor([scale for scale, _ in SCALES][:count]),
        "intercept": torch.tensor([offset for _, offset in SCALES][:count]),
        "mean": torch.tensor([700.0, 120.0])[:count],
        "std": torch.tensor([150.0, 40.0])[:count],
        "minimum": torch.tensor([3.0, -29.0])[:count],
    }
    return batch if brain is None else {**batch, "brain": brain.expand(count, *SHAPE[1:])}


def make_stored(dtype: torch.dtype = torch.int16) -> Tensor:
    """Voxels of very different brightness, each of which fluctuates by a per cent or so."""
    generator = torch.Generator().manual_seed(4)
    level = torch.randint(300, 3000, (2, 1, *SHAPE[1:]), generator=generator)
    return (level * (1 + 0.02 * torch.randn(2, *SHAPE, generator=generator))).round().to(dtype)


def make_brain() -> Tensor:
    brain = torch.zeros(SHAPE[1:], dtype=torch.bool)
    brain[1:, 2:6] = True
    return brain


def score_by_hand(stored: Tensor, present: np.ndarray) -> np.ndarray:
    """Each voxel minus its mean over its own spread, over the frames in which it is present; 0 elsewhere."""
    masked = np.ma.masked_array(stored.double().numpy(), mask=~np.broadcast_to(present, stored.shape))
    spread = masked.std(axis=0)
    return ((masked - masked.mean(axis=0)) / np.where(spread == 0, np.inf, spread)).filled(0)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float32, torch.float64])
def test_each_voxel_has_mean_0_and_spread_1_over_its_window_and_no_scale_matters(dtype: torch.dtype) -> None:
    stored, brain = make_stored(dtype), make_brain()
    scores = standardise(make_batch(stored, brain), config=BY_VOXEL)
    assert scores.dtype == torch.float32
    for row, own in zip(scores, stored, strict=True):
        # float32 numbers of up to 20 standard deviations of a scan, of which a voxel's spread is a tenth.
        np.testing.assert_allclose(row.numpy(), score_by_hand(own, brain.numpy()), atol=1e-4)
    assert (scores[:, :, ~brain] == 0).all()
    assert scores[:, :, brain].double().mean(1).abs().max() < 1e-5


def test_padding_and_frames_that_were_not_acquired_count_in_no_mean() -> None:
    stored, brain = make_stored(), make_brain()
    stored[0, 16:] = 0
    stored[0, 5][brain] = 77
    stored[0, 11] = 0
    batch = make_batch(stored[:1], brain, held=16)
    scores = standardise(batch, config=BY_VOXEL)[0]
    frames = np.ones((SHAPE[0], 1, 1, 1), bool)
    frames[[5, 11, 16, 17, 18]] = False
    np.testing.assert_allclose(scores.numpy(), score_by_hand(stored[0], frames & brain.numpy()), atol=1e-4)
    assert (scores[[5, 11, 16, 17, 18]] == 0).all()
    assert scores[4].any()


def test_values_that_are_no_numbers_are_left_out_voxel_by_voxel() -> None:
    stored, brain = make_stored(torch.float32), make_brain()
    stored[0, 3, 1, 2, 0], stored[0, 9, 2, 3, 1] = torch.nan, torch.inf
    scores = standardise(make_batch(stored[:1], brain), config=BY_VOXEL)[0]
    assert scores.isfinite().all()
    present = np.isfinite(stored[0].numpy()) & brain.numpy()
    np.testing.assert_allclose(scores.numpy(), score_by_hand(stored[0].nan_to_num(0, 0, 0), present), atol=1e-4)


def test_a_voxel_that_does_not_fluctuate_is_0_and_not_noise() -> None:
    stored, brain = make_stored(), make_brain()
    stored[:, :, 3, 4, 1] = 1234
    scores = standardise(make_batch(stored, brain), config=BY_VOXEL)
    assert (scores[:, :, 3, 4, 1] == 0).all()
    assert (scores[:, :, 3, 4, 2] != 0).any()
    single = standardise(make_batch(stored[:, :1], brain, held=1), config=BY_VOXEL)
    assert (single == 0).all(), "one frame has no fluctuation"


def test_without_a_mask_a_value_of_0_is_background_and_no_part_of_a_voxels_mean() -> None:
    stored = make_stored()
    stored[1, :, 0] = 120  # a value of 0 by the second row's scaling
    stored[1, 7, 2, 2, 2] = 120
    scores = standardise(make_batch(stored, None), config=BY_VOXEL)[1]
    np.testing.assert_allclose(scores.numpy(), score_by_hand(stored[1], stored[1].numpy() != 120), atol=1e-4)
    assert (scores[:, 0] == 0).all()


def test_half_precision_is_that_of_the_scores_not_of_the_values() -> None:
    batch = make_batch(make_stored(), make_brain())
    found, exact = (standardise(batch, dtype, config=BY_VOXEL) for dtype in (torch.float16, torch.float32))
    torch.testing.assert_close(found.float(), exact, atol=1e-6, rtol=1e-3)  # 11 bits


def test_chance_changes_leave_the_background_of_either_kind_alone() -> None:
    brain = make_brain()
    batch = make_batch(make_stored(), brain)
    scores = standardise(batch, config=BY_VOXEL)
    torch.manual_seed(0)
    config = AugmentConfig(noise=0.5, drop_frames=0.4)
    changed = augment(scores.clone(), batch["frame_mask"], config, background=BY_VOXEL.background)
    assert (changed[:, :, ~brain] == 0).all()
    blank = (changed == 0).all(dim=(2, 3, 4))
    assert 0 < blank.sum() < blank.numel()
    moved = (changed - scores)[~blank][:, brain]
    assert float(moved.std()) == pytest.approx(0.5, rel=0.15)  # of some 700 draws: five standard errors


def test_half_of_the_windows_change_sign_and_nothing_else_changes() -> None:
    scores = standardise(make_batch(make_stored(), make_brain()), config=BY_VOXEL)
    many = scores[:1].expand(64, -1, -1, -1, -1).clone()
    torch.manual_seed(1)
    mask = torch.ones(64, SHAPE[0], dtype=torch.bool)
    changed = augment(many.clone(), mask, AugmentConfig(flip_sign=True), background=0.0)
    kept, flipped = ((changed == sign * many).flatten(1).all(dim=1) for sign in (1, -1))
    assert (kept ^ flipped).all()
    assert 16 < flipped.sum() < 48  # four standard deviations of 64 throws


def test_drift_is_taken_out_of_each_voxel_as_least_squares_have_it() -> None:
    """Against numpy's polynomial fit, with frames missing in between and at the end."""
    stored, brain = make_stored(torch.float32), make_brain()
    place = torch.arange(SHAPE[0])[:, None, None, None]
    stored += 3 * place - 0.4 * place**2
    stored[0, 5] = 0
    config = StandardiseConfig(by="voxel", drift_degree=2)
    scores = standardise(make_batch(stored[:1], brain, held=17), config=config)[0]
    held = np.array([frame not in (5, 17, 18) for frame in range(SHAPE[0])])
    times, values = np.flatnonzero(held), stored[0][:, brain].double().numpy()[held]
    fitted = np.polynomial.polynomial.polyval(times, np.polynomial.polynomial.polyfit(times, values, 2)).T
    rest = values - fitted
    np.testing.assert_allclose(scores[:, brain].numpy()[held], rest / rest.std(axis=0), atol=1e-4)
    assert (scores[~torch.from_numpy(held)] == 0).all()


@pytest.mark.parametrize("held", [1, 2, 3])
def test_of_as_many_frames_as_drift_has_terms_nothing_is_left(held: int) -> None:
    config = StandardiseConfig(by="voxel", drift_degree=2)
    batch = make_batch(make_stored(), make_brain(), held=held)
    # What rounding leaves is below the least spread: not blown up to scores of 1.
    assert (standardise(batch, config=config) == 0).all()


def test_drift_goes_with_voxels() -> None:
    with pytest.raises(ConfigError, match="given by scan, drift_degree 2"):
        StandardiseConfig(drift_degree=2)


def test_a_card_without_the_word_is_of_a_model_by_scan() -> None:
    drifting = StandardiseConfig(by="voxel", drift_degree=2)
    assert read_standard({}) == BY_SCAN
    assert read_standard({"standardise": drifting.to_json()}) == drifting

import numpy as np
import pytest
import torch

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.predictors import Features, Sample, Task
from neuroray.platform.baselines.swin4d import BlockAttention, Swin4D, _join, _split, fit_swin4d, may_see
from neuroray.platform.baselines.voxel_windows import RunWindows


def _tokens(shape=(2, 6, 7, 5, 9, 8), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_blocks_are_cut_and_joined_without_a_change():
    tokens = _tokens((2, 4, 6, 2, 8, 3))
    blocks = _split(tokens, (2, 3, 1, 4))
    assert blocks.shape == (2 * 2 * 2 * 2 * 2, 2 * 3 * 1 * 4, 3)
    assert torch.equal(blocks[0].view(2, 3, 1, 4, 3), tokens[0, :2, :3, :1, :4])
    assert torch.equal(_join(blocks, (2, 3, 1, 4), (4, 6, 2, 8)), tokens)


def _neighbours(module, tokens, place):
    """Which tokens the answer at a place depends on."""
    tokens = tokens.clone().requires_grad_(True)
    module(tokens)[0][place].sum().backward()
    return tokens.grad[0].abs().sum(dim=-1) > 0


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (5, 6, 4, 8), (3, 2, 1, 5), (2, 5, 3, 3)])
@pytest.mark.parametrize("is_shifted", [False, True])
def test_a_token_sees_its_block_and_nothing_that_was_wrapped_round(place, is_shifted):
    torch.manual_seed(0)
    tokens = _tokens()
    seen = _neighbours(BlockAttention(8, 2, is_shifted=is_shifted), tokens, place)
    shape, offset = seen.shape, 2 if is_shifted else 0
    expected = torch.ones(shape, dtype=torch.bool)
    for axis, (at, length) in enumerate(zip(place, shape, strict=True)):
        # Blocks of four from the shift on; what is before it is a block of its own.
        same = torch.tensor([(at + 4 - offset) // 4 == (other + 4 - offset) // 4 for other in range(length)])
        expected &= same.view([-1 if axis == dimension else 1 for dimension in range(4)])
    assert torch.equal(seen, expected)


def test_padding_is_seen_by_nobody():
    mask = may_see((3, 4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4), (0, 0, 0, 0))
    padded = torch.zeros(4, 4, 4, 4, dtype=torch.bool)
    padded[3] = True
    seen_by_others = mask[0][~padded.flatten()][:, padded.flatten()]
    assert not seen_by_others.any()
    assert mask.any(dim=-1).all()


def test_every_weight_learns_and_rows_do_not_mix():
    torch.manual_seed(0)
    module = Swin4D((9, 10, 8), 6, 2)
    voxels = _tokens((3, 6, 9, 10, 8))
    outputs = module(voxels)
    assert outputs.shape == (3, 2)
    outputs.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    # One scan's lowest value fills up the grid of all in a batch: given alone it must be the same.
    voxels[:, 0, 0, 0, 0] = -9.0
    with torch.no_grad():
        torch.testing.assert_close(module(voxels)[1:2], module(voxels[1:2]), atol=1e-5, rtol=1e-5)


def _features(store, scan_ids):
    nothing = np.zeros((len(scan_ids), 1), dtype=np.float32)
    return Features(edges=nothing, levels=nothing, num_regions=2, runs=RunWindows(store, scan_ids, num_frames=8))


def test_windows_are_the_stored_frames_standardised_and_leave_none_out(planted):
    runs = RunWindows(planted, ["p000_bold", "p001_bold"], num_frames=20)
    owners, read = runs.cover()
    # Fifty frames in windows of twenty: two, and a third that ends with the run.
    assert owners.tolist() == [0, 0, 0, 1, 1, 1]
    scan, mask, found = (
        planted.read("p001_bold"),
        planted.read_mask("p001_bold"),
        planted.read_statistics("p001_bold"),
    )
    scores = (np.asarray(scan.voxels) - found.mean) / found.std
    for place, start in ((3, 0), (4, 20), (5, 30)):
        window = read(np.array([place]))[0].numpy()
        # Standardised in float32 at a level of some ten deviations.
        np.testing.assert_allclose(window[:, mask], scores[start : start + 20][:, mask], atol=1e-3)
    middle = runs.middle(np.array([1]))[0].numpy()
    np.testing.assert_allclose(middle[:, mask], scores[15:35][:, mask], atol=1e-3)


def test_random_windows_begin_anywhere_and_follow_their_generator(planted):
    runs = RunWindows(planted, ["p000_bold"], num_frames=45)
    first, again = (runs.draw(np.zeros(6, dtype=int), np.random.default_rng(0)) for _ in range(2))
    assert torch.equal(first, again)
    assert len({float(window.sum()) for window in first}) > 1


def test_a_fitted_model_says_the_same_with_the_same_seed_and_averages_windows(planted, monkeypatch):
    from neuroray.platform.baselines import swin4d
    from neuroray.platform.baselines.network_training import NetworkRecipe

    monkeypatch.setattr(swin4d, "_RECIPE", NetworkRecipe(num_epochs=2, batch_size=4))
    scan_ids = [f"p{number:03d}_bold" for number in range(8)]
    values = np.arange(8) % 2.0
    sample = Sample(features=_features(planted, scan_ids), values=values, groups=np.array(scan_ids))
    task = Task(kind="classification", num_classes=2, seed=0)
    told = fit_swin4d(sample, sample, task)(sample.features)
    assert told.shape == (8, 2)
    np.testing.assert_allclose(told.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(fit_swin4d(sample, sample, task)(sample.features), told)


def test_a_model_of_voxels_without_runs_is_refused():
    nothing = np.zeros((4, 1), dtype=np.float32)
    features = Features(edges=nothing, levels=nothing, num_regions=2)
    sample = Sample(features=features, values=np.arange(4) % 2.0, groups=np.arange(4))
    with pytest.raises(BaselineError, match="needs runs to read"):
        fit_swin4d(sample, sample, Task(kind="classification", num_classes=2, seed=0))

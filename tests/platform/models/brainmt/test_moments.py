"""Moments of frame tokens: components, values, frames that are not held, and what the head makes of them."""

import numpy as np
import pytest
import torch

from neuroray.config import ConfigError
from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.platform.models.brainmt.cost import count_parameters
from neuroray.platform.models.brainmt.model import MomentsHead
from neuroray.platform.models.brainmt.moments import PrincipalMoments, count_moments, find_held
from neuroray.platform.models.errors import ModelError


def small(**changes: object) -> BrainMTConfig:
    sizes = {"grid_shape": (19, 17, 18), "num_frames": 5, "width": 4, "mamba_depth": 1, "attention_depth": 1}
    return BrainMTConfig(
        **(sizes | {"pool": "moments", "num_components": 6, "num_outputs": 3, "checkpoint": False} | changes)
    )


def fitted(frames: torch.Tensor, num_components: int) -> PrincipalMoments:
    moments = PrincipalMoments(frames.shape[3], frames.shape[2], num_components)
    moments.fit((window[None], torch.ones(1, len(window), dtype=torch.bool)) for window in frames)
    return moments


def mixed(num_windows: int, num_frames: int, seed: int = 0) -> torch.Tensor:
    """Tokens of 3 places and 5 channels in which three signals of falling strength are mixed, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    signals = torch.randn(num_windows, num_frames, 3, generator=generator) * torch.tensor([5.0, 2.0, 1.0])
    mixing = torch.randn(3, 15, generator=torch.Generator().manual_seed(99))
    noise = 0.05 * torch.randn(num_windows, num_frames, 15, generator=generator)
    return (signals @ mixing + noise + 4).unflatten(2, (5, 3))


def test_axes_and_variances_are_those_of_numpy():
    frames = mixed(9, 21)
    moments = fitted(frames, 3)
    rows = (frames - frames.mean(1, keepdim=True)).flatten(2).flatten(0, 1).double().numpy()
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    # A sketch of 12 of 15 directions, behind a gap of four orders of magnitude; float32 buffers.
    np.testing.assert_allclose(moments.variances.numpy(), values[::-1][:3], rtol=1e-4)
    alike = np.abs((moments.axes.double().numpy() * vectors[:, ::-1][:, :3]).sum(0))
    np.testing.assert_allclose(alike, 1, atol=1e-4)


def test_they_are_the_weighted_correlations_and_log_variances_of_numpy():
    frames = mixed(9, 21)
    moments = fitted(frames, 3)
    found = moments(frames, torch.ones(9, 21, dtype=torch.bool))
    assert found.shape == (9, count_moments(3))
    weights = (moments.variances / moments.variances[0]).numpy() ** 0.25
    for row, window in zip(found, frames.flatten(2).double().numpy(), strict=True):
        scores = window @ moments.axes.double().numpy() / np.sqrt(moments.variances.numpy())
        expected = np.corrcoef(scores.T)
        np.fill_diagonal(expected, np.log(scores.var(axis=0)) / 2)
        expected *= np.outer(weights, weights)
        # float32 sums of 21 products of numbers around 1 after those of 15 around 10
        np.testing.assert_allclose(row.numpy(), expected[np.triu_indices(3)], atol=1e-4)


def test_the_same_windows_give_the_same_components():
    assert torch.equal(fitted(mixed(9, 21), 3).axes, fitted(mixed(9, 21), 3).axes)


def test_frames_that_are_not_held_do_not_count():
    moments = fitted(mixed(9, 21), 3)
    frames = mixed(1, 9, seed=1)
    held = torch.tensor([[True, True, False, True, True, False, True, False, True]])
    spoiled = frames.clone()
    spoiled[~held] = torch.nan
    torch.testing.assert_close(moments(spoiled, held), moments(frames[:, held[0]], held[:, held[0]]))
    assert moments(frames, held & False).abs().max() == 0
    one = torch.arange(9)[None] == 4
    assert moments(frames, one).abs().max() == 0


def test_components_of_too_few_or_still_frames_and_tokens_of_another_grid_are_refused():
    with pytest.raises(ModelError, match="too few frames"):
        fitted(mixed(1, 3), 3)
    with pytest.raises(ModelError, match="too few frames"):
        fitted(torch.ones(3, 7, 5, 3), 2)
    with pytest.raises(ModelError, match="another grid"):
        fitted(mixed(9, 21), 3)(torch.ones(1, 4, 5, 8), torch.ones(1, 4, dtype=torch.bool))


def test_padding_and_lost_frames_are_those_of_one_value():
    voxels = torch.randn(2, 3, 4, 4, 5, generator=torch.Generator().manual_seed(2))
    voxels[0, 1], voxels[1, 2] = 0.0, -3.5
    assert find_held(voxels).tolist() == [[True, False, True], [True, True, False]]


def test_a_padded_window_has_the_moments_of_what_it_holds():
    model = small().build().eval()
    voxels = torch.randn(1, 6, 19, 17, 18, generator=torch.Generator().manual_seed(3))
    padded = torch.cat([voxels, torch.zeros(1, 2, 19, 17, 18)], dim=1)
    with torch.no_grad():
        whole, longer = (model(one).embedding[:, model.config.num_channels :] for one in (voxels, padded))
    # Products of other shapes are summed in another order: float32.
    torch.testing.assert_close(longer, whole, rtol=1e-4, atol=1e-6)


def test_the_head_says_nothing_at_first_and_its_token_is_not_scaled():
    model = small().build().eval()
    voxels = torch.randn(4, 5, 19, 17, 18, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        outputs, embedding = model(voxels)
        assert outputs.abs().max() == 0
        assert isinstance(model.head, MomentsHead)
        model.head.fit_scale(embedding)
        scaled = model.head[0](embedding)
    channels = model.config.num_channels
    assert torch.equal(scaled[:, :channels], embedding[:, :channels])
    moments = scaled[:, channels:]
    torch.testing.assert_close(moments.mean(0), torch.zeros(count_moments(6)), rtol=0, atol=1e-4)
    # All by one number: together they have a variance of 1, each its own.
    assert moments.var(0, correction=0).mean().item() == pytest.approx(1, rel=1e-4)
    assert moments.std(0).max() > 2 * moments.std(0).min()


def test_both_the_token_and_the_moments_are_learned_from():
    model = small().build()
    with torch.no_grad():
        model.head[1].weight.normal_()
    voxels = torch.randn(2, 5, 19, 17, 18, generator=torch.Generator().manual_seed(5))
    model(voxels).outputs.square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().max() > 0
        for name, parameter in model.named_parameters()
        if name.startswith(("mamba_layers", "attention_layers", "frame_encoder", "head"))
    )


def test_the_counted_parameters_are_those_of_the_model():
    config = small()
    counted = sum(count_parameters(config).values())
    assert counted == sum(parameter.numel() for parameter in config.build().parameters())


def test_moments_are_read_linearly():
    with pytest.raises(ConfigError, match="read linearly"):
        small(head="mlp")


def test_more_components_than_numbers_in_a_frame_are_refused():
    with pytest.raises(ConfigError, match="not so many components"):
        small(num_components=8 * 16 + 1)

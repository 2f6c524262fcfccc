"""Second moments of frame tokens: values, frames that are not held, and what the head makes of them."""

import numpy as np
import pytest
import torch

from neuroray.config import ConfigError
from neuroray.platform.models.brainmt import BrainMTConfig
from neuroray.platform.models.brainmt.cost import count_parameters
from neuroray.platform.models.brainmt.model import MomentsHead
from neuroray.platform.models.brainmt.moments import count_moments, find_held, second_moments


def small(**changes: object) -> BrainMTConfig:
    sizes = {"grid_shape": (19, 17, 18), "num_frames": 5, "width": 4, "mamba_depth": 1, "attention_depth": 1}
    return BrainMTConfig(**(sizes | {"pool": "moments", "num_outputs": 3, "checkpoint": False} | changes))


def test_they_are_the_covariances_of_numpy_averaged_over_places():
    frames = torch.randn(2, 7, 5, 3, generator=torch.Generator().manual_seed(0)) + 4
    found = second_moments(frames, torch.ones(2, 7, dtype=torch.bool))
    assert found.shape == (2, count_moments(5))
    for row, window in zip(found, frames.double().numpy(), strict=True):
        expected = np.mean([np.cov(window[:, :, place].T, bias=True) for place in range(3)], axis=0)
        # float32 of numbers around 4: 4**2 * 2**-24 * a few sums
        np.testing.assert_allclose(row.numpy(), expected[np.triu_indices(5)], atol=1e-5)


def test_frames_that_are_not_held_do_not_count():
    frames = torch.randn(1, 9, 4, 2, generator=torch.Generator().manual_seed(1))
    held = torch.tensor([[True, True, False, True, True, False, True, False, True]])
    spoiled = frames.clone()
    spoiled[~held] = 1e3
    torch.testing.assert_close(second_moments(spoiled, held), second_moments(frames[:, held[0]], held[:, held[0]]))
    assert second_moments(frames, held & False).abs().max() == 0


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
    torch.testing.assert_close(scaled[:, channels:].mean(0), torch.zeros(count_moments(channels)), rtol=0, atol=1e-4)


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


def test_covariances_are_read_linearly():
    with pytest.raises(ConfigError, match="read linearly"):
        small(head="mlp")

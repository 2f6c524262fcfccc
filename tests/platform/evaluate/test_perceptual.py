"""Perceptual distance against the formula on a network's own features, and files that are no weights of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.perceptual import NUM_SLICES, open_perceptual_meter, tell_perceptual
from neuroray.platform.models.errors import ModelError

NETWORK = "resnet10t"  # the smallest of its kind


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(5)
    return timm.create_model(NETWORK, pretrained=False).eval()


@pytest.fixture(scope="module")
def weights(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    one, other = generator.uniform(-1, 1, (2, 33, 35, 38)).astype(np.float32)
    brain = np.zeros(one.shape, bool)
    brain[3:30, 1:34, 5:38] = True
    return one, other, brain


def test_it_is_the_mean_distance_of_features_of_unit_length(network: torch.nn.Module, weights: Path) -> None:
    one, other, brain = volumes()
    found = open_perceptual_meter(str(weights), network=NETWORK).measure(one, other, brain)
    planes = []
    for axis in range(3):
        cut = [np.moveaxis(volume[3:30, 1:34, 5:38], axis, 0) for volume in (one, other)]
        places = [int((index + 0.5) * len(cut[0]) / NUM_SLICES) for index in range(NUM_SLICES)]
        slices = []
        for place in places:
            maps = [torch.from_numpy(volume[place].copy()).expand(1, 3, -1, -1) for volume in cut]
            looked = [network.forward_intermediates(each, indices=(1, 2, 3), intermediates_only=True) for each in maps]
            layers = [[layer / layer.norm(dim=1, keepdim=True) for layer in each] for each in looked]
            slices.append(np.mean([float(((a - b) ** 2).sum(1).mean().detach()) for a, b in zip(*layers, strict=True)]))
        planes.append(np.mean(slices))
    # Float32 sums in another order.
    assert found == pytest.approx(np.mean(planes), rel=1e-4)


def test_equal_volumes_are_at_0_and_what_lies_around_the_brain_counts_nothing(weights: Path) -> None:
    one, other, brain = volumes()
    meter = open_perceptual_meter(str(weights), network=NETWORK)
    assert meter.measure(one, one, brain) == 0
    beside = other.copy()
    beside[:3], beside[:, 34:], beside[:, :, :5] = 0.5, -1, 1
    assert meter.measure(one, beside, brain) == meter.measure(one, other, brain)
    nearer = one + np.float32(0.2) * (other - one)
    assert 0 < meter.measure(one, nearer, brain) < meter.measure(one, other, brain)


def test_either_kind_of_file_gives_the_same(network: torch.nn.Module, weights: Path, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    one, other, brain = volumes()
    meters = [open_perceptual_meter(str(path), network=NETWORK) for path in (weights, tmp_path / "weights.pt")]
    first, second = (meter.measure(one, other, brain) for meter in meters)
    assert first == second
    assert meters[0].sha256 != meters[1].sha256  # the file's, so that a report names it
    assert meters[0].sha256[:8] in tell_perceptual(meters[0])


def test_files_that_are_no_weights_of_the_network_are_refused(
    network: torch.nn.Module, weights: Path, tmp_path: Path
) -> None:
    def refuse(name: str, match: str, **asked: str) -> None:
        with pytest.raises((EvaluationError, ModelError), match=match):
            open_perceptual_meter(str(tmp_path / name), **{"network": NETWORK, **asked})

    refuse("nowhere.pt", "no perceptual weights here")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("no weights at all")
        refuse(name, "cannot be read")
    torch.save({"state_dict": network.state_dict()}, tmp_path / "nested.pt")
    refuse("nested.pt", "no tensors by name")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "head.pt")
    refuse("head.pt", "do not fit")
    state = network.state_dict()
    torch.save(state | {"conv1.0.weight": torch.zeros(3, 3)}, tmp_path / "shape.pt")
    refuse("shape.pt", "of another network")
    torch.save(state | {"conv1.0.weight": state["conv1.0.weight"] * float("nan")}, tmp_path / "nan.pt")
    refuse("nan.pt", "not finite")
    (tmp_path / "good.safetensors").write_bytes(weights.read_bytes())
    refuse("good.safetensors", "there is no such network", network="no_such_network")

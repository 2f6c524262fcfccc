"""Checkpoints are complete or absent, and what is not whole is never continued from."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from neuroray.platform.train.checkpointing import Checkpoints, load_model, read_manifest, verify_checkpoint
from neuroray.platform.train.manifest import CheckpointError, Progress
from neuroray.platform.train.parallel import Team
from neuroray.storage.locations import Location

IDENTITY = {"recipe": "r", "catalogue_version": 3}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "s3":
        return Location(request.getfixturevalue("s3_bucket")).child("run", "checkpoints")
    return Location(str(tmp_path / "checkpoints"))


def test_what_was_saved_is_restored_bit_for_bit(location: Location):
    module, optimizer = _trained(3)
    progress = Progress(step=3, best_step=2, best_scores={"val_auc": 0.75}, evaluations_since_best=1)
    _checkpoints(location).save(module, optimizer, progress)
    other, other_optimizer = _trained(1)
    assert _checkpoints(location, attempt="b").restore(other, other_optimizer) == progress
    _assert_same(other, module)
    for left, right in zip(
        optimizer.state_dict()["state"].values(), other_optimizer.state_dict()["state"].values(), strict=True
    ):
        assert left["exp_avg"].any()
        for name, value in left.items():
            assert torch.equal(value, right[name]), name


def test_a_checkpoint_without_its_manifest_is_skipped(location: Location, caplog: pytest.LogCaptureFixture):
    names = _save_two(location)
    location.child(names[1]).delete("manifest.json")
    with caplog.at_level(logging.WARNING):
        assert _restore_step(location) == 3
    assert f"{names[1]} is skipped" in caplog.text


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
@pytest.mark.parametrize("object_name", ["__0_0.distcp", "metadata", "manifest.json"])
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, damage: str, object_name: str):
    location = Location(str(tmp_path))
    names = _save_two(location)
    path = tmp_path / names[1] / object_name
    data = bytearray(path.read_bytes())
    if damage == "lose":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        verify_checkpoint(location, names[1])
    assert _restore_step(location) == 3


def test_a_checkpoint_whose_best_is_damaged_is_skipped(tmp_path: Path):
    location = Location(str(tmp_path))
    checkpoints = _checkpoints(location, keep=3)
    module, optimizer = _trained(1)
    best = checkpoints.save(module, optimizer, Progress(step=1, best_step=1, best_checkpoint=checkpoints.name_at(1)))
    checkpoints.save(module, optimizer, Progress(step=2))
    checkpoints.save(module, optimizer, Progress(step=3, best_step=1, best_checkpoint=best))
    (tmp_path / best / "__0_0.distcp").unlink()
    assert _restore_step(location) == 2


def test_nothing_usable_is_a_fresh_start(location: Location):
    assert _restore_step(location) == 0


def test_the_newest_and_the_best_stay(location: Location):
    checkpoints = _checkpoints(location, keep=2)
    module, optimizer = _trained(1)
    for step in range(1, 6):
        best = checkpoints.name_at(2) if step >= 2 else None
        checkpoints.save(module, optimizer, Progress(step=step, best_checkpoint=best))
    assert [int(name.split("-")[1]) for name in location.names()] == [2, 4, 5]


def test_what_a_dead_attempt_left_goes_with_the_next_checkpoint(location: Location):
    names = _save_two(location)
    location.child(names[1]).delete("manifest.json")
    module, optimizer = _trained(1)
    checkpoints = _checkpoints(location, attempt="later", keep=1)
    assert checkpoints.restore(module, optimizer).step == 3
    written = checkpoints.save(module, optimizer, Progress(step=4))
    assert location.names() == [written]


def test_two_attempts_at_the_same_step_do_not_mix(location: Location):
    module, optimizer = _trained(2)
    first = _checkpoints(location, attempt="a", keep=5).save(module, optimizer, Progress(step=2))
    other, other_optimizer = _trained(3)
    second = _checkpoints(location, attempt="b", keep=5).save(other, other_optimizer, Progress(step=2))
    assert first != second
    verify_checkpoint(location, second)


def test_weights_alone_are_loaded_for_export(location: Location):
    module, optimizer = _trained(2)
    name = _checkpoints(location).save(module, optimizer, Progress(step=2))
    other, _ = _trained(1)
    manifest = load_model(location, name, other)
    assert manifest == read_manifest(location, name)
    _assert_same(other, module)


def _trained(num_steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(num_steps)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(num_steps):
        optimizer.zero_grad()
        (module(torch.randn(5, 3)) ** 2).mean().backward()
        optimizer.step()
    return module, optimizer


def _checkpoints(location: Location, *, attempt: str = "a", keep: int = 2) -> Checkpoints:
    return Checkpoints(location, Team(), attempt=attempt, keep=keep, identity=IDENTITY)


def _save_two(location: Location) -> list[str]:
    checkpoints = _checkpoints(location)
    module, optimizer = _trained(2)
    return [checkpoints.save(module, optimizer, Progress(step=step)) for step in (3, 6)]


def _restore_step(location: Location) -> int:
    return _checkpoints(location, attempt="next").restore(*_trained(1)).step


def _assert_same(left: nn.Module, right: nn.Module) -> None:
    for name, value in right.state_dict().items():
        assert torch.equal(left.state_dict()[name], value), name

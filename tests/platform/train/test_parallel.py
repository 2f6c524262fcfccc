"""Sharded over ranks is the same as on one: losses, scores, weights, whatever the batch sizes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import toy_training
from contracts.feature_cohort import MODEL, write_feature_cohort
from contracts.ranks import run_ranks
from contracts.toy_training import toy_run, train_each
from ray import cloudpickle

from neuroray.platform.train.launch import train_on_ray
from neuroray.platform.train.loop import Run, prepare_run, train_worker
from neuroray.platform.train.metrics_log import curve, read_metrics
from neuroray.platform.train.parallel import Team, gather_rows, seeded
from neuroray.platform.train.recipe import LoopConfig, ScalingConfig
from neuroray.platform.train.tasks.dinoatten3d import DinoAtten3DRecipe
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.locations import Location

# float32 sums over rows in another order differ by 1e-7 of values near 1, carried on through 5 to 16 steps of Adam.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two runs, in process and on two ranks: `toy` (of which `broken` is a half), and `dinoatten3d` on made-up data.

    22 people in batches of 7 make ranks of 3 and 4 rows, and of 0 and 1 at the end of an epoch.
    """
    root = tmp_path_factory.mktemp("runs")
    store = write_feature_cohort(root / "store")
    model = dataclasses.replace(MODEL, standardise=True)
    recipe = DinoAtten3DRecipe(model=model, loop=LoopConfig(batch_size=7, num_epochs=1))
    runs = {
        size: [
            _run(root / f"on-{size}" / "toy"),
            prepare_run(recipe, store=store.uri, folder=Location(f"{root}/on-{size}/dinoatten3d")),
        ]
        for size in (1, 2)
    }
    train_each(runs[1])
    run_ranks(train_each, [*runs[2], _run(root / "on-2" / "broken", break_at=9)])
    return {size: root / f"on-{size}" for size in (1, 2)}


@pytest.fixture
def runs(folders: dict[int, Path]) -> dict[int, Path]:
    return {size: folder / "toy" for size, folder in folders.items()}


def _rows(folder: Path) -> list[dict[str, Any]]:
    times = ("seconds", "samples_per_s")
    rows = read_metrics(Location(str(folder)))
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def _weights(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model" / "model.json").read_text())["weights"]


def _run(folder: Path, **changes: Any) -> Run:
    return toy_run(str(folder), num_train=22, select_by="val_loss", **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "name"),
    [("train", "loss"), ("train", "spread"), ("train", "gradient_norm"), ("val", "auc"), ("val", "loss")],
)
def test_two_ranks_with_unequal_rows_follow_the_curve_of_one(runs: dict[int, Path], split: str, name: str):
    one, two = (curve(read_metrics(Location(str(runs[size]))), split, name) for size in (1, 2))
    assert len(one) == (16 if split == "train" else 4)
    assert two == pytest.approx(one, abs=TOLERANCE)


@pytest.mark.slow
def test_two_ranks_end_with_the_weights_of_one(runs: dict[int, Path]):
    one, two = _weights(runs[1]), _weights(runs[2])
    assert one["number.bias"] != [0.0]
    for name, values in one.items():
        torch.testing.assert_close(torch.tensor(two[name]), torch.tensor(values), atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_dinoatten3d_on_two_ranks_equals_one_after_five_steps(folders: dict[int, Path]):
    one, two = (Location(str(folders[size] / "dinoatten3d")) for size in (1, 2))
    for name in ("loss", "contrastive", "variance"):
        expected = curve(read_metrics(one), "train", name)
        assert len(expected) == 5
        assert curve(read_metrics(two), "train", name) == pytest.approx(expected, abs=TOLERANCE)
    expected, found = (load_weights(run.child("model"))[0] for run in (one, two))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # A softmax does not see a shift of all scores: this bias has no gradient but rounding, which Adam blows up.
        if name != "head.attention.score.bias":
            torch.testing.assert_close(found[name], value, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_is_continued_by_one(folders: dict[int, Path]):
    """The interrupted half on two ranks, the rest in process: the same curve as in one go."""
    broken = folders[2] / "broken"
    assert train_worker(_run(broken)).resumed_from == 8
    curves = [curve(read_metrics(Location(str(path))), "train", "loss") for path in (folders[1] / "toy", broken)]
    assert curves[1] == pytest.approx(curves[0], abs=TOLERANCE)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)  # two starts of a worker group: 40 s on an idle machine, minutes on a busy one
def test_a_worker_killed_under_ray_changes_nothing(runs: dict[int, Path], tmp_path: Path, ray_session: Any):
    """Rank 1 is killed in step 9; Ray starts both again from the checkpoint: bit for bit the undisturbed run."""
    cloudpickle.register_pickle_by_value(toy_training)  # the workers cannot import from tests
    scaling = ScalingConfig(num_workers=2, max_failures=1)
    disturbed = _run(tmp_path / "run", break_at=9, kill_once=str(tmp_path / "killed"), scaling=scaling)
    result = train_on_ray(disturbed)
    assert (tmp_path / "killed").exists()
    assert result.resumed_from == 8
    assert _rows(tmp_path / "run") == _rows(runs[2])
    assert _weights(tmp_path / "run") == _weights(runs[2])


def test_alone_rows_are_left_as_they_are():
    rows = torch.randn(3, 2)
    assert gather_rows(rows, [3], Team()) is rows


def test_seeded_draws_leave_the_generator_outside_untouched():
    expected = torch.manual_seed(3) and torch.rand(2)
    torch.manual_seed(3)
    with seeded(11):
        first = torch.rand(4)
    assert torch.equal(torch.rand(2), expected)
    with seeded(11):
        assert torch.equal(torch.rand(4), first)

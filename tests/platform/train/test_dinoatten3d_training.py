"""DinoAtten3D through the loop: what is refused, what is recorded, what is exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.fault_proxy import FaultProxy
from contracts.feature_cohort import MODEL, write_feature_cohort

from neuroray.platform.evaluate.protocol import evaluate
from neuroray.platform.models.dinoatten3d import DinoAtten3DConfig
from neuroray.platform.train.loop import Run, fit, prepare_run
from neuroray.platform.train.metrics_log import curve, read_metrics
from neuroray.platform.train.recipe import DataConfig, LoopConfig, RecipeError
from neuroray.platform.train.run_folder import read_recipe
from neuroray.platform.train.tasks.dinoatten3d import DinoAtten3DRecipe
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.features import FeatureStore
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_feature_cohort(tmp_path_factory.mktemp("cohort") / "store")


def make_recipe(**changes: Any) -> DinoAtten3DRecipe:
    settings: dict[str, Any] = {"name": "dinoatten3d:tiny", "model": MODEL, "loop": LoopConfig(num_epochs=8), **changes}
    return DinoAtten3DRecipe(**settings)


def test_it_learns_what_tells_the_groups_apart(store: ScanStore, tmp_path: Path):
    result = fit(make_recipe(), store=store.uri, out=str(tmp_path))
    assert result.best_scores["val_auc"] > 0.9
    rows = curve(read_metrics(Location(str(tmp_path))), "train", "loss")
    assert rows[16] < 0.7 * rows[1]


def test_the_exported_folder_alone_rebuilds_the_model(store: ScanStore, tmp_path: Path):
    fit(make_recipe(), store=store.uri, out=str(tmp_path))
    weights, card, training = load_weights(tmp_path / "model")
    model = DinoAtten3DConfig.from_json(card["model"]).build(load_weights=False)
    model.load_state_dict(weights)
    assert model.encoder.hash_weights() == card["encoder_sha256"]
    assert model.encoder.fingerprint(model.config.slices) == card["feature_fingerprint"]
    assert card["classes"] == ["control", "disease"]
    assert card["spacing_mm"] == [[2.0, 2.0, 2.0], [2.0, 2.0, 3.0]]
    assert training["split_counts"]["train"] == {"control": 16, "disease": 16}
    assert training["best_step"] % 2 == 0


def test_the_run_folder_says_what_the_run_was(store: ScanStore, tmp_path: Path):
    recipe = make_recipe()
    fit(recipe, store=store.uri, out=str(tmp_path))
    recorded = read_recipe(Location(str(tmp_path)))
    assert recorded.fingerprint() != recipe.fingerprint()  # it has the catalogue's version pinned
    assert recorded == dataclasses.replace(
        recipe, data=DataConfig(version=ScanStore(store.uri).version, store=store.uri)
    )
    split = json.loads((tmp_path / "splits.json").read_text())
    assert len(split["train"]) + len(split["val"]) + len(split["test"]) == 40
    assert len(split["left_out"]) == 1


def test_released_leaves_attention_and_classifier_as_they_were_drawn(store: ScanStore, tmp_path: Path):
    recipe = make_recipe(train_scope="released")
    drawn = recipe.task().build().state_dict()
    fit(recipe, store=store.uri, out=str(tmp_path))
    weights, _, _ = load_weights(tmp_path / "model")
    for name, value in drawn.items():
        assert torch.equal(weights[f"head.{name}"], value) == (not name.startswith("embedding.")), name


def test_features_are_standardised_by_the_training_people_alone(store: ScanStore, tmp_path: Path):
    recipe = make_recipe(model=dataclasses.replace(MODEL, standardise=True))
    fit(recipe, store=store.uri, out=str(tmp_path))
    weights, card, _ = load_weights(tmp_path / "model")
    split = json.loads((tmp_path / "splits.json").read_text())
    features = FeatureStore(store, card["feature_fingerprint"])
    read = (features.read(scan_id) for scan_id in split["train"])
    scans = np.stack([one.features[one.mask].astype(np.float64).mean(0) for one in read])
    # float64 sums stored as float32
    np.testing.assert_allclose(weights["head.feature_mean"], scans.mean(0), atol=1e-6)
    np.testing.assert_allclose(weights["head.feature_scale"], scans.std(0), rtol=1e-6)


def test_a_finished_run_started_again_says_so_and_changes_nothing(store: ScanStore, tmp_path: Path):
    first = fit(make_recipe(), store=store.uri, out=str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    second = fit(make_recipe(), store=store.uri, out=str(tmp_path))
    assert second == dataclasses.replace(first, was_finished=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_another_recipe_in_the_same_folder_is_refused_by_field(store: ScanStore, tmp_path: Path):
    fit(make_recipe(), store=store.uri, out=str(tmp_path))
    other = make_recipe(seed=3, loop=LoopConfig(num_epochs=9))
    with pytest.raises(RecipeError, match=r"seed: 0 -> 3; loop.num_epochs: 8 -> 9"):
        fit(other, store=store.uri, out=str(tmp_path))


def test_scans_added_meanwhile_do_not_change_a_run_that_goes_on(tmp_path: Path):
    store = write_feature_cohort(tmp_path / "store")
    first = prepare_run(make_recipe(), store=store.uri, folder=Location(str(tmp_path / "run")))
    _start(first)
    scan = store.read("sub-000_T1w")
    moved = dataclasses.replace(scan, voxels=np.asarray(scan.voxels) + 1)
    store.write(moved, scan_id="sub-900_T1w", subject="900", modality="T1w")
    again = prepare_run(make_recipe(), store=store.uri, folder=Location(str(tmp_path / "run")))
    assert again == first
    newest = dataclasses.replace(make_recipe(), data=DataConfig(version=store.version))
    with pytest.raises(RecipeError, match=r"data\.version"):
        prepare_run(newest, store=store.uri, folder=Location(str(tmp_path / "run")))


def test_missing_features_name_the_command_that_makes_them(tmp_path: Path):
    store = write_feature_cohort(tmp_path, num_people=20, with_features=False)
    with pytest.raises(RecipeError, match=r"18 of 18 scans.*neuroray extract .* --recipe dinoatten3d:tiny"):
        fit(make_recipe(), store=store.uri, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataConfig(modality="bold")}, "no scans to train on.*41 scans of T1w"),
        ({"data": DataConfig(classes=("disease",))}, "one class of diagnosis"),
        ({"model": dataclasses.replace(MODEL, num_classes=3)}, "3 classes, diagnosis has 2"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(
    store: ScanStore, tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(RecipeError, match=message):
        fit(make_recipe(**changes), store=store.uri, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_target_that_is_not_the_label_of_the_split_is_refused():
    with pytest.raises(RecipeError, match=r"--data\.target sex --split\.stratify-by sex"):
        make_recipe(data=DataConfig(target="sex"))


@pytest.mark.s3
def test_a_run_folder_may_be_a_bucket(store: ScanStore, s3_bucket: str):
    recipe = make_recipe(loop=LoopConfig(num_epochs=2, checkpoint_every_steps=1))
    result = fit(recipe, store=store.uri, out=f"{s3_bucket}/runs/first")
    run = Location(f"{s3_bucket}/runs/first")
    assert [row["step"] for row in read_metrics(run) if row["split"] == "train"] == [1, 2, 3, 4]
    assert run.child("tensorboard").names()
    load_weights(result.model)
    assert fit(recipe, store=store.uri, out=f"{s3_bucket}/runs/first").was_finished


@pytest.mark.s3
def test_neither_training_nor_evaluation_writes_to_the_store(
    s3_server: str, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = write_feature_cohort(f"{s3_bucket}/store")
    with FaultProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        rule = proxy.add("access denied", method="PUT|POST|DELETE|PATCH")
        fit(make_recipe(loop=LoopConfig(num_epochs=2)), store=store.uri, out=str(tmp_path / "run"))
        assert evaluate(tmp_path / "run", num_resamples=100).num_people > 0
        assert proxy.requests
    assert rule.met == 0, "something was written"


def _start(run: Run) -> None:
    """As far as a run comes that dies before its first checkpoint."""
    from neuroray.platform.train.run_folder import write_start

    write_start(run.folder, run.recipe, run.cohort)

"""The first stage through the loop, and its encoder in the second: the way of the weights, and who may not judge."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.age_cohort import MODEL, tiny, write_age_cohort

from neuroray.platform.data.extract import extract_features
from neuroray.platform.data.pictures import PictureReader
from neuroray.platform.data.plan import PlanError, ReadItem
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.models.brainrotvit.classifier import AGE_SEX_CLASSES, SliceClassifierConfig
from neuroray.platform.models.layers.encoder import SliceEncoderConfig
from neuroray.platform.models.layers.resampled_slices import ResampledStackConfig, resample_slices
from neuroray.platform.train.loop import fit, prepare_run
from neuroray.platform.train.motion_range import with_motion
from neuroray.platform.train.recipe import DataConfig, LoopConfig, RecipeError
from neuroray.platform.train.slice_features import feature_fingerprint, use_encoder
from neuroray.platform.train.tasks.brainrotvit_encoder import BrainRotViTEncoderRecipe
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

SLICES = ResampledStackConfig(num_slices=3, image_size=32, sampling="spread", normalisation="volume")


def make_recipe(**changes: Any) -> BrainRotViTEncoderRecipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": SliceClassifierConfig(
            slices=SLICES, encoder=SliceEncoderConfig(backbone="test_vit", readout="mean"), rank=2
        ),
        "split": SplitConfig(stratify_by="age_years", num_bins=3),
        "loop": LoopConfig(batch_size=8, num_epochs=1, select_by="val_loss"),
        **changes,
    }
    return BrainRotViTEncoderRecipe(**settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store", with_features=False)


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1")
    fit(make_recipe(), store=store.uri, out=str(folder))
    return folder


def test_pictures_are_those_of_the_stack(store: ScanStore) -> None:
    reader = PictureReader(store.uri, store.version, SLICES, labels={"sub-001_T1w": 4})
    expected = resample_slices(torch.tensor(store.read("sub-001_T1w").voxels), SLICES).images[:, 0]
    for index in range(3):
        row = reader(ReadItem(scan_id="sub-001_T1w", start=index, stop=index + 1))
        assert np.array_equal(row["picture"], (expected[index] * 255).round().to(torch.uint8).numpy())
        assert row["label"] == 4
    with pytest.raises(PlanError, match="one by one"):
        reader(ReadItem(scan_id="sub-001_T1w"))


def test_pictures_of_volumes_are_no_runs_whose_motion_is_measured(store: ScanStore, tmp_path: Path) -> None:
    run = prepare_run(make_recipe(), store=store.uri, folder=Location(str(tmp_path / "run")))
    assert run.cohort.num_frames
    assert with_motion(run, 20) is run


def test_its_plan_holds_every_picture_of_those_with_age_and_sex(store: ScanStore) -> None:
    from neuroray.platform.train.loop import training_plan

    recipe = make_recipe()
    cohort = recipe.task().prepare(store)
    records = {record.scan_id: record for record in store.records()}
    assert all(records[one].sex in ("M", "F") and records[one].age_years for one in cohort.split.train)
    items = training_plan(recipe, cohort).reads(0)
    assert {(item.scan_id, item.start) for item in items} == {(one, i) for one in cohort.split.train for i in range(3)}
    assert len(items) == 3 * len(cohort.split.train)
    reader = recipe.task().reader(cohort)
    record = records[items[0].scan_id]
    decade = int((record.age_years or 0) // 10)
    assert AGE_SEX_CLASSES[int(reader(items[0])["label"])] == f"{10 * decade:03d}{record.sex}"


def test_its_people_are_on_the_sides_of_the_second_stage(store: ScanStore) -> None:
    first = make_recipe().task().prepare(store).split
    second = tiny(model=dataclasses.replace(MODEL)).split
    from neuroray.platform.data.splits import split_subjects

    dealt = split_subjects(store.records(), second, catalogue_version=store.version)
    assert set(first.train) < set(dealt.train)
    assert set(first.val) <= set(dealt.val)
    assert first.test == dealt.test


def test_its_encoder_makes_the_features_of_the_second_stage(store: ScanStore, run: Path, tmp_path: Path) -> None:
    model = use_encoder(MODEL, str(run))
    assert feature_fingerprint(model) != feature_fingerprint(MODEL)
    done = extract_features(store, model, [record.scan_id for record in store.records()])
    assert done.fingerprint == feature_fingerprint(model)
    assert len(done.extracted) == 61
    recipe = tiny(model=model, loop=LoopConfig(num_epochs=1, select_by="val_mae"))
    fit(recipe, store=store.uri, out=str(tmp_path))
    _, card, _ = load_weights(tmp_path / "model")
    assert card["model"]["encoder"]["weights_file"] == "model.safetensors"  # no place of this machine
    assert card["feature_fingerprint"] == done.fingerprint


def test_people_who_trained_the_encoder_may_not_judge(store: ScanStore, run: Path, tmp_path: Path) -> None:
    other = SplitConfig(stratify_by="age_years", num_bins=3, fold=2)
    recipe = tiny(model=use_encoder(MODEL, str(run)), split=other)
    with pytest.raises(RecipeError, match="test people have trained or selected the encoder"):
        fit(recipe, store=store.uri, out=str(tmp_path))


def test_the_card_of_an_encoder_names_nobody(run: Path) -> None:
    text = (run / "model" / "config.json").read_text()
    assert "sub-" not in text
    assert len(json.loads(text)["trained_on"]) > 30


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no encoder here"):
        use_encoder(MODEL, str(tmp_path))
    with pytest.raises(RecipeError, match="single pictures"):
        make_recipe(data=DataConfig(target="age_years"))
    with pytest.raises(RecipeError, match="cannot be selected"):
        make_recipe(loop=LoopConfig(select_by="val_mae"))

"""BrainRotViT for classes: learns what is planted, nothing from shuffled labels, and answers as any model does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.age_cohort import MODEL
from fastapi.testclient import TestClient

from neuroray.jobs import evaluate, export, predict
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.data.targets import Target
from neuroray.platform.evaluate.loaded import load_measure_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.slice_measure import SliceClassModel
from neuroray.platform.train.loop import fit
from neuroray.platform.train.recipe import LoopConfig, OptimConfig, RecipeError
from neuroray.platform.train.slice_features import feature_fingerprint
from neuroray.platform.train.tasks.brainrotvit_classes import BrainRotViTClassRecipe
from neuroray.serve.config import ServeConfig
from neuroray.serve.packed_map import PackedReply, pack_reply
from neuroray.serve.predictor import load_predictor
from neuroray.serve.question import Question, ask_predictor
from neuroray.serve.routes import build_api
from neuroray.storage.bids import Participant
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.nifti import write_scan
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

NAMES = ("AD", "CN", "MCI")


def recipe(**changes: Any) -> BrainRotViTClassRecipe:
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": MODEL,
        "optim": OptimConfig(name="adamw", lr=3e-3),
        "split": SplitConfig(stratify_by="diagnosis", num_parts=4, num_folds=2),
        "loop": LoopConfig(num_epochs=12, select_by="val_auc", checkpoint_every_steps=1000),
    }
    return BrainRotViTClassRecipe(**settings | changes)


def write_cohort(store_uri: Path, *, num_people: int = 60, num_classes: int = 2) -> ScanStore:
    """Three people of the first class to one of each other; the class stands in a few places of the map."""
    store = ScanStore.create(str(store_uri))
    rng = np.random.default_rng(5)
    records, classes = [], []
    for number in range(num_people):
        index = max(0, number % (2 + num_classes) - 2)
        person = Participant(
            subject=f"{number:03d}", sex=("M", "F", None)[number % 3], age_years=50.0, diagnosis=NAMES[index]
        )
        voxels = rng.normal(100, 10, (8, 9, 7)).astype(np.float32)
        voxels[0] = 0
        scan = Scan(voxels=voxels, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
        scan_id = f"sub-{number:03d}_T1w"
        records.append(
            store.write(scan, scan_id=scan_id, subject=person.subject, modality="T1w", participant=person, commit=False)
        )
        classes.append(index)
    store.commit(records)
    cache = FeatureStore(store, feature_fingerprint(MODEL))
    cache.commit(
        [cache.write(one, _draw(rng, index), commit=False) for one, index in zip(records, classes, strict=True)]
    )
    return store


def _draw(rng: np.random.Generator, index: int) -> FeatureSet:
    slices, channels = MODEL.slices.num_slices, MODEL.num_channels
    features = rng.normal(size=(slices, channels)).astype(np.float32)
    features[3:9, 40 * index : 40 * index + 40] += 1.5
    return FeatureSet(
        features=features,
        mask=np.ones(slices, dtype=bool),
        position_mm=np.linspace(0, 14, slices, dtype=np.float32),
        slice_index=np.linspace(0, 7, slices).round().astype(np.int64),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_cohort(tmp_path_factory.mktemp("classes") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(recipe(), store=store.uri, out=str(folder))
    return folder


def test_a_planted_class_is_found_in_people_never_seen(run: Path) -> None:
    answer = evaluate.run(evaluate.Args(run=str(run), num_resamples=50))
    assert answer["target"] == "diagnosis"
    assert answer["metrics"]["auc"]["value"] > 0.9
    report = json.loads((run / "evaluate/report.json").read_text())
    assert report["classes"] == ["AD", "CN"]


def test_shuffled_labels_teach_nothing(store: ScanStore, tmp_path: Path) -> None:
    split = SplitConfig(stratify_by="diagnosis", num_parts=2 + 2, test_parts=2, num_folds=1, shuffle_labels_seed=3)
    fit(recipe(split=split), store=store.uri, out=str(tmp_path))
    answer = evaluate.run(evaluate.Args(run=str(tmp_path), num_resamples=20))
    assert answer["num_scans"] == 30
    # Thirty people, ten in the smaller class: the standard error of an AUC of 0.5 is about 0.11, here two and a half.
    assert abs(answer["metrics"]["auc"]["value"] - 0.5) < 0.28


def test_the_loss_weighs_each_class_alike(store: ScanStore) -> None:
    one = recipe()
    task, cohort = one.task(), one.task().prepare(store)
    task.calibrate(task.build(), cohort)
    weights = cohort.targets[0].class_weights
    counts = cohort.facts["num_by_class"]
    assert weights[0] * counts["AD"] == pytest.approx(weights[1] * counts["CN"])
    outputs, targets = torch.tensor([[0.3], [-1.2], [2.0]]), torch.tensor([[0.0, 0], [1.0, 1], [0.0, 2]])
    said = task.loss({"outputs": outputs}, targets)["loss"]
    probability = torch.sigmoid(outputs[:, 0])
    each = -torch.log(torch.stack([1 - probability[0], probability[1], 1 - probability[2]]))
    own = torch.tensor([weights[0], weights[1], weights[0]])
    assert said.item() == pytest.approx(float((each * own).sum() / own.sum()), rel=1e-5)


@pytest.mark.slow
def test_three_classes_take_three_logits_weighed(tmp_path: Path) -> None:
    store = write_cohort(tmp_path / "store", num_classes=3)
    with pytest.raises(
        RecipeError, match=r"--model\.num-outputs 3, or name the classes to keep: --data\.classes AD CN"
    ):
        recipe().task().prepare(store)
    loop = LoopConfig(num_epochs=8, select_by="val_auc", checkpoint_every_steps=1000)
    several = recipe(model=dataclasses.replace(MODEL, num_outputs=3), loop=loop)
    task, cohort = several.task(), several.task().prepare(store)
    task.calibrate(task.build(), cohort)
    weights = torch.tensor(cohort.targets[0].class_weights)
    outputs, targets = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0.0], [1], [2], [2]]),
    )
    said = task.loss({"outputs": outputs}, torch.cat([targets, targets], dim=1))["loss"]
    chosen = targets[:, 0].long()
    each = -torch.log_softmax(outputs, dim=1)[torch.arange(4), chosen]
    assert said.item() == pytest.approx(float((each * weights[chosen]).sum() / weights[chosen].sum()), rel=1e-5)
    fit(several, store=store.uri, out=str(tmp_path / "run"))
    answer = evaluate.run(evaluate.Args(run=str(tmp_path / "run"), num_resamples=20))
    assert answer["metrics"]["balanced_accuracy"]["value"] > 0.6  # chance is 1/3
    prediction = load_predictor(str(tmp_path / "run")).predict(store.read("sub-003_T1w"), sex="F")
    assert sum(prediction.probabilities.values()) == pytest.approx(1.0)
    found = load_predictor(str(tmp_path / "run")).explain(store.read("sub-003_T1w"))
    assert found.facts["target"] == f"log-odds of {prediction.label} in diagnosis"


def test_a_map_of_several_classes_is_one_of_the_log_odds_of_one(tmp_path: Path) -> None:
    classes = ("AD", "CN", "MCI")
    card = {"targets": [Target(name="diagnosis", kind="class", classes=classes).to_json()]}
    model = SliceClassModel(module=None, card=card, provenance={})
    outputs = torch.tensor([0.3, 1.7, -0.4], dtype=torch.float64)
    probabilities = outputs.softmax(0)
    for number, name in enumerate(classes):
        odds = probabilities[number] / (1 - probabilities[number])
        assert model.aim(name).pick_explained(outputs).item() == pytest.approx(float(odds.log()), rel=1e-12)
        assert model.aim(name).explained == f"log-odds of {name} in diagnosis"
    assert model.pick_explained(outputs) == model.aim("CN").pick_explained(outputs)  # the likeliest
    with pytest.raises(EvaluationError, match="no such class"):
        model.aim("PD")
    card = {"targets": [Target(name="dx", kind="class", classes=("AD", "CN")).to_json()]}
    two = SliceClassModel(module=None, card=card, provenance={})
    assert two.pick_explained(outputs[:1]) == outputs[0] == -two.aim("AD").pick_explained(outputs[:1])


def test_files_and_http_are_answered_with_probabilities(run: Path, store: ScanStore, tmp_path: Path) -> None:
    write_scan(store.read("sub-003_T1w"), tmp_path / "head.nii.gz")
    said = {}
    for sex in (None, "M", "F"):
        arguments = predict.Args(
            model=str(run), scans=(str(tmp_path / "head.nii.gz"),), sex=sex, explain=True, out=str(tmp_path / f"{sex}")
        )
        (row,) = predict.run(arguments)["predictions"]
        assert row["refusal"] is None
        said[sex] = row
    mean = (said["M"]["probabilities"]["CN"] + said["F"]["probabilities"]["CN"]) / 2
    assert said[None]["probabilities"]["CN"] == pytest.approx(mean, abs=1e-6)
    assert any("for a woman, the probability of CN" in note for note in said[None]["warnings"])
    assert said["F"]["explanation"]["target"] == "log-odds of CN in diagnosis"
    predictor = load_predictor(str(run))

    async def ask(name: str, scan: Scan, question: Question) -> PackedReply:
        return pack_reply(ask_predictor(predictor, scan, question), max_map_bytes=2**20)

    api = build_api(ServeConfig(models={"dx": "x"}), cards={"dx": predictor.card}, ask=ask)
    with TestClient(api) as client:
        files = {"file": ("head.nii.gz", (tmp_path / "head.nii.gz").read_bytes())}
        answer = client.post("/v1/models/dx/predict", files=files, data={"sex": "F", "age_years": "50"}).json()
    assert answer["probabilities"] == pytest.approx(said["F"]["probabilities"], abs=1e-6)
    assert answer["gap"] is None
    assert any("the age of the person: not used" in note for note in answer["warnings"])


def test_the_exported_model_has_a_card_and_answers_alike(run: Path, store: ScanStore, tmp_path: Path) -> None:
    export.run(export.Args(run=str(run), out=str(tmp_path / "model")))
    card = (tmp_path / "model/README.md").read_text()
    assert "answers: probabilities of AD, CN" in card
    assert "Training scans by class: " in card
    scan = store.read("sub-007_T1w")
    said = [load_predictor(str(folder)).predict(scan, sex="M").probabilities for folder in (run, tmp_path / "model")]
    assert said[0] == said[1]
    assert load_measure_model(tmp_path / "model").card["classes"] == ["AD", "CN"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"loop": LoopConfig(select_by="val_mae")}, "cannot be selected for classes"),
        ({"split": SplitConfig(stratify_by="sex")}, "dealt by the classes"),
        ({"split": SplitConfig(stratify_by="diagnosis", num_bins=3)}, "dealt by the classes"),
        ({"mirror_share": 1.5}, "mirror_share"),
    ],
)
def test_a_recipe_that_does_not_fit_together_is_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        recipe(**changes)

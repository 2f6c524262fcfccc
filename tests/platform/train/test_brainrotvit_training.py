"""BrainRotViT through the loop: what it learns, what is refused, what is recorded, what is exported and answered."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.age_cohort import MODEL, tiny, write_age_cohort

from neuroray.jobs.recipes import load_recipe
from neuroray.platform.evaluate.loaded import load_measure_model, load_slice_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.protocol import evaluate
from neuroray.platform.models.brainrotvit import BrainRotViTConfig
from neuroray.platform.train.loop import fit, training_plan
from neuroray.platform.train.recipe import DataConfig, LoopConfig, RecipeError
from neuroray.platform.train.tasks.brainrotvit import pinball_loss
from neuroray.serve.predictor import load_predictor
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.store import ScanStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ScanStore:
    return write_age_cohort(tmp_path_factory.mktemp("cohort") / "store")


@pytest.fixture(scope="module")
def run(store: ScanStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(tiny(), store=store.uri, out=str(folder))
    return folder


def test_it_learns_age_from_the_map(store: ScanStore, run: Path) -> None:
    found = evaluate(run, store=store.uri, num_resamples=50)
    assert isinstance(found, NumberEvaluation)
    assert (found.target, found.unit, len(found.judged)) == ("age_years", "years", 6)
    # Forty places of each of six slices carry it; a few hundred steps on 48 people find most of it.
    assert found.metrics["mae"].value < 0.5 * found.guess["mae"]
    split = json.loads((run / "splits.json").read_text())
    ages = {record.scan_id: record.age_years for record in store.records()}
    assert {row.scan_id: row.value for row in found.judged} == {name: ages[name] for name in split["test"]}
    assert found.judged[0].guess == pytest.approx(np.mean([ages[name] for name in split["train"]]))


def test_the_first_answer_is_the_training_mean(store: ScanStore) -> None:
    recipe = tiny()
    task = recipe.task()
    cohort = task.prepare(store)
    head = task.build()
    task.calibrate(head, cohort)
    head.answer.weight.data.zero_()
    ages = [cohort.targets[0].value(scan_id) for scan_id in cohort.split.train]
    said = head.eval()(torch.randn(1, 12, MODEL.num_channels)).outputs
    assert said.item() == pytest.approx(np.mean(ages), rel=1e-6)


def test_the_exported_folder_alone_rebuilds_the_model(store: ScanStore, run: Path) -> None:
    weights, card, _ = load_weights(run / "model")
    model = BrainRotViTConfig.from_json(card["model"]).build(load_weights=False)
    model.load_state_dict(weights)
    assert model.encoder.hash_weights() == card["encoder_sha256"]
    assert model.encoder.fingerprint(model.config.slices) == card["feature_fingerprint"]
    assert card["targets"][0]["name"] == "age_years"
    assert card["people"]["num_by_sex"].keys() == {"F", "M", "unknown"}
    ages = {record.scan_id: record.age_years for record in store.records()}
    trained = [ages[name] for name in json.loads((run / "splits.json").read_text())["train"]]
    assert card["people"]["target_range"] == [min(trained), max(trained)]


def test_a_person_without_an_age_is_left_out(run: Path) -> None:
    assert json.loads((run / "splits.json").read_text())["left_out"] == ["sub-060_T1w"]


def test_a_scan_is_answered_for_in_years_with_and_without_a_sex(store: ScanStore, run: Path) -> None:
    predictor: Any = load_predictor(str(run))
    scan = store.read("sub-001_T1w")
    without, male, female = predictor.predict(scan), predictor.predict(scan, sex="M"), predictor.predict(scan, sex="F")
    assert (without.targets[0].name, without.targets[0].unit, without.label) == ("age_years", "years", None)
    # float32 around values of 50
    expected = (male.targets[0].value + female.targets[0].value) / 2
    assert without.targets[0].value == pytest.approx(expected, abs=1e-4)
    told = [note for note in without.warnings if "the sex is not known" in note]
    assert len(told) == 1
    assert f"{male.targets[0].value:.1f} for a man" in told[0]
    assert not any("sex" in note for note in (*male.warnings, *female.warnings))


def test_an_answer_beyond_the_people_of_the_training_says_so(store: ScanStore, run: Path) -> None:
    predictor: Any = load_predictor(str(run))
    predictor._model.module.head.answer.bias.data.fill_(1000.0)
    warnings = predictor.predict(store.read("sub-001_T1w"), sex="M").warnings
    assert any("lies beyond the people of the training" in note for note in warnings)


def test_scans_without_cached_features_are_judged_from_their_voxels(tmp_path: Path, run: Path) -> None:
    from neuroray.platform.evaluate.slice_measure import judge_measures

    bare = write_age_cohort(tmp_path / "store", with_features=False)
    model = load_measure_model(run / "model")
    ((scan_id, answers),) = judge_measures(model, bare, ["sub-003_T1w"])
    scan, sex = bare.read(scan_id), bare.record(scan_id).sex
    assert answers[0] == model.answer(model.encode(scan), sex)


def test_quantiles_are_told_in_rising_order_around_the_median(store: ScanStore, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, num_outputs=3)
    recipe = tiny(model=model, quantiles=(0.1, 0.5, 0.9), loop=LoopConfig(num_epochs=8, select_by="val_mae"))
    fit(recipe, store=store.uri, out=str(tmp_path))
    found = evaluate(tmp_path, store=store.uri, num_resamples=20)
    assert found.metrics["mae"].value < 15
    answer = load_predictor(str(tmp_path)).predict(store.read("sub-002_T1w")).targets[0]
    assert list(answer.quantiles) == ["0.1", "0.5", "0.9"]
    low, middle, high = answer.quantiles.values()
    assert low <= middle <= high
    assert answer.value == middle
    assert answer.to_json()["quantiles"] == dict(answer.quantiles)


def test_the_pinball_loss_is_least_at_the_quantiles() -> None:
    targets = torch.arange(101.0)
    for level in (0.05, 0.5, 0.9):
        said = [torch.full((101, 1), float(number)) for number in range(0, 101, 5)]
        losses = [float(pinball_loss(one, targets, (level,))) for one in said]
        assert 5 * int(np.argmin(losses)) == 100 * level


def test_an_answer_has_the_interval_of_the_validation_errors(store: ScanStore, run: Path) -> None:
    _, _, training = load_weights(run / "model")
    answer = load_predictor(str(run)).predict(store.read("sub-001_T1w")).targets[0]
    assert training["intervals"]["age_years"]["num_people"] == 6
    # Six people are too few for 90 %.
    assert answer.interval is None
    assert answer.no_interval is not None
    assert "6 unrelated validation people" in answer.no_interval


def test_mirrored_training_maps_leave_the_validation_as_it_was(store: ScanStore) -> None:
    recipe = tiny(mirror_share=1.0)
    task = recipe.task()
    head = task.build().eval()
    batch = {"features": torch.randn(4, 12, MODEL.num_channels), "label": torch.rand(4, 3)}
    mirrored = {**batch, "features": batch["features"].flip(1)}
    plain = task.forward(head, batch)["outputs"]
    assert not torch.allclose(plain, task.forward(head, mirrored)["outputs"])
    head.train()
    torch.testing.assert_close(task.forward(head, mirrored)["outputs"], plain)


def test_the_parity_recipe_takes_one_person_a_step_in_the_same_order(store: ScanStore) -> None:
    recipe: Any = load_recipe("brainrotvit:paper")
    assert (recipe.loop.batch_size, recipe.optim.name, recipe.optim.lr) == (1, "adam", 5e-4)
    assert not recipe.model.mirror
    assert recipe.model == dataclasses.replace(BrainRotViTConfig(), encoder=recipe.model.encoder)
    small = tiny(data=recipe.data, loop=dataclasses.replace(recipe.loop, num_epochs=2))
    cohort = small.task().prepare(store)
    plan = training_plan(small, cohort)
    for epoch in range(2):
        assert [item.scan_id for item in plan.reads(epoch)] == list(cohort.split.train)
    assert plan.steps_per_epoch == len(cohort.split.train)


@pytest.mark.parametrize("name", ["smoke", "base", "pooled", "quantiles", "paper"])
def test_the_recipes_can_be_built(name: str) -> None:
    recipe: Any = load_recipe(f"brainrotvit:{name}")
    assert type(recipe).from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert min(map(min, recipe.model.map_shapes())) >= 1


def test_what_cannot_be_learned_is_refused(tmp_path: Path, store: ScanStore) -> None:
    with pytest.raises(RecipeError, match="have no cached features"):
        fit(tiny(), store=write_age_cohort(tmp_path / "bare", with_features=False).uri, out=str(tmp_path / "run"))
    with pytest.raises(RecipeError, match="dealt by bins of the measure"):
        tiny(data=DataConfig(target="diagnosis"))
    with pytest.raises(RecipeError, match="cannot be selected"):
        tiny(loop=LoopConfig(select_by="val_auc"))
    with pytest.raises(RecipeError, match="another number of outputs"):
        tiny(quantiles=(0.1, 0.5, 0.9))
    with pytest.raises(RecipeError, match="rising fractions"):
        tiny(quantiles=(0.5, 0.1))
    with pytest.raises(RecipeError, match="mirror_share"):
        tiny(mirror_share=2.0)


def test_what_is_done_with_classes_of_slices_is_refused_with_a_word(run: Path) -> None:
    told = "models of slices and their classes; given brainrotvit, a model of slices and a measure"
    with pytest.raises(EvaluationError, match=told):
        load_slice_model(run / "model")

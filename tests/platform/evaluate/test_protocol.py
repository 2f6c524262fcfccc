import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.finished_run import CLASSES, make_finished_run, make_head_scan, make_store
from sklearn.metrics import roc_auc_score

from neuroray.platform.data.splits import Split, SplitConfig
from neuroray.platform.evaluate.evidence import Judged, profile_attention, stratify
from neuroray.platform.evaluate.loaded import load_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.protocol import choose_example, evaluate
from neuroray.platform.evaluate.run import read_curves, read_folds
from neuroray.platform.models.layers.slices import SliceStackConfig, slice_positions_mm
from neuroray.storage.profiles.profile import PROFILES
from neuroray.storage.store import ScanStore

FACTS = {"versions": {"neuroray": "0"}, "made_at": "2026-11-21"}
FEW = 200


@pytest.fixture(scope="module")
def evaluation(finished_run):
    return evaluate(finished_run.folder, num_resamples=FEW, facts=FACTS)


def _copy_run(run, to: Path) -> Path:
    shutil.copytree(run.folder, to)
    return to


def _edit_split(folder: Path, edit) -> None:
    path = folder / "splits.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_exactly_the_test_people_are_judged(finished_run, evaluation):
    split = Split.read_json(finished_run.folder / "splits.json")
    assert sorted(row.scan_id for row in evaluation.judged) == list(split.test)
    assert {row.scan_id for row in evaluation.judged}.isdisjoint(split.train + split.val)


def test_auc_is_that_of_the_whole_model_on_the_test_voxels(finished_run, evaluation):
    model, store = load_model(finished_run.folder / "model"), ScanStore(finished_run.store)
    labels, scores = [], []
    for row in evaluation.judged:
        scan = store.read(row.scan_id)
        with torch.no_grad():
            logits = model.module(torch.tensor(scan.voxels)[None], spacing_mm=scan.zooms_mm).logits[0]
        labels.append(store.record(row.scan_id).diagnosis == CLASSES[1])
        scores.append(float(logits.softmax(-1)[1]))
        # Cached features and a batch of another size: float32 sums in another order.
        assert scores[-1] == pytest.approx(row.probabilities[1], abs=1e-5)
    assert evaluation.metrics["auc"].value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_cached_features_and_voxels_give_the_same_answers(finished_run, evaluation, tmp_path):
    bare = make_store(tmp_path / "store")
    folder = _copy_run(finished_run, tmp_path / "run")
    again = evaluate(folder, store=bare.uri, num_resamples=FEW, facts=FACTS)
    assert all(row.from_cache for row in evaluation.judged)
    assert not any(row.from_cache for row in again.judged)
    # Same encoder and batch sizes on the same voxels; only the way through the store differs.
    np.testing.assert_allclose(again.probabilities, evaluation.probabilities, atol=1e-6)
    np.testing.assert_allclose(
        again.attention.density_per_mm, evaluation.attention.density_per_mm, atol=1e-5, equal_nan=True
    )


def test_a_person_on_two_sides_is_an_error(finished_run, tmp_path):
    store = make_store(tmp_path / "store")
    record = store.records()[0]
    twin = make_head_scan(np.random.default_rng(9), is_patient=False)
    store.write(twin, scan_id="again_T1w", subject=record.subject, modality="T1w")
    folder = _copy_run(finished_run, tmp_path / "run")

    def leak(data):
        other = "test" if record.scan_id in data["train"] + data["val"] else "train"
        data[other].append("again_T1w")
        data["labels"]["again_T1w"] = record.diagnosis
        data["catalogue_version"] = store.version

    _edit_split(folder, leak)
    with pytest.raises(EvaluationError, match="people are on two sides"):
        evaluate(folder, store=store.uri, num_resamples=FEW)


def test_a_family_on_two_sides_is_an_error(finished_run, tmp_path):
    records = ScanStore(finished_run.store).records()
    family = [record.scan_id for record in records if record.family_id == "f0"]
    assert len(family) == 2
    folder = _copy_run(finished_run, tmp_path / "run")

    def tear_apart(data):
        for side in ("train", "val", "test"):
            data[side] = [scan_id for scan_id in data[side] if scan_id not in family]
        data["train"].append(family[0])
        data["test"].append(family[1])

    _edit_split(folder, tear_apart)
    with pytest.raises(EvaluationError, match="1 families are on two sides"):
        evaluate(folder, num_resamples=FEW)


def test_the_message_about_a_leak_names_nobody(finished_run, tmp_path):
    folder = _copy_run(finished_run, tmp_path / "run")

    def tear_apart(data):
        for side in ("train", "val", "test"):
            data[side] = [scan_id for scan_id in data[side] if scan_id not in ("p000_T1w", "p001_T1w")]
        data["train"].append("p000_T1w")
        data["test"].append("p001_T1w")

    _edit_split(folder, tear_apart)
    with pytest.raises(EvaluationError) as caught:
        evaluate(folder, num_resamples=FEW)
    assert "p000" not in str(caught.value)
    assert "p001" not in str(caught.value)


def test_the_catalogue_version_of_the_run_is_used_whatever_came_later(tmp_path):
    store = make_store(tmp_path / "store", num_subjects=20)
    run = make_finished_run(tmp_path / "run", store, split=SplitConfig(num_parts=3, num_folds=3), num_steps=2)
    before = evaluate(run.folder, num_resamples=FEW, facts=FACTS)
    spoiled = make_head_scan(np.random.default_rng(5), is_patient=True)
    for row in before.judged:
        store.write(spoiled, scan_id=row.scan_id, subject=row.subject, modality="T1w")
    after = evaluate(run.folder, num_resamples=FEW, facts=FACTS)
    assert store.version > before.provenance["catalogue_version"]
    assert after.provenance["catalogue_version"] == before.provenance["catalogue_version"]
    np.testing.assert_array_equal(after.probabilities, before.probabilities)


def test_folds_are_pooled_and_told_apart(tmp_path):
    store = make_store(tmp_path / "store", num_subjects=24)
    for fold in (0, 1):
        split = SplitConfig(num_parts=4, num_folds=4, fold=fold)
        make_finished_run(tmp_path / "run" / f"fold-{fold}", store, split=split, num_steps=3)
    found = evaluate(tmp_path / "run", num_resamples=FEW, facts=FACTS)
    assert [fold.index for fold in found.folds] == [0, 1]
    assert {row.fold for row in found.judged} == {0, 1}
    assert len({row.scan_id for row in found.judged}) == len(found.judged) == 12
    assert found.resamples.shape == (FEW, 12)


def test_shuffled_labels_are_judged_by_the_shuffled_labels_and_said_to_be(tmp_path):
    store = make_store(tmp_path / "store", num_subjects=20)
    split = SplitConfig(num_parts=3, num_folds=3, shuffle_labels_seed=1)
    run = make_finished_run(tmp_path / "run", store, split=split, num_steps=2)
    found = evaluate(run.folder, num_resamples=FEW, facts=FACTS)
    dealt = Split.read_json(run.folder / "splits.json").labels
    assert [CLASSES[row.label] for row in found.judged] == [dealt[row.scan_id] for row in found.judged]
    assert any(dealt[record.scan_id] != record.diagnosis for record in store.records())
    assert "shuffled" in found.warnings[0]


def test_an_unfinished_run_is_told_by_what_it_lacks(finished_run, tmp_path):
    folder = _copy_run(finished_run, tmp_path / "run")
    shutil.rmtree(folder / "model")
    with pytest.raises(EvaluationError, match=r"no model/config\.json"):
        read_folds(folder)


def test_scans_that_the_store_does_not_know_are_counted(finished_run, tmp_path):
    other = make_store(tmp_path / "store", num_subjects=10)
    with pytest.raises(EvaluationError, match="30 scans of the split"):
        evaluate(finished_run.folder, store=other.uri)


def test_training_rows_of_one_epoch_are_averaged(finished_run):
    (fold,) = read_folds(finished_run.folder)
    rows = [json.loads(line) for line in (finished_run.folder / "metrics.jsonl").read_text().splitlines()]
    first = [row["loss"] for row in rows if row["split"] == "train" and row["epoch"] == 0]
    curves = read_curves(fold)
    assert curves["train_loss"][0] == (0, pytest.approx(np.mean(first)))
    assert curves["val_score"][-1] == (8, pytest.approx(0.66))


def test_the_point_whose_weights_were_kept_is_that_of_the_best_step(finished_run):
    # Step 20 ended epoch 4, which is not where the score is highest.
    assert read_curves(read_folds(finished_run.folder)[0])["kept"] == [(4, pytest.approx(0.58))]


def test_the_example_is_one_that_the_model_called_right(evaluation):
    chosen = choose_example(evaluation)
    assert evaluation.classes[chosen.label] == "patient"
    assert int(np.argmax(chosen.probabilities)) == chosen.label


def test_slice_positions_are_world_coordinates_of_slice_centres():
    scan = make_head_scan(np.random.default_rng(0), is_patient=False)
    index = np.array([0, 7, -1])
    found = slice_positions_mm(scan.grid_shape, scan.affine, SliceStackConfig(), index)
    x, y, _ = scan.grid_shape
    expected = [(scan.affine @ [(x - 1) / 2, (y - 1) / 2, k, 1])[2] for k in (0, 7)]
    assert found[:2] == pytest.approx(expected)
    assert np.isnan(found[2])


def _judged(**changes):
    settings = {"fold": 0, "scan_id": "s", "subject": "p", "label": 0, "probabilities": (0.5, 0.5)}
    return Judged(**settings | changes)


def test_thirds_of_age_are_equal_and_unknown_ages_are_left_out():
    rows = [
        _judged(subject=str(age), scan_id=str(age), label=age % 2, probabilities=(0.4, 0.6), age_years=float(age))
        for age in range(20, 38)
    ]
    rows.append(_judged(scan_id="unknown"))
    found = stratify(rows, 2, metric="auc", seed=0, num_resamples=20)
    assert [row.variable for row in found] == ["Age"] * 3
    assert [row.level for row in found] == ["20 to 25 years", "26 to 31 years", "32 to 37 years"]
    assert [sum(row.counts) for row in found] == [6, 6, 6]


def test_a_stratum_with_one_person_of_a_class_is_not_judged():
    rows = [_judged(scan_id=str(i), subject=str(i), label=int(i < 3), sex="F" if i < 5 else "M") for i in range(10)]
    women, men = stratify(rows, 2, metric="auc", seed=0, num_resamples=20)
    assert (women.level, women.counts, men.counts) == ("women", (2, 3), (5, 0))
    assert women.found is not None
    assert men.found is None


def test_attention_density_integrates_to_one_and_equal_weights_are_uniform():
    position = tuple(np.arange(-10.0, 10.0, 2.0).tolist())
    even = _judged(slice_weights=(0.1,) * 10, position_mm=position)
    peaked = dataclasses.replace(even, slice_weights=(1.0, *(0.0,) * 9))
    profile = profile_attention([even, peaked], "axial")
    assert profile.density_per_mm.sum(axis=1) * 2.0 == pytest.approx([1.0, 1.0])
    assert profile.density_per_mm[0] == pytest.approx(profile.uniform_per_mm)
    assert profile.effective_slices == pytest.approx([10.0, 1.0])


def test_a_scan_says_nothing_where_it_has_no_slices():
    low = _judged(slice_weights=(0.5, 0.5), position_mm=(0.0, 1.0))
    high = _judged(slice_weights=(0.5, 0.5), position_mm=(3.0, 4.0))
    profile = profile_attention([low, high], "axial")
    # Nobody has a slice at 2 mm, so that it is not on the grid.
    assert profile.position_mm.tolist() == [0.0, 1.0, 3.0, 4.0]
    assert np.isnan(profile.density_per_mm[0, 2:]).all()
    assert np.isnan(profile.density_per_mm[1, :2]).all()
    assert profile.mean() == pytest.approx([0.5] * 4)
    assert np.isnan(profile.mean(1)).all()


def test_predictions_csv_has_one_row_a_scan_and_the_same_numbers(evaluation, tmp_path):
    from neuroray.platform.evaluate.report import write_predictions

    write_predictions(evaluation, tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_id = {row.scan_id: row for row in evaluation.judged}
    assert len(rows) == len(evaluation.judged)
    for row in rows:
        judged = by_id[row["scan_id"]]
        assert float(row["probability_patient"]) == pytest.approx(judged.probabilities[1], rel=1e-8)
        assert row["label"] == CLASSES[judged.label]
        assert int(row["correct"]) == (row["predicted"] == row["label"])
        assert (row["profile"], row["profile_sha256"]) == ("native", PROFILES["native"].fingerprint())

"""Volumes on a coarse grid, and the predictors on them: planted ages found, nothing leaked, grids of any kind."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from contracts.finished_run import make_store
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from neuroray.platform.baselines import volume_predictors
from neuroray.platform.baselines.compare_volumes import VolumeCompareConfig, compare_volumes
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.predictors import Task
from neuroray.platform.baselines.question import ask, learn_from
from neuroray.platform.baselines.sfcn import SmallSFCN, fit_sfcn
from neuroray.platform.baselines.table import render_markdown, write_comparison
from neuroray.platform.baselines.volume_predictors import VolumeFeatures, VolumeSample, fit_components
from neuroray.platform.baselines.volumes import VolumeConfig, coarsen, read_volumes
from neuroray.platform.data.splits import SIDES, SplitConfig
from neuroray.storage.bids import Participant
from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

SPLIT = SplitConfig(num_parts=6, test_parts=2, num_folds=3)
COARSE = VolumeConfig(spacing_mm=12.0, field_mm=(96.0, 108.0, 96.0))
CONFIG = VolumeCompareConfig(volumes=COARSE, num_resamples=200)


def head(age: float, rng: np.random.Generator, *, shift_mm: float = 0.0) -> Scan:
    """A ball with a hole that grows with age, on a grid of its own."""
    shape = (17, 19, 16)
    affine = np.diag([5.0, 5.0, 6.0, 1.0])
    affine[:3, 3] = np.array([-40.0, -45.0, -45.0]) + shift_mm
    at_mm = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1) * [5.0, 5.0, 6.0]
    radius = np.linalg.norm(at_mm - np.array([40.0, 45.0, 45.0]), axis=-1)
    voxels = 100.0 * (radius < 38) - 60.0 * (radius < 8 + age / 6)
    return Scan(voxels=(np.clip(voxels + rng.normal(0, 4, shape), 0, None)).astype(np.float32), affine=affine)


@pytest.fixture(scope="module")
def aged(tmp_path_factory) -> ScanStore:
    """Sixty people, each lying elsewhere in the scanner."""
    store = ScanStore.create(tmp_path_factory.mktemp("heads") / "store")
    rng = np.random.default_rng(0)
    records = []
    for index in range(60):
        age = float(np.round(rng.uniform(20, 80), 1))
        person = Participant(
            subject=f"p{index:02d}", age_years=age, sex="FM"[index % 2], diagnosis=("control", "ill")[index % 3 == 0]
        )
        scan = head(age, rng, shift_mm=float(rng.uniform(-15, 15)))
        records.append(
            store.write(
                scan,
                scan_id=f"p{index:02d}_T1w",
                subject=person.subject,
                modality="T1w",
                participant=person,
                commit=False,
            )
        )
    store.commit(records)
    return ScanStore(store.uri, version=store.version)


@pytest.fixture(scope="module")
def question(aged):
    return ask(aged, "age", SPLIT, modality="T1w", num_axes=3)


@pytest.fixture(scope="module")
def found(aged, question):
    return compare_volumes(question, aged, CONFIG, names=["mean", "ridge_pca", "sfcn"])


def metric(comparison, predictor, name):
    (answers,) = [answers for answers in comparison.answers if answers.name == predictor]
    return answers.metrics[name]


def test_a_coarse_voxel_is_where_it_says_and_holds_what_was_there():
    """A bright block at known millimetres, on an oblique anisotropic grid, comes out at the same millimetres."""
    config = VolumeConfig(spacing_mm=8.0, field_mm=(80.0, 96.0, 80.0))
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, 1.5, 3.0])
    affine[:3, 3] = -affine[:3, :3] @ np.array([30.0, 40.0, 20.0])
    grid = np.stack(np.meshgrid(np.arange(61), np.arange(81), np.arange(41), indexing="ij"), axis=-1)
    at_mm = grid @ affine[:3, :3].T + affine[:3, 3]
    centre = np.array([12.0, -20.0, 8.0])
    values = np.exp(-((at_mm - centre) ** 2).sum(axis=-1) / (2 * 12.0**2)).astype(np.float32)
    coarse = coarsen(values, affine, config, middle=np.array([30.0, 40.0, 20.0]))
    assert coarse.shape == (10, 12, 10)
    where = np.stack(np.meshgrid(*(np.arange(size) for size in coarse.shape), indexing="ij"), axis=-1)
    centres_mm = (where - (np.array(coarse.shape) - 1) / 2) * 8.0
    found_mm = (centres_mm * coarse[..., None]).sum(axis=(0, 1, 2)) / coarse.sum()
    # The block's flanks are cut off at the field's edge on one side; half a millimetre is a sixteenth of a voxel.
    np.testing.assert_allclose(found_mm, centre, atol=1.5)
    # Smoothing of 8 mm widens a spread of 12 mm a little, and lowers its top by the same in three dimensions.
    top = (12**2 / (12**2 + (8 / 2.355) ** 2)) ** 1.5
    nearest = np.exp(-((centres_mm - centre) ** 2).sum(axis=-1).min() / (2 * 12.5**2))
    assert coarse.max() == pytest.approx(top * nearest, rel=0.05)


def test_heads_that_lie_elsewhere_give_the_same_coarse_volume(tmp_path):
    store = ScanStore.create(tmp_path / "store")
    scan = head(50.0, np.random.default_rng(1))
    moved = np.pad(scan.voxels, ((4, 1), (0, 3), (0, 0)))
    for name, voxels in (("a", scan.voxels), ("b", moved)):
        one = Scan(voxels=voxels, affine=scan.affine)
        store.write(one, scan_id=name, subject=name, modality="T1w", participant=Participant(subject=name))
    table = read_volumes(store, ["a", "b"], COARSE)
    # Beyond a grid there is nothing; where the smaller one ends, the larger has the ball's smooth edge.
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(table.volumes["a"][inner], table.volumes["b"][inner], atol=0.05)
    assert "middle of what is brighter than air" in table.method
    assert "divided by the mean" in table.method
    fixed = read_volumes(store, ["a", "b"], dataclasses.replace(COARSE, centre="grid"))
    assert np.abs(fixed.volumes["a"] - fixed.volumes["b"]).max() > 0.3


def test_maps_of_tissue_on_one_grid_stay_where_and_as_they_are(tmp_path):
    store = ScanStore.create(tmp_path / "store")
    for name, size in (("a", 0.9), ("b", 0.3)):
        scan = Scan(voxels=np.full((20, 22, 18), size, dtype=np.float32), affine=np.diag([6.0, 6.0, 6.0, 1.0]))
        store.write(scan, scan_id=name, subject=name, modality="T1w", participant=Participant(subject=name))
    table = read_volumes(store, ["a", "b"], COARSE)
    assert table.volumes["a"].max() == pytest.approx(0.9, rel=1e-5)
    assert table.volumes["b"].max() == pytest.approx(0.3, rel=1e-5)
    assert "values as stored" in table.method
    assert "the scans' one grid" in table.method


def test_an_empty_scan_and_a_run_are_refused(tmp_path, planted):
    store = ScanStore.create(tmp_path / "store")
    empty = Scan(voxels=np.zeros((9, 9, 9), dtype=np.float32), affine=np.eye(4))
    store.write(empty, scan_id="a", subject="a", modality="T1w", participant=Participant(subject="a"))
    with pytest.raises(BaselineError, match="scan a is empty"):
        read_volumes(store, ["a"], COARSE)
    with pytest.raises(BaselineError, match="no volume"):
        read_volumes(planted, [planted.records()[0].scan_id], COARSE)


def test_every_penalty_and_number_of_components_is_scikit_learns_pipeline():
    rng = np.random.default_rng(0)
    inputs, values = rng.normal(size=(31, 77)), rng.normal(50, 10, 31)
    new = rng.normal(size=(5, 77))
    path = volume_predictors._fit_path(inputs, values)
    told = path(new)
    scaled = StandardScaler().fit_transform(inputs)
    first = np.linalg.svd(scaled, compute_uv=False)[0] ** 2
    for row, number in ((0, 2), (2, 10), (4, 30)):
        for column in (0, 6, 12):
            alpha = volume_predictors._PENALTIES[column] * first
            model = make_pipeline(StandardScaler(), PCA(number, svd_solver="full"), Ridge(alpha=alpha))
            np.testing.assert_allclose(told[row, column], model.fit(inputs, values).predict(new), rtol=1e-8)


def test_what_is_held_out_moves_no_prediction_of_others():
    """Standardising and components come from the rows that are fitted on."""
    rng = np.random.default_rng(0)
    inputs, values = rng.normal(size=(40, 20)), rng.normal(50, 10, 40)
    predict = fit_components(inputs, values, np.arange(40), seed=0)
    new = rng.normal(size=(7, 20))
    together = predict(np.concatenate([new, 1e3 * rng.normal(size=(9, 20))]))
    np.testing.assert_allclose(predict(new), together[:7])


def test_planted_ages_are_found_and_the_mean_stands_beside(found):
    assert metric(found, "ridge_pca", "pearson_r").low > 0.9
    assert metric(found, "ridge_pca", "mae").high < metric(found, "mean", "mae").low
    gains = {(each.name, each.metric): each for each in found.gains}
    gain = gains["ridge_pca", "mae"]
    difference = metric(found, "ridge_pca", "mae").value - metric(found, "mean", "mae").value
    assert gain.found.value == pytest.approx(difference)
    assert gain.found.high < 0
    assert gain.p_value == pytest.approx(2 / 200)
    assert "Each minus saying the mean" in render_markdown(found)


def test_the_small_network_learns_what_is_planted(found):
    gains = {(each.name, each.metric): each for each in found.gains}
    assert gains["sfcn", "mae"].found.high < 0
    assert metric(found, "sfcn", "pearson_r").low > 0.5


def test_with_shuffled_ages_there_is_nothing_to_find(aged):
    asked = ask(aged, "age", dataclasses.replace(SPLIT, shuffle_labels_seed=1), modality="T1w", num_axes=3)
    table = compare_volumes(asked, aged, CONFIG, names=["ridge_pca", "mean"])
    # Over 60 people a correlation strays by 0.13; a strong penalty says the mean of everybody, which has none.
    assert np.nan_to_num(metric(table, "ridge_pca", "pearson_r").value) < 0.3


def test_whom_to_learn_from_narrows_training_and_no_judgement(aged, question):
    asked = learn_from(question, aged, "diagnosis=control")
    known = {record.scan_id: record.diagnosis for record in aged.records()}
    for (_, split), (_, whole) in zip(asked.folds, question.folds, strict=True):
        assert {known[scan_id] for side in ("train", "val") for scan_id in asked.side(split, side)[0]} == {"control"}
        assert asked.side(split, "test")[0] == question.side(whole, "test")[0]
    with pytest.raises(BaselineError, match="no condition"):
        learn_from(question, aged, "control")
    with pytest.raises(BaselineError, match="nobody on the train side"):
        learn_from(question, aged, "diagnosis=well")
    assert "diagnosis=control alone" in render_markdown(compare_volumes(asked, aged, CONFIG, names=["mean"]))


def test_features_of_an_encoder_are_pooled_over_their_slices(tmp_path):
    store = make_store(tmp_path / "store", num_subjects=40)
    asked = ask(store, "age", SplitConfig(num_parts=4, num_folds=2), modality="T1w", num_axes=3)
    with pytest.raises(BaselineError, match=r"vit_ridge cannot run here.*neuroray extract"):
        compare_volumes(asked, store, CONFIG, names=["vit_ridge"])
    assert "vit_ridge" in compare_volumes(asked, store, CONFIG).skipped
    features = FeatureStore(store, "a" * 64)
    rng = np.random.default_rng(0)
    for record in store.records():
        rows = rng.normal(size=(6, 9)).astype(np.float32)
        rows[:, 2] = float(record.age_years or 0)
        rows[4:] = 1e6  # padding, which must not count
        mask = np.arange(6) < 4
        made = FeatureSet(
            features=rows, mask=mask, position_mm=np.arange(6, dtype=np.float32), slice_index=np.arange(6)
        )
        features.write(record, made)
    found = compare_volumes(asked, store, CONFIG, names=["vit_ridge", "mean"])
    assert metric(found, "vit_ridge", "mae").value < 1
    with pytest.raises(BaselineError, match=f"no such features; given {'b' * 20}; expected {'a' * 16}"):
        compare_volumes(asked, store, dataclasses.replace(CONFIG, features="b" * 20), names=["vit_ridge"])


def test_the_network_shrinks_any_grid_to_one_row_of_numbers():
    module = SmallSFCN(1).eval().requires_grad_(False)
    volumes = torch.randn(3, 7, 9, 17)
    alone, together = module(volumes[1:2]), module(volumes)
    # Convolutions of one row or three are summed in another order.
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-5)
    assert len({round(float(value), 6) for value in together[:, 0]}) == 3


def test_one_seed_gives_one_network():
    rng = np.random.default_rng(0)

    def sample(num):
        volumes = rng.normal(size=(num, 8, 9, 8)).astype(np.float32)
        return VolumeSample(
            features=VolumeFeatures(volumes=volumes), values=rng.normal(50, 10, num), groups=np.arange(num)
        )

    train, val = sample(9), sample(5)
    task = Task(kind="regression", num_classes=0, seed=3)
    first, second = (fit_sfcn(train, val, task)(val.features) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_classes_and_unknown_names_are_refused(aged, question):
    with pytest.raises(BaselineError, match="predict a measure"):
        compare_volumes(ask(aged, "sex", SPLIT, modality="T1w", num_axes=3), aged, CONFIG, names=["mean"])
    with pytest.raises(BaselineError, match="no baseline ridge on volumes; expected some of mean, ridge_pca"):
        compare_volumes(question, aged, CONFIG, names=["ridge"])


def test_what_may_be_handed_on_names_nobody(found, tmp_path):
    paths = write_comparison(found, tmp_path, facts={})
    for name in ("baselines.json", "baselines.csv", "baselines.md"):
        assert not any(scan_id in paths[name].read_text() for _, scan_id in found.judged)
    described = json.loads(paths["baselines.json"].read_text())
    assert {each["name"] for each in described["predictor_minus_mean"]} == {"ridge_pca", "sfcn"}
    assert set(SIDES) <= set(described["folds"][0]["counts"])

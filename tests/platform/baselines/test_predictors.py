import numpy as np
import pytest
import torch
from torch.nn import functional

from neuroray.platform.baselines import predictors
from neuroray.platform.baselines.brainnetcnn import BrainNetCNN, fit_brainnetcnn
from neuroray.platform.baselines.compare import BASELINES
from neuroray.platform.baselines.connectivity import to_matrix
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.predictors import (
    Features,
    Sample,
    Task,
    _inner_folds,
    fit_anatomy,
    fit_logistic,
    fit_mean,
    fit_ridge,
)

REGIONS = 7
EDGES = REGIONS * (REGIONS - 1) // 2
REGRESSION = Task(kind="regression", num_classes=0, seed=0)


def _sample(num_rows, seed, *, kind="regression", num_classes=2, weight=1.0):
    """The first three edges and the first level carry the target, each with noise."""
    rng = np.random.default_rng(seed)
    edges = rng.standard_normal((num_rows, EDGES)).astype(np.float32)
    levels = rng.standard_normal((num_rows, REGIONS)).astype(np.float32)
    if kind == "classification":
        values = np.arange(num_rows) % num_classes
        edges[:, :3] += weight * 1.5 * (values - (num_classes - 1) / 2)[:, None]
        levels[:, 0] += weight * 3 * (values - (num_classes - 1) / 2)
    else:
        values = 100 + 15 * (weight * edges[:, :3].sum(axis=1) + 0.3 * rng.standard_normal(num_rows))
        levels[:, 0] = weight * values / 15 + rng.standard_normal(num_rows)
    groups = np.array([f"family:{row // 2}" for row in range(num_rows)])
    features = Features(edges=edges, levels=levels, num_regions=REGIONS)
    return Sample(features=features, values=values.astype(float), groups=groups)


def _correlation(first, second):
    return np.corrcoef(first, second)[0, 1]


@pytest.mark.parametrize("name", ["ridge", "anatomy", "brainnetcnn"])
def test_a_measure_is_found_and_told_in_its_own_unit(name):
    train, val, test = (_sample(rows, seed) for seed, rows in enumerate([120, 30, 65]))
    told = BASELINES[name].fit(train, val, REGRESSION)(test.features)
    assert told.shape == (65, 1)
    assert _correlation(told[:, 0], test.values) > 0.8
    assert abs(told.mean() - 100) < 15
    assert 10 < told.std() < 40


@pytest.mark.parametrize("name", ["logistic", "anatomy", "brainnetcnn"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_classes_are_found_with_probabilities_that_sum_to_one(name, num_classes):
    task = Task(kind="classification", num_classes=num_classes, seed=0)
    train, val, test = (
        _sample(rows, seed, kind="classification", num_classes=num_classes) for seed, rows in enumerate([120, 30, 63])
    )
    told = BASELINES[name].fit(train, val, task)(test.features)
    assert told.shape == (63, num_classes)
    np.testing.assert_allclose(told.sum(axis=1), 1, atol=1e-6)
    assert (told.argmax(axis=1) == test.values).mean() > 0.8


def test_without_looking_the_mean_and_the_shares_are_told():
    train = _sample(7, 0, kind="classification")
    told = fit_mean(train, train, Task(kind="classification", num_classes=2, seed=0))(train.features)
    assert told.tolist() == [[4 / 7, 3 / 7]] * 7
    measured = _sample(9, 0)
    mean = fit_mean(measured, measured, REGRESSION)(measured.features)
    assert mean[:, 0] == pytest.approx(measured.values.mean())


def test_where_there_is_nothing_to_find_the_penalty_keeps_to_the_mean():
    train, test = _sample(120, 0, weight=0.0), _sample(65, 1, weight=0.0)
    rng = np.random.default_rng(3)
    shuffled = Sample(features=train.features, values=rng.permutation(train.values), groups=train.groups)
    told = fit_ridge(shuffled, shuffled, REGRESSION)(test.features)
    assert told.std() < 0.5 * train.values.std()


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_no_family_is_on_both_sides_of_an_inner_fold(kind):
    sample = _sample(65, 0, kind=kind)
    folds = _inner_folds(sample, Task(kind=kind, num_classes=2, seed=0))
    assert len(folds) == 5
    for fitted, judged in folds:
        assert not set(sample.groups[fitted]) & set(sample.groups[judged])
        if kind == "classification":
            assert set(sample.values[judged]) == {0, 1}
    assert sorted(np.concatenate([judged for _, judged in folds]).tolist()) == list(range(65))


def test_one_family_leaves_nothing_to_choose_a_penalty_on():
    sample = _sample(2, 0)
    with pytest.raises(BaselineError, match="too few people"):
        fit_ridge(sample, sample, REGRESSION)


def test_anatomy_sees_levels_alone_and_the_others_edges_alone():
    train, test = _sample(120, 0), _sample(9, 1)
    blind_to_edges, blind_to_levels = fit_anatomy(train, train, REGRESSION), fit_ridge(train, train, REGRESSION)
    no_edges = Features(edges=0 * test.features.edges, levels=test.features.levels, num_regions=REGIONS)
    no_levels = Features(edges=test.features.edges, levels=0 * test.features.levels, num_regions=REGIONS)
    np.testing.assert_array_equal(blind_to_edges(no_edges), blind_to_edges(test.features))
    np.testing.assert_array_equal(blind_to_levels(no_levels), blind_to_levels(test.features))


def test_mixing_edges_is_the_papers_convolution_with_a_cross():
    torch.manual_seed(0)
    module = BrainNetCNN(REGIONS, 1)
    matrix = torch.from_numpy(to_matrix(_sample(3, 0).features.edges, REGIONS))
    row = functional.conv2d(matrix[:, None], module.edge_row.weight[:, None, None, :], module.edge_row.bias)
    column = functional.conv2d(matrix[:, None], module.edge_column.weight[:, None, :, None])
    found = module.mix_edges(matrix).permute(0, 2, 1, 3)
    # Sums of seven float32 numbers in another order.
    torch.testing.assert_close(found, row + column, atol=1e-5, rtol=1e-5)


def test_every_weight_of_the_network_learns():
    torch.manual_seed(0)
    module = BrainNetCNN(REGIONS, 2).eval()
    matrix = torch.from_numpy(to_matrix(_sample(5, 0).features.edges, REGIONS))
    functional.cross_entropy(module(matrix), torch.tensor([0, 1, 0, 1, 1])).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_a_network_with_the_same_seed_says_the_same_and_leaves_torchs_generator_alone():
    train, val = _sample(40, 0), _sample(15, 1)
    torch.manual_seed(5)
    first = fit_brainnetcnn(train, val, REGRESSION)(val.features)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    np.testing.assert_array_equal(fit_brainnetcnn(train, val, REGRESSION)(val.features), first)


def test_trees_find_a_threshold_on_one_edge():
    pytest.importorskip("xgboost")
    train, val, test = (_sample(rows, seed, kind="classification") for seed, rows in enumerate([120, 30, 65]))
    task = Task(kind="classification", num_classes=2, seed=0)
    told = BASELINES["xgboost"].fit(train, val, task)(test.features)
    assert (told.argmax(axis=1) == test.values).mean() > 0.75
    measured = [_sample(rows, seed) for seed, rows in enumerate([200, 30, 65])]
    numbers = BASELINES["xgboost"].fit(measured[0], measured[1], REGRESSION)(measured[2].features)
    assert _correlation(numbers[:, 0], measured[2].values) > 0.6


def test_logistic_regression_is_not_moved_by_the_unit_of_the_edges():
    task = Task(kind="classification", num_classes=2, seed=0)
    train, test = _sample(80, 0, kind="classification"), _sample(9, 1, kind="classification")

    def scaled(features):
        return Features(edges=100 * features.edges, levels=features.levels, num_regions=REGIONS)

    other = Sample(features=scaled(train.features), values=train.values, groups=train.groups)
    # The solver stops at a gradient of 1e-4.
    np.testing.assert_allclose(
        fit_logistic(other, other, task)(scaled(test.features)),
        fit_logistic(train, train, task)(test.features),
        atol=1e-3,
    )


def test_an_inner_fold_of_one_class_still_counts(monkeypatch):
    """As families of one class each make them in small cohorts."""
    sample = _sample(24, 0, kind="classification", weight=2.0)
    task = Task(kind="classification", num_classes=2, seed=0)
    one_class = np.flatnonzero(sample.values == 1)[:3]
    folds = [(np.setdiff1d(np.arange(24), one_class), one_class)]
    monkeypatch.setattr(predictors, "_inner_folds", lambda train, task: folds)
    told = fit_logistic(sample, sample, task)(sample.features)
    # Not the strongest penalty, which a search without scores would have taken first: it says a half to everybody.
    assert np.abs(told[:, 1] - sample.values).max() < 0.3

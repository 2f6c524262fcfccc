import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn import metrics as oracle

from neuroray.platform.evaluate.metrics import (
    CALIBRATION_BINS,
    REGRESSION_METRICS,
    EvaluationError,
    classification_metrics,
    confusion_counts,
    metric_table,
    regression_metrics,
    weighted_auc,
)

# Both sides add the same float64 numbers in another order.
ROUNDING = 1e-12


def _draw(num_rows, num_classes, seed):
    rng = np.random.default_rng(seed)
    # Rounded, so that there are ties; the weights are whole numbers, as a bootstrap draws them.
    logits = rng.normal(size=(num_rows, num_classes)).round(1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.concatenate([np.arange(num_classes), rng.integers(num_classes, size=num_rows - num_classes)])
    return labels, probabilities, rng.integers(0, 4, size=(3, num_rows)).astype(float)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("num_rows", [7, 63, 130])
def test_every_metric_agrees_with_scikit_learn_on_weighted_rows(num_rows, num_classes):
    labels, probabilities, weights = _draw(num_rows, num_classes, seed=num_rows)
    weights[:, :num_classes] += 1
    ours = classification_metrics(labels, probabilities, weights)
    predicted = probabilities.argmax(axis=1)
    for index, weight in enumerate(weights):
        # scikit-learn takes the weighted mean over the classes in "macro" as it is: ours is the same.
        if num_classes == 2:
            auc = oracle.roc_auc_score(labels, probabilities[:, 1], sample_weight=weight)
            brier = oracle.brier_score_loss(labels, probabilities[:, 1], sample_weight=weight)
        else:
            auc = oracle.roc_auc_score(labels, probabilities, sample_weight=weight, multi_class="ovr", average="macro")
            brier = oracle.brier_score_loss(labels, probabilities, sample_weight=weight)
        expected = {
            "auc": auc,
            "brier": brier,
            "accuracy": oracle.accuracy_score(labels, predicted, sample_weight=weight),
            "balanced_accuracy": oracle.balanced_accuracy_score(labels, predicted, sample_weight=weight),
            "f1_weighted": oracle.f1_score(labels, predicted, sample_weight=weight, average="weighted"),
            "f1_macro": oracle.f1_score(labels, predicted, sample_weight=weight, average="macro"),
        }
        if num_classes == 2:
            expected["sensitivity"] = oracle.recall_score(labels, predicted, sample_weight=weight)
            expected["specificity"] = oracle.recall_score(labels, predicted, sample_weight=weight, pos_label=0)
        for name, value in expected.items():
            assert ours[name][index] == pytest.approx(value, abs=ROUNDING), name


@given(seed=st.integers(0, 2**32 - 1), num_rows=st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_auc_is_the_share_of_pairs_in_the_right_order(seed, num_rows):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, size=num_rows).astype(float)
    positive = rng.random(num_rows) < 0.5
    higher, lower = scores[positive], scores[~positive]
    auc = weighted_auc(positive, scores, np.ones((1, num_rows)))[0]
    if len(higher) == 0 or len(lower) == 0:
        assert np.isnan(auc)
        return
    pairs = (higher[:, None] > lower).mean() + 0.5 * (higher[:, None] == lower).mean()
    assert auc == pytest.approx(pairs, abs=ROUNDING)


def test_auc_rests_on_probabilities_and_not_on_the_decision():
    labels = np.array([0, 0, 1, 1])
    positive = np.array([0.1, 0.2, 0.3, 0.4])
    values = classification_metrics(labels, np.stack([1 - positive, positive], axis=1))
    assert values["auc"][0] == 1.0
    assert values["balanced_accuracy"][0] == 0.5


def test_expected_calibration_error_by_hand():
    positive = np.array([0.05, 0.05, 0.85, 0.85])
    values = classification_metrics(np.array([0, 0, 1, 0]), np.stack([1 - positive, positive], axis=1))
    # Bin 0: stated 0.05, came true 0; bin 8: stated 0.85, came true 0.5; half of the rows in each.
    assert values["calibration_error"][0] == pytest.approx(0.5 * 0.05 + 0.5 * 0.35, abs=ROUNDING)


def test_a_stated_probability_of_one_falls_into_the_last_bin():
    values = classification_metrics(np.array([1, 0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert values["calibration_error"][0] == 0.0
    assert CALIBRATION_BINS > 1


def test_a_class_that_nobody_has_is_left_out_and_makes_the_auc_undefined():
    labels, probabilities = np.array([0, 1, 1]), np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.3, 0.2]])
    values = classification_metrics(labels, probabilities)
    assert values["balanced_accuracy"][0] == pytest.approx(0.75)
    assert np.isnan(values["auc"][0])


def test_confusion_counts_rows_are_true_and_columns_predicted():
    labels = np.array([0, 0, 1])
    probabilities = np.array([[0.2, 0.8], [0.9, 0.1], [0.1, 0.9]])
    assert confusion_counts(labels, probabilities, np.array([[1.0, 2.0, 5.0]]))[0].tolist() == [[2, 1], [0, 5]]


@pytest.mark.parametrize(
    ("labels", "probabilities", "fault"),
    [
        ([0, 1], [[2.0, -1.0], [0.5, 0.6]], "no probabilities"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "none of the classes"),
        ([0, 1], [[np.nan, np.nan], [0.5, 0.5]], "no probabilities"),
        ([], np.zeros((0, 2)), "do not belong together"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], "do not belong together"),
    ],
)
def test_what_no_metric_can_be_computed_from_is_refused(labels, probabilities, fault):
    with pytest.raises(EvaluationError, match=fault):
        classification_metrics(np.array(labels, dtype=int), np.array(probabilities, dtype=float))


@given(
    seed=st.integers(0, 2**32 - 1), num_rows=st.integers(3, 130), level=st.floats(-1e4, 1e4), spread=st.floats(0.1, 100)
)
@settings(max_examples=50, deadline=None)
def test_regression_metrics_agree_with_scikit_learn_and_scipy(seed, num_rows, level, spread):
    rng = np.random.default_rng(seed)
    targets = level + spread * rng.normal(size=num_rows)
    predictions = targets + rng.normal(spread / 2, spread, size=num_rows)
    weights = rng.integers(0, 3, size=(2, num_rows)).astype(float)
    weights[:, :3] += 1
    ours = regression_metrics(targets, predictions, weights)
    assert set(ours) == set(REGRESSION_METRICS)
    for index, weight in enumerate(weights):
        repeated = np.repeat(np.arange(num_rows), weight.astype(int))
        expected = {
            "mse": oracle.mean_squared_error(targets, predictions, sample_weight=weight),
            "mae": oracle.mean_absolute_error(targets, predictions, sample_weight=weight),
            "rmse": oracle.root_mean_squared_error(targets, predictions, sample_weight=weight),
            "r2": oracle.r2_score(targets, predictions, sample_weight=weight),
            "pearson_r": pearsonr(targets[repeated], predictions[repeated]).statistic,
            "spearman_rho": spearmanr(targets[repeated], predictions[repeated]).statistic,
            "bias": np.average(predictions - targets, weights=weight),
        }
        expected["mae_over_sd"] = expected["mae"] / targets[repeated].std()
        for name, value in expected.items():
            # A level of 1e4 over a spread of 0.1 leaves 11 of float64's 16 digits; r near 0 has only absolute ones.
            assert ours[name][index] == pytest.approx(value, rel=1e-8, abs=1e-8), name


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
@settings(max_examples=50, deadline=None)
def test_correlation_knows_neither_unit_nor_zero_of_a_score(seed, scale, shift):
    rng = np.random.default_rng(seed)
    targets, predictions = rng.normal(size=(2, 17))
    plain = regression_metrics(targets, predictions)
    moved = regression_metrics(targets, scale * predictions + shift)
    both = regression_metrics(scale * targets + shift, scale * predictions + shift)
    # A shift of 100 over a spread of 0.01 leaves 12 digits.
    assert moved["pearson_r"] == pytest.approx(plain["pearson_r"], abs=1e-9)
    assert moved["spearman_rho"] == pytest.approx(plain["spearman_rho"], abs=1e-12)
    assert both["r2"] == pytest.approx(plain["r2"], rel=1e-8, abs=1e-8)
    assert both["mse"] == pytest.approx(scale**2 * plain["mse"], rel=1e-8)


def test_a_weighting_is_the_rows_repeated():
    rng = np.random.default_rng(1)
    targets, predictions = rng.normal(size=(2, 63))
    weights = rng.integers(0, 4, size=(1, 63)).astype(float)
    repeated = np.repeat(np.arange(63), weights[0].astype(int))
    ours, theirs = (
        regression_metrics(targets, predictions, weights),
        regression_metrics(targets[repeated], predictions[repeated]),
    )
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=ROUNDING), name


def test_what_one_number_leaves_undefined_is_nan_and_not_0():
    # 0.1 has no exact binary form: its sums round, and a spread of rounding must not pass for one.
    targets, same = np.array([1.0, 2.0, 4.0]), np.full(3, 0.1)
    guess = regression_metrics(targets, same)
    assert np.isnan(guess["pearson_r"][0])
    assert np.isnan(guess["spearman_rho"][0])
    assert guess["r2"][0] == pytest.approx(oracle.r2_score(targets, same))
    constant = regression_metrics(same, targets)
    assert np.isnan(constant["pearson_r"][0])
    assert np.isnan(constant["mae_over_sd"][0])
    assert np.isnan(constant["r2"][0])
    assert constant["mae"][0] == pytest.approx(np.abs(targets - 0.1).mean())


def test_only_the_weightings_without_spread_are_undefined():
    targets, predictions = np.array([1.0, 2.0, 2.1]) / 3, np.array([0.7, 0.1, 0.3]) / 3
    values = regression_metrics(targets, predictions, np.array([[1.0, 1.0, 1.0], [0.0, 3.0, 0.0]]))
    assert np.isfinite(values["pearson_r"]).tolist() == [True, False]
    assert np.isfinite(values["r2"]).tolist() == [True, False]
    assert np.isfinite(values["mse"]).all()


def test_the_mean_as_a_guess_explains_nothing():
    targets = np.random.default_rng(2).normal(size=65)
    values = regression_metrics(targets, np.full(65, targets.mean()))
    assert values["r2"][0] == pytest.approx(0, abs=ROUNDING)
    assert values["rmse"][0] == pytest.approx(targets.std(), abs=ROUNDING)


@pytest.mark.parametrize(
    ("targets", "predictions", "fault"),
    [
        ([1.0, 2.0], [1.0], "do not belong together"),
        ([], [], "do not belong together"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "do not belong together"),
        ([1.0, np.nan], [1.0, 2.0], "targets are not all numbers.*1 of 2"),
        ([1.0, 2.0], [np.inf, np.nan], "predictions are not all numbers.*2 of 2"),
    ],
)
def test_scores_that_are_no_numbers_or_no_pairs_are_refused(targets, predictions, fault):
    with pytest.raises(EvaluationError, match=fault):
        regression_metrics(np.array(targets), np.array(predictions))


def test_chance_of_balanced_accuracy_follows_the_number_of_classes():
    assert metric_table(4)["balanced_accuracy"].chance == 0.25
    assert "sensitivity" not in metric_table(3)

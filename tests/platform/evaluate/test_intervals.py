from functools import partial

import numpy as np
import pytest

from neuroray.platform.evaluate.intervals import Estimate, bound_extreme, draw_resamples, estimate
from neuroray.platform.evaluate.metrics import classification_metrics


def _two_columns(positive):
    return np.stack([1 - positive, positive], axis=1)


def test_rows_of_one_family_are_drawn_together():
    groups = ["a", "a", "b", "c", "c", "c"]
    weights = draw_resamples(groups, [0, 0, 0, 1, 1, 1], seed=0, num_resamples=50)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, 3] == weights[:, 5]).all()


def test_no_class_vanishes_from_a_resample_even_with_one_patient():
    labels = np.array([0] * 12 + [1])
    weights = draw_resamples([f"s{i}" for i in range(13)], labels.tolist(), seed=3, num_resamples=500)
    assert (weights[:, labels == 1].sum(axis=1) == 1).all()
    assert (weights[:, labels == 0].sum(axis=1) == 12).all()


def test_families_with_both_classes_are_a_stratum_of_their_own():
    groups, labels = ["f", "f", "a", "b", "c", "d"], [0, 1, 0, 0, 1, 1]
    weights = draw_resamples(groups, labels, seed=1, num_resamples=200)
    assert (weights[:, :2] == 1).all()
    assert len(np.unique(weights[:, 2:], axis=0)) > 2


def test_the_same_seed_gives_the_same_resamples_in_any_order_of_the_strata():
    groups, labels = [f"s{i}" for i in range(9)], [1, 0, 1, 0, 0, 1, 0, 1, 1]
    first = draw_resamples(groups, labels, seed=5, num_resamples=20)
    assert np.array_equal(first, draw_resamples(groups, labels, seed=5, num_resamples=20))
    assert not np.array_equal(first, draw_resamples(groups, labels, seed=6, num_resamples=20))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # Two unit normals 1 apart: AUC = Phi(1/sqrt 2) = 0.7602. 200 trials of a 95 % interval: the binomial's own 99.9 %
    # range is 178 to 199; the percentile bootstrap at n = 60 is a little narrow, which the lower bound allows for.
    truth, covered = 0.7602, 0
    labels = np.repeat([0, 1], 30)
    for trial in range(200):
        scores = np.random.default_rng(trial).normal(labels, 1.0)
        columns = _two_columns(1 / (1 + np.exp(-scores)))
        resamples = draw_resamples([str(i) for i in range(60)], labels.tolist(), seed=trial, num_resamples=300)
        auc = estimate(lambda weights, columns=columns: classification_metrics(labels, columns, weights), resamples)[
            "auc"
        ]
        covered += auc.low <= truth <= auc.high
    assert 172 <= covered <= 200


def test_grouped_resampling_is_wider_when_a_person_is_scanned_many_times():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat([0, 1], 10), 6)
    people = np.repeat([f"s{i}" for i in range(20)], 6)
    # One score per person, repeated: six scans of a person hold no more than one.
    positive = 1 / (1 + np.exp(-rng.normal(np.repeat([0, 1], 10), 1.0)))
    columns = _two_columns(np.repeat(positive, 6))

    def width(groups):
        resamples = draw_resamples(groups, labels.tolist(), seed=0, num_resamples=500)
        found = estimate(partial(classification_metrics, labels, columns), resamples)["auc"]
        return found.high - found.low

    assert width(people.tolist()) > 1.5 * width([str(i) for i in range(120)])


def test_blocks_do_not_change_the_interval():
    labels = np.tile([0, 1], 20)
    columns = _two_columns(np.random.default_rng(0).random(40))
    resamples = draw_resamples([str(i) for i in range(40)], labels.tolist(), seed=0, num_resamples=1201)
    found = estimate(partial(classification_metrics, labels, columns), resamples)["accuracy"]
    drawn = classification_metrics(labels, columns, resamples)["accuracy"]
    assert (found.low, found.high) == tuple(np.quantile(drawn, [0.025, 0.975]))


def test_resamples_without_a_value_are_counted_and_left_out():
    found = estimate(lambda weights: {"odd": np.where(weights[:, 0] > 1, np.nan, 1.0)}, np.array([[1.0], [2.0], [3.0]]))
    assert found["odd"].num_undefined == 2
    assert not found["odd"].has_width


def test_an_interval_says_where_it_lies_against_chance():
    assert Estimate(value=0.7, low=0.6, high=0.8).against(0.5) == "above"
    assert Estimate(value=0.5, low=0.4, high=0.6).against(0.5) == "includes"
    assert Estimate(value=0.3, low=0.2, high=0.4).against(0.5) == "below"


def test_a_metric_without_a_value_is_null_in_the_report():
    undefined = Estimate(value=float("nan"), low=float("nan"), high=float("nan"), num_undefined=7)
    assert undefined.to_json() == {
        "value": None,
        "low": None,
        "high": None,
        "num_undefined": 7,
        "interval": "bootstrap",
    }
    assert undefined.against(0.5) == "includes"
    with pytest.raises(AttributeError):
        undefined.value = 1.0


def test_a_perfect_rate_gets_an_exact_interval():
    from scipy.stats import binomtest

    perfect = Estimate(value=1.0, low=1.0, high=1.0)
    found = bound_extreme(perfect, 14)
    oracle = binomtest(14, 14).proportion_ci(confidence_level=0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)
    assert found.kind == "exact"
    none = bound_extreme(Estimate(value=0.0, low=0.0, high=0.0), 9)
    assert none.high == pytest.approx(binomtest(0, 9).proportion_ci(method="exact").high, abs=1e-12)


def test_an_interval_with_width_is_left_as_the_bootstrap_gave_it():
    found = Estimate(value=1.0, low=0.9, high=1.0)
    assert bound_extreme(found, 3) is found
    flat = Estimate(value=0.5, low=0.5, high=0.5)
    assert bound_extreme(flat, 3) is flat


def test_perfect_separation_of_two_and_two_people_does_not_beat_chance():
    assert bound_extreme(Estimate(value=1.0, low=1.0, high=1.0), 2).against(0.5) == "includes"

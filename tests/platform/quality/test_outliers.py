"""Robust z-scores, by hand and where half of the values are equal; what the majority has."""

from __future__ import annotations

import numpy as np
import pytest

from neuroray.platform.quality.outliers import THRESHOLD, find_majority, robust_z


def test_scores_are_distances_from_the_median_in_scaled_mads():
    values = [1.0, 2.0, 3.0, 4.0, 100.0]
    # Median 3, absolute deviations 2 1 0 1 97: their median is 1.
    assert robust_z(values) == pytest.approx([(value - 3) / 1.4826 for value in values])


def test_one_wild_value_does_not_hide_another():
    values = [*np.random.default_rng(0).normal(10, 1, 15), 1e6, 30.0]
    scores = robust_z(values)
    assert [index for index, score in enumerate(scores) if abs(score) > THRESHOLD] == [15, 16]


def test_where_half_are_equal_the_mean_deviation_is_the_scale():
    values = [5.0] * 9 + [6.0]
    assert robust_z(values)[-1] == pytest.approx(1 / (1.253314 * 0.1))
    assert robust_z(values)[0] == 0


def test_nobody_stands_apart_where_all_are_equal_or_few_are_known():
    assert robust_z([0.3] * 6) == [0.0] * 6
    assert robust_z([0.1 + 0.2] * 3 + [0.3] * 3) == [0.0] * 6, "rounding is no difference"
    assert robust_z([1.0, 2.0, 3.0, 900.0]) == [None] * 4
    assert robust_z([1.0, None, 2.0, 3.0, 4.0, 5.0])[1] is None


def test_a_majority_is_more_than_half_of_three_or_more():
    assert find_majority({"a": 1, "b": 1, "c": 2}) == 1
    assert find_majority({"a": 1, "b": 1, "c": 2, "d": 2}) is None
    assert find_majority({"a": 1, "b": 1}) is None

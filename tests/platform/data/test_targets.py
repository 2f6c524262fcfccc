"""Targets: what is taken from the training scans, and how outputs are read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from neuroray.platform.data.targets import Target, TargetError, class_target, number_target, slice_outputs

LABELS = {"a": "x", "b": "y", "c": "y", "d": "y", "e": "z"}


def test_class_weights_make_classes_count_the_same_on_the_training_side():
    target = class_target("kind", LABELS, train=["a", "b", "c", "d", "e"], balanced=True)
    counts = np.array([1, 3, 1])
    np.testing.assert_allclose(np.array(target.class_weights) * counts, 5 / 3)
    assert class_target("kind", LABELS, train=["a", "b", "e"], balanced=False).class_weights == (1, 1, 1)
    assert target.value("e") == 2
    assert np.isnan(target.value("nobody"))


def test_a_number_is_standardised_by_the_training_side():
    target = number_target("age_years", {"a": 10.0, "b": 20.0, "c": 900.0}, train=["a", "b", "without"])
    assert (target.mean, target.std, target.unit) == (15, 5, "years")
    assert target.numbers(torch.tensor([[2.0], [-1.0]])).tolist() == [25, 10]


def test_two_classes_share_one_output_and_more_have_one_each():
    two, three = (Target(name="t", kind="class", classes=classes) for classes in (("n", "p"), ("a", "b", "c")))
    assert two.probabilities(torch.tensor([[0.0], [2.0]]))[:, 1].tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-2))])
    np.testing.assert_allclose(two.probabilities(torch.tensor([[30.0]])).sum(1), 1)
    np.testing.assert_allclose(three.probabilities(torch.zeros(1, 3)), 1 / 3)
    number = Target(name="n", kind="number")
    assert slice_outputs([two, three, number]) == [slice(0, 1), slice(1, 4), slice(4, 5)]


def test_a_target_survives_its_card():
    for target in (class_target("kind", LABELS, train=list(LABELS), balanced=True), Target(name="n", kind="number")):
        described = json.loads(json.dumps(target.to_json()))
        assert Target.from_json(described).to_json() == described
        assert "values" not in described


@pytest.mark.parametrize(
    ("labels", "train", "message"),
    [({"a": "x", "b": "x"}, ["a"], "one class of kind"), (LABELS, ["a", "b"], "nobody of class z")],
)
def test_classes_that_cannot_be_learned_are_refused(labels: dict[str, str], train: list[str], message: str):
    with pytest.raises(TargetError, match=message):
        class_target("kind", labels, train=train, balanced=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"a": 7.1, "b": 7.1, "c": 7.1}, "the same for all"), ({"a": 1.0, "q": 2.0}, "too few training scans")],
)
def test_numbers_that_cannot_be_learned_are_refused(values: dict[str, float], message: str):
    with pytest.raises(TargetError, match=message):
        number_target("n", values, train=["a", "b", "c"])

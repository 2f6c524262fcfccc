"""Ages and diagnoses held against a model's training, in words that say what is the matter."""

from __future__ import annotations

import pytest

from neuroray.platform.generate.ages import UnseenError, compare_ages, compare_diagnosis

CARD = {"age_range_years": [50.0, 82.0], "gap_range_years": [2.0, 8.0], "diagnoses": {"": 3, "control": 12}}


@pytest.mark.parametrize(
    ("age", "target", "told"),
    [
        (9.0, 60.0, "the scan is a child's, and the model was trained on adults alone; given 9 years"),
        (9.0, 12.0, "the scan is a child's"),
        (30.0, 60.0, "all of its people were older than this person; given 30 years; expected 50 to 82"),
        (60.0, 90.0, "no such ages; given 90 years"),
        (60.0, 12.0, "a child's brain is asked for"),
    ],
)
def test_ages_outside_are_refused_in_words_that_fit(age: float, target: float, told: str) -> None:
    with pytest.raises(UnseenError, match=told):
        compare_ages(age, (target,), CARD, allow_outside=False)
    assert any("nothing vouches" in one for one in compare_ages(age, (target,), CARD, allow_outside=True))


def test_a_model_of_children_takes_children() -> None:
    assert compare_ages(9.0, (11.0,), {**CARD, "age_range_years": [8.0, 14.0]}, allow_outside=False) == ()


def test_a_diagnosis_that_training_has_not_seen_is_refused() -> None:
    with pytest.raises(
        UnseenError, match=r"nobody with this diagnosis.*given dementia; expected not recorded, control"
    ):
        compare_diagnosis("dementia", CARD, allow_outside=False)
    (note,) = compare_diagnosis("dementia", CARD, allow_outside=True)
    assert "nothing vouches" in note
    assert compare_diagnosis("Control", CARD, allow_outside=False) == ()
    assert compare_diagnosis(None, CARD, allow_outside=False) == ()


@pytest.mark.parametrize("known", [None, {}, {"": 15}])
def test_where_nothing_is_recorded_nothing_is_compared_and_that_is_said(known: dict[str, int] | None) -> None:
    card = {name: value for name, value in {**CARD, "diagnoses": known}.items() if value is not None}
    (note,) = compare_diagnosis("dementia", card, allow_outside=False)
    assert "not recorded" in note

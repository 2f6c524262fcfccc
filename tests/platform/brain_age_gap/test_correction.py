"""Corrections of predicted ages: their identities, who they may be fitted on, and what they do to a useless model."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr

from neuroray.platform.brain_age_gap.answers import ages_of, predictions_of
from neuroray.platform.brain_age_gap.correction import fit_correction
from neuroray.platform.brain_age_gap.errors import GapError


def test_beheshti_is_de_lange_and_cole_is_it_over_the_slope(answers):
    controls, judged = answers(65, seed=1), answers(63, seed=2, start=500)
    found = fit_correction(controls, judged)
    ages, predicted = ages_of(judged), predictions_of(judged)
    slope, intercept = np.polyfit(ages_of(controls), predictions_of(controls), 1)
    gap_slope, gap_intercept = np.polyfit(ages_of(controls), predictions_of(controls) - ages_of(controls), 1)
    beheshti = predicted - (gap_slope * ages + gap_intercept)
    de_lange = predicted + ages - (slope * ages + intercept)
    # Lines through ages of some tens, in float64.
    np.testing.assert_allclose(beheshti, de_lange, atol=1e-9)
    np.testing.assert_allclose(found.correct("beheshti", ages, predicted), de_lange, atol=1e-9)
    cole = found.correct("cole", ages, predicted)
    np.testing.assert_allclose(cole - ages, (de_lange - ages) / slope, atol=1e-9)
    assert found.correct("raw", ages, predicted) is predicted


def test_cole_needs_nobodys_true_age_and_undoes_the_line(answers):
    controls = answers(65, seed=1, noise_years=0.0, slope=0.6, intercept=19.0)
    found = fit_correction(controls, answers(1, start=900))
    assert (found.slope, found.intercept_years) == (pytest.approx(0.6), pytest.approx(19.0))
    assert found.residual_years == pytest.approx(0, abs=1e-9)
    said = 0.6 * np.array([33.0, 71.0]) + 19.0
    np.testing.assert_allclose(found.correct("cole", np.full(2, np.nan), said), [33.0, 71.0])


def test_controls_who_are_judged_are_refused_and_so_are_their_relatives(answers, answer):
    controls = answers(20)
    with pytest.raises(GapError, match="must not be fitted on those it corrects; given 1 people or families"):
        fit_correction(controls, [controls[3]])
    sister = answer(subject="x", family_id="f"), answer(subject="y", family_id="f")
    with pytest.raises(GapError, match="must not be fitted"):
        fit_correction([*controls, sister[0]], [sister[1]])


def test_too_few_controls_or_controls_of_one_age_are_refused(answers, answer):
    with pytest.raises(GapError, match="too few controls to fit a correction on; given 4 people"):
        fit_correction(answers(4), [])
    twins = [answer(subject=str(index)) for index in range(7)]
    with pytest.raises(GapError, match="of one age"):
        fit_correction(twins, [])


def test_a_model_without_any_signal_shines_after_correction_and_a_flat_line_is_not_inverted():
    """The warning of de Lange et al. 2022: the corrected numbers are those of the true age."""
    rng = np.random.default_rng(0)
    ages, other = rng.uniform(20, 80, 300), rng.uniform(20, 80, 300)

    from neuroray.platform.brain_age_gap.answers import AgeAnswer

    def say(ages, start):
        said = 50 + rng.normal(0, 3, len(ages))
        return [
            AgeAnswer(fold=0, scan_id=str(start + i), subject=str(start + i), age_years=age, predicted_years=told)
            for i, (age, told) in enumerate(zip(ages, said, strict=True))
        ]

    judged = say(ages, 1000)
    found = fit_correction(say(other, 0), judged)
    predicted = predictions_of(judged)
    assert abs(pearsonr(ages, predicted).statistic) < 0.15
    corrected = found.correct("beheshti", ages, predicted)
    assert pearsonr(ages, corrected).statistic > 0.98
    assert np.abs(corrected - ages).mean() < np.abs(predicted - ages).mean() / 5
    assert not found.can_invert
    assert np.isnan(found.correct("cole", ages, predicted)).all()

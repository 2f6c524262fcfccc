"""Answers of made-up models whose gaps are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from neuroray.platform.brain_age_gap.answers import AgeAnswer

MakeAnswers = Callable[..., list[AgeAnswer]]


def make_answers(
    num_people: int = 130,
    *,
    seed: int = 0,
    slope: float = 0.8,
    intercept: float = 10.0,
    gap_years: float = 0.0,
    noise_years: float = 3.0,
    num_folds: int = 2,
    num_sites: int = 3,
    start: int = 0,
) -> list[AgeAnswer]:
    """A model that says `slope * (age + gap of cases) + intercept + noise`; every second pair of people are cases."""
    rng = np.random.default_rng(seed)
    answers = []
    for index in range(start, start + num_people):
        is_case = index % 4 >= 2
        age = float(rng.uniform(20, 80))
        seen = slope * (age + gap_years * is_case) + intercept + rng.normal(0, noise_years)
        answers.append(
            AgeAnswer(
                fold=index % num_folds,
                scan_id=f"scan-{index:04d}",
                subject=f"{index:04d}",
                age_years=age,
                predicted_years=float(seen),
                sex="MF"[index % 2],
                site=f"site-{int(rng.integers(num_sites))}",
                group="patient" if is_case else "control",
            )
        )
    return answers


@pytest.fixture
def answer() -> Callable[..., AgeAnswer]:
    def make(**changes: Any) -> AgeAnswer:
        settings: dict[str, Any] = {"fold": 0, "scan_id": "a", "subject": "a", "age_years": 50.0}
        return AgeAnswer(**{**settings, "predicted_years": 55.0, **changes})

    return make


@pytest.fixture
def answers() -> MakeAnswers:
    return make_answers

"""Several models on the same pairs of another cohort: one row for each pair, its figures the means over the models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from neuroray.platform.evaluate.ageing_evidence import JudgedPair


def average_models(judged: Sequence[JudgedPair]) -> list[JudgedPair]:
    """Each pair once, with the mean over the models that told it of every score, volume, change and age read.

    What one of the models has not, the mean has not. The fold is that of the first.
    """
    told: dict[tuple[str, str], list[JudgedPair]] = {}
    for one in judged:
        told.setdefault((one.pair.previous.scan_id, one.pair.target.scan_id), []).append(one)
    return [_average(some) for some in told.values()]


def _average(some: Sequence[JudgedPair]) -> JudgedPair:
    return JudgedPair(
        fold=some[0].fold,
        pair=some[0].pair,
        scores=_mean_table(some, lambda one: one.scores),
        volumes_ml=_mean_table(some, lambda one: one.volumes_ml),
        changes_ml=_mean_table(some, lambda one: one.changes_ml),
        predicted_ages_years=_mean([one.predicted_ages_years for one in some]),
        predicted_starts_years=_mean([one.predicted_starts_years for one in some]),
    )


def _mean_table(
    some: Sequence[JudgedPair], choose: Callable[[JudgedPair], Mapping[str, Mapping[str, float]]]
) -> dict[str, dict[str, float]]:
    tables = [choose(one) for one in some]
    return {row: _mean([table[row] for table in tables]) for row in tables[0] if all(row in table for table in tables)}


def _mean(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = [name for name in values[0] if all(name in one for one in values)]
    return {name: float(np.mean([one[name] for one in values])) for name in shared}

"""Who stands apart from the rest of a cohort: robust z-scores, and what the majority has and one has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

THRESHOLD = 3.5
"""Of the modified z-score (Iglewicz and Hoaglin 1993)."""
FEWEST = 5
"""Below this many scans nobody is said to stand apart."""
_MAD_FACTOR, _MEAN_FACTOR = 1.4826, 1.253314  # to the standard deviation of a normal distribution
_ROUNDING = 1e-9


def robust_z(values: Sequence[float | None]) -> list[float | None]:
    """How many robust standard deviations each value lies from the median; None for what is not known.

    `(value - median) / (1.4826 MAD)`, which is 0.6745 (value - median) / MAD. Where more than half of the values are
    equal, the MAD is 0 and 1.253314 times the mean absolute deviation takes its place, as Iglewicz and Hoaglin do;
    where all are equal, every z is 0. With fewer than five values nothing is said.
    """
    known = np.array([value for value in values if value is not None], dtype=np.float64)
    if len(known) < FEWEST:
        return [None] * len(values)
    median = float(np.median(known))
    distance = np.abs(known - median)
    scale = _MAD_FACTOR * float(np.median(distance))
    if scale <= _ROUNDING * max(1.0, abs(median)):
        scale = _MEAN_FACTOR * float(distance.mean())
    if scale <= _ROUNDING * max(1.0, abs(median)):
        return [None if value is None else 0.0 for value in values]
    return [None if value is None else (value - median) / scale for value in values]


def find_majority[K: Hashable](values: Mapping[str, K]) -> K | None:
    """What more than half have; None where nothing is so common, or there are fewer than three."""
    if len(values) < 3:
        return None
    value, count = Counter(values.values()).most_common(1)[0]
    return value if 2 * count > len(values) else None

"""Predicted against measured connectivity, person by person, and against saying the training people's mean of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.data.labels import read_number
from neuroray.platform.evaluate.intervals import Estimate, draw_resamples, estimate
from neuroray.platform.evaluate.loaded import load_window_model
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.evaluate.run import RunFold
from neuroray.platform.evaluate.window_protocol import judge_runs
from neuroray.storage.store import ScanStore

PREFIX = "fc_"
# Of fewer edges a correlation over edges is a coin.
_FEWEST_EDGES = 3
_MEANINGS = {
    "r": "Pearson's r over edges between predicted and measured connectivity of one person, mean over people",
    "r_of_mean": "the same of saying the training people's mean of everybody",
    "gain": "r less r_of_mean: what the model knows of connectivity beyond the mean",
    "r_without_mean": "r after the training mean is taken from both: what it knows of how this person differs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectomeEvaluation:
    """What was found.

    Attributes:
        edges: The targets, in order.
        metrics: By the names of their meanings, mean over held-out scans, with 95 % intervals over families or people.
        num_people: Judged.
        each: r of each scan, by scan id; stays where the data may be.
    """

    edges: tuple[str, ...]
    metrics: Mapping[str, Estimate]
    num_people: int
    each: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Without a name of anybody."""
        return {
            "num_edges": len(self.edges),
            "num_scans": len(self.each),
            "num_people": self.num_people,
            "metrics": {name: {**one.to_json(), "meaning": _MEANINGS[name]} for name, one in self.metrics.items()},
        }


def list_edge_targets(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Those targets of a model that are edges; none where they are too few to correlate over."""
    names = tuple(one["name"] for one in card.get("targets", ()) if one["name"].startswith(PREFIX))
    return names if len(names) >= _FEWEST_EDGES else ()


def evaluate_connectome(
    runs: Sequence[RunFold],
    store: ScanStore,
    *,
    seed: int,
    num_resamples: int,
    device: str = "cpu",
    track: Callable[[Sequence[str]], Iterable[str]] | None = None,
) -> ConnectomeEvaluation:
    """Judges the test people of all folds; scans of which an edge is not known are left out.

    Raises:
        EvaluationError: a model with fewer than three edges among its targets, or nobody who has them all.
    """
    edges = list_edge_targets(runs[0].card)
    if not edges:
        raise EvaluationError("the model was not asked for connectivity", expected=f"targets named {PREFIX}...")
    records = {record.scan_id: record for record in store.records()}
    rows, groups, each = [], [], {}
    for fold in runs:
        model = load_window_model(fold.path / "model", device=device)
        mean = np.array([target.mean for target in model.targets if target.name in edges])
        truth = {
            scan_id: np.array([_or_nan(read_number(records[scan_id], name)) for name in edges], dtype=float)
            for scan_id in fold.split.test
        }
        known = [scan_id for scan_id in fold.split.test if np.isfinite(truth[scan_id]).all()]
        for scan_id, answers in judge_runs(model, store, known, track=track):
            said = np.array([one.value for one in answers if one.name in edges], dtype=float)
            row = compare_edges(said, truth[scan_id], mean)
            rows.append(row)
            each[scan_id] = row["r"]
            groups.append(name_group(records[scan_id].subject, records[scan_id].family_id))
    if not rows:
        raise EvaluationError("nobody on the test side has the connectivity", fix="neuroray connectivity STORE")
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    resamples = draw_resamples(groups, ["all"] * len(groups), seed=seed, num_resamples=num_resamples)

    def weigh(weights: Float[np.ndarray, "resample row"]) -> dict[str, Float[np.ndarray, " resample"]]:
        return {name: weights @ value / weights.sum(axis=1) for name, value in values.items()}

    people = {records[scan_id].subject for scan_id in each}
    return ConnectomeEvaluation(edges=edges, metrics=estimate(weigh, resamples), num_people=len(people), each=each)


def compare_edges(
    said: Float[np.ndarray, " edge"], truth: Float[np.ndarray, " edge"], mean: Float[np.ndarray, " edge"]
) -> dict[str, float]:
    """Of one scan; an r of what does not vary is 0: it knows nothing."""
    found = {
        "r": _correlate(said, truth),
        "r_of_mean": _correlate(mean, truth),
        "r_without_mean": _correlate(said - mean, truth - mean),
    }
    return {**found, "gain": found["r"] - found["r_of_mean"]}


def _correlate(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((first @ first) * (second @ second)))
    # Where the mean alone is said, rounding is left of the difference.
    return float(first @ second / scale) if scale > 1e-12 * len(first) else 0.0


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value

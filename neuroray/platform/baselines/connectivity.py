"""Functional connectivity: which regions of a person's brain fluctuate together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neuroray.platform.baselines.parcels import Parcels
from neuroray.platform.baselines.series import CleaningConfig, clean_series, read_region_series
from neuroray.storage.store import ScanStore

# Two regions of the same voxels correlate to 1 within rounding, whose Fisher z is infinite: z ends at about 7.3.
_LARGEST_CORRELATION = 1 - 1e-6
# A spread below this part of the level is rounding of a region that does not change.
_LEAST_SPREAD = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFeatures:
    """What is known of a run without its voxels.

    Attributes:
        edges: Fisher z of the correlation of every pair of regions: the upper triangle, row by row.
        levels: Mean signal of each region over the run, z-scored over the regions: anatomy, and nothing that changes.
    """

    edges: Float[np.ndarray, " edge"]
    levels: Float[np.ndarray, " region"]


def connect(series: Float[np.ndarray, "time region"]) -> Float[np.ndarray, " edge"]:
    """Fisher z of Pearson's r for each pair of regions, upper triangle without the diagonal, row by row.

    A region that does not change correlates with none: its r is 0.
    """
    centred = series - series.mean(axis=0)
    spread = np.sqrt((centred**2).mean(axis=0))
    level = np.maximum(np.abs(series).max(axis=0), 1e-300)
    unit = np.where(spread > _LEAST_SPREAD * level, centred / np.where(spread > 0, spread, 1), 0)
    correlation = unit.T @ unit / len(series)
    upper = correlation[np.triu_indices(series.shape[1], k=1)]
    return np.arctanh(np.clip(upper, -_LARGEST_CORRELATION, _LARGEST_CORRELATION))


def to_matrix(edges: Float[np.ndarray, "*row edge"], num_regions: int) -> Float[np.ndarray, "*row region region"]:
    """The symmetric matrices that `connect` took the upper triangle of; 0 on the diagonal."""
    matrix = np.zeros((*edges.shape[:-1], num_regions, num_regions), dtype=edges.dtype)
    rows, columns = np.triu_indices(num_regions, k=1)
    matrix[..., rows, columns] = matrix[..., columns, rows] = edges
    return matrix


def measure_run(store: ScanStore, scan_id: str, parcels: Parcels, cleaning: CleaningConfig) -> RunFeatures:
    """Connectivity and levels of one run.

    Raises:
        BaselineError: the run does not lie on the parcels' grid, or has no repetition time where one is needed.
        StoreError: it cannot be read.
    """
    record = store.record(scan_id)
    series = read_region_series(store, scan_id, parcels.place(record), parcels.num_regions)
    means = series.mean(axis=0)
    cleaned = clean_series(series, record.repetition_time_s, cleaning) + means
    spread = means.std()
    return RunFeatures(
        edges=connect(cleaned).astype(np.float32),
        levels=((means - means.mean()) / (spread if spread > 0 else 1.0)).astype(np.float32),
    )


def measure_runs(
    store: ScanStore, scan_ids: Iterable[str], parcels: Parcels, cleaning: CleaningConfig
) -> dict[str, RunFeatures]:
    """`measure_run` for each; one run at a time is in memory."""
    return {scan_id: measure_run(store, scan_id, parcels, cleaning) for scan_id in scan_ids}


def stack_features(
    found: Mapping[str, RunFeatures], scan_ids: Sequence[str]
) -> tuple[Float[np.ndarray, "row edge"], Float[np.ndarray, "row region"]]:
    """Edges and levels of some runs, in this order."""
    return np.stack([found[scan_id].edges for scan_id in scan_ids]), np.stack(
        [found[scan_id].levels for scan_id in scan_ids]
    )

"""Runs as regional time series, streamed a few frames at a time, with slow drifts taken out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from neuroray.config import Config
from neuroray.platform.baselines.errors import BaselineError
from neuroray.storage.store import ScanStore

# 16 frames of 91 x 109 x 91 in float32 are 58 MB: what stands in memory beside the result.
_FRAMES_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningConfig(Config):
    """What is taken out of a region's time series before it is correlated with others.

    Attributes:
        high_pass_hz: Slower fluctuations are drift; 0 takes out a straight line only, and needs no repetition time.
        global_signal: Also take out the mean of all regions, frame by frame (Murphy and Fox 2017 on its price).
    """

    high_pass_hz: float = 0.01
    global_signal: bool = False

    def __post_init__(self) -> None:
        if self.high_pass_hz < 0:
            raise BaselineError("a frequency is negative", given=self.high_pass_hz, expected="0 or more, in Hz")


def drift_basis(
    num_frames: int, repetition_time_s: float | None, config: CleaningConfig
) -> Float[np.ndarray, "time drift"]:
    """Orthonormal columns: a constant, a line, and the cosines slower than `high_pass_hz` (as SPM's basis).

    Raises:
        BaselineError: a frequency in Hz needs a repetition time; or nothing would be left of so short a run.
    """
    if config.high_pass_hz > 0 and repetition_time_s is None:
        raise BaselineError(
            "a run has no repetition time, so that its frequencies are not known",
            given=f"high_pass_hz {config.high_pass_hz}",
            fix="--high-pass-hz 0 takes out a straight line only; or ingest the run with its sidecar",
        )
    duration_s = num_frames * (repetition_time_s or 0.0)
    num_cosines = int(np.floor(2 * duration_s * config.high_pass_hz))
    time = (np.arange(num_frames) + 0.5) / num_frames
    columns = [np.ones(num_frames), time, *(np.cos(np.pi * k * time) for k in range(1, num_cosines + 1))]
    if len(columns) + 2 > num_frames:
        raise BaselineError(
            "a run is too short for what is to be taken out of it",
            given=f"{num_frames} frames, {len(columns)} drifts",
            fix="a lower --high-pass-hz, or leave the run out",
        )
    return np.linalg.qr(np.stack(columns, axis=1))[0]


def clean_series(
    series: Float[np.ndarray, "time region"], repetition_time_s: float | None, config: CleaningConfig
) -> Float[np.ndarray, "time region"]:
    """The series without drift, and without their common mean where that is asked for.

    Raises:
        BaselineError: as `drift_basis`.
    """
    drift = drift_basis(len(series), repetition_time_s, config)
    cleaned = series - drift @ (drift.T @ series)
    if config.global_signal:
        common = cleaned.mean(axis=1)
        power = common @ common
        cleaned = cleaned - np.outer(common, common @ cleaned / power) if power > 0 else cleaned
    return cleaned


def read_region_series(
    store: ScanStore, scan_id: str, labels: Int[np.ndarray, "x y z"], num_regions: int
) -> Float[np.ndarray, "time region"]:
    """The mean over each region's voxels in every frame; 0 for a region without voxels.

    A voxel whose value is not a number in a frame does not count there.

    Raises:
        StoreError: the run cannot be read.
        BaselineError: it is no run, lies on another grid, or a region has no number in some frame.
    """
    record = store.record(scan_id)
    if len(record.shape) != 4 or record.shape[1:] != labels.shape:
        raise BaselineError(
            f"run {scan_id} does not lie on the grid of the regions",
            given=record.shape,
            expected=f"time and {labels.shape}",
            fix="bring all runs to one grid, or use spheres: --parcels seitzman",
        )
    inside = np.flatnonzero(labels)
    members = sparse.csr_array(
        (np.ones(len(inside), np.float32), (labels.ravel()[inside] - 1, np.arange(len(inside)))),
        shape=(num_regions, len(inside)),
    )
    parts = []
    for start in range(0, record.shape[0], _FRAMES_AT_ONCE):
        frames = store.read_window(scan_id, start, min(start + _FRAMES_AT_ONCE, record.shape[0]))
        parts.append(_mean_by_region(frames.reshape(len(frames), -1)[:, inside], members, scan_id))
    return np.concatenate(parts)


def read_brain(store: ScanStore, scan_id: str) -> Bool[np.ndarray, "x y z"]:
    """The brain mask of a run.

    Raises:
        BaselineError: the store has none.
    """
    mask = store.read_mask(scan_id)
    if mask is None:
        raise BaselineError(f"run {scan_id} has no brain mask", fix="ingest it with the profile fmri_minimal")
    return mask


def _mean_by_region(values: np.ndarray, members: sparse.csr_array, scan_id: str) -> Float[np.ndarray, "time region"]:
    values = values.astype(np.float64)
    counts = np.asarray(members.sum(axis=1))
    finite = np.isfinite(values)
    if finite.all():
        return np.asarray(members @ values.T).T / np.maximum(counts, 1)
    found = np.asarray(members @ finite.T.astype(np.float64)).T
    if (found[:, counts > 0] == 0).any():
        raise BaselineError(
            f"run {scan_id} has frames in which a whole region is not a number", fix="look at it: neuroray qc"
        )
    return np.asarray(members @ np.where(finite, values, 0).T).T / np.maximum(found, 1)

"""Maps of runs over anatomy: the mean image of the run itself, or of a group on one grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from neuroray.platform.explain.overlay import VoxelMap, draw_map
from neuroray.platform.explain.runs import RunExplanation
from neuroray.storage.scan import Scan

_FRAMES_AT_ONCE = 16


def average_frames(run: Scan) -> Scan:
    """The mean image of a run as a volume with its affine and flags; what is no number counts as 0."""
    total = np.zeros(run.grid_shape)
    for start in range(0, run.num_frames, _FRAMES_AT_ONCE):
        frames = np.asarray(run.voxels[start : start + _FRAMES_AT_ONCE], dtype=np.float64)
        total += np.nan_to_num(frames, nan=0.0, posinf=0.0, neginf=0.0).sum(axis=0)
    voxels = (total / run.num_frames).astype(np.float32)
    return dataclasses.replace(run, voxels=voxels, repetition_time_s=None)


def average_anatomy(runs: Iterable[Scan]) -> Scan:
    """The mean of the mean images of those runs that lie on the grid of the first, each with its median at 1."""
    first, total, count = None, np.empty(0), 0
    for run in runs:
        mean = average_frames(run)
        if first is None:
            first, total = mean, np.zeros(mean.grid_shape)
        if mean.grid_shape != first.grid_shape or not np.allclose(mean.affine, first.affine, atol=1e-3):
            continue
        inside = mean.voxels[mean.voxels > 0]
        total += mean.voxels / (float(np.median(inside)) if len(inside) else 1.0)
        count += 1
    if first is None:
        raise ValueError("no run to average")
    return dataclasses.replace(first, voxels=(total / count).astype(np.float32))


def draw_run_map(anatomy: Scan, found: RunExplanation) -> Figure:
    """What each voxel added over the run, on axial planes."""
    quantity = f"{found.target}: what a voxel adds over the run"
    return draw_map(anatomy, VoxelMap(values=found.values, quantity=quantity, is_signed=True))


def draw_group_map(anatomy: Scan, values: Float[np.ndarray, "x y z"], target: str, num_runs: int) -> Figure:
    """The mean map of a group, each of its runs scaled to magnitudes that sum to 1."""
    quantity = f"{target}: what a voxel adds, as a part of all magnitudes, mean of {num_runs} runs"
    return draw_map(anatomy, VoxelMap(values=values, quantity=quantity, is_signed=True))

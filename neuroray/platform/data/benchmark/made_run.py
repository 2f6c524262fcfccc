"""A run to measure on: real frames upsampled to 2 mm inside a brain mask, with noise that packs as real noise does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from neuroray.storage.nifti import read_scan
from neuroray.storage.scan import Scan

WHOLE_SHAPE = (1200, 91, 109, 91)
QUICK_SHAPE = (48, 13, 15, 11)

_NUM_FIELDS = 24
_SMOOTHNESS_VOXELS = 1.2
_TEMPORAL_SPREAD = 0.012
_WHITE_SPREAD = 0.004
_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2.0, 0, -126], [0, 0, 2.0, -72], [0, 0, 0, 1]])


def make_run(source: Path, shape: tuple[int, int, int, int], seed: int = 0) -> Scan:
    """A time series in int16, zero outside the brain, as preprocessed runs are.

    The signal of a voxel is that of the source's frames, upsampled; round it fluctuate mixtures of smooth fields (1.2 %
    of the mean, 2.8 voxels wide at half height, as resampling to a template leaves it) and white noise (0.4 %).

    Args:
        source: The folder of a small BIDS run and the mask of a template: `sub-001/func/*_bold.nii.gz` and
            `std/*_brain_mask.nii.gz`.
        shape: Frames, x, y, z.
        seed: Of the noise.

    Raises:
        ScanError: the source cannot be read.
    """
    generator = np.random.default_rng(seed)
    grid = shape[1:]
    frames = read_scan(source / "sub-001/func/sub-001_task-rest_bold.nii.gz").voxels.astype(np.float32)
    mask = read_scan(source / "std/MNI152_T1_5mm_brain_mask.nii.gz").voxels.astype(np.float32)
    brain = _resize(mask, grid) > 0.5
    anatomy = np.stack([_resize(frame, grid)[brain] for frame in frames[:: max(1, len(frames) // 4)]])
    anatomy *= 10000.0 / max(float(anatomy.mean()), 1.0)
    fields = np.stack([_smooth_noise(generator, grid)[brain] for _ in range(_NUM_FIELDS)])
    voxels = np.zeros(shape, np.int16)
    for frame in voxels:
        base = anatomy[generator.integers(len(anatomy))]
        weights = generator.standard_normal(4, dtype=np.float32) / 2
        slow = weights @ fields[generator.choice(_NUM_FIELDS, 4, replace=False)]
        white = generator.standard_normal(slow.shape, dtype=np.float32)
        frame[brain] = np.clip(base * (1 + _TEMPORAL_SPREAD * slow + _WHITE_SPREAD * white), 1, 32767)
    return Scan(voxels=voxels, affine=_AFFINE, repetition_time_s=0.72)


def _resize(values: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    factors = [target / length for target, length in zip(grid, values.shape, strict=True)]
    return np.asarray(ndimage.zoom(values, factors, order=1, grid_mode=True, mode="nearest"))


def _smooth_noise(generator: np.random.Generator, grid: tuple[int, ...]) -> np.ndarray:
    noise = ndimage.gaussian_filter(generator.standard_normal(grid, dtype=np.float32), _SMOOTHNESS_VOXELS)
    return noise / noise.std()

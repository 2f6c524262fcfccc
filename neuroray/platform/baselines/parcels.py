"""Regions to average over: fitted on the training people's runs alone, or spheres of a published atlas."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from neuroray.config import Config
from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.series import CleaningConfig, drift_basis, read_brain
from neuroray.platform.data.atlas import ATLASES, label_spheres, load_roi_atlas
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

_FRAMES_AT_ONCE = 16
# A voxel takes part when it lies in the brain of at least this part of the training runs.
_SHARED_FRACTION = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ParcelConfig(Config):
    """Which regions.

    Attributes:
        method: `ward` joins neighbouring voxels that fluctuate alike (Michel et al. 2012), `kmeans` any voxels that do;
            both are fitted on training runs on one grid. The others are spheres at MNI coordinates, for runs whose
            affine leads to MNI152 space.
        num_regions: Of a fitted parcellation.
        max_runs: Training runs that the fit looks at, spread evenly over them.
        sketch_size: Numbers that stand for a run's frames in the fit: random projections, which keep distances between
            voxels' series within about 1 / sqrt(max_runs * sketch_size) (Johnson and Lindenstrauss 1984).
        seed: Of the projections, and of k-means.
    """

    method: Literal["ward", "kmeans", "seitzman", "power", "dosenbach"] = "ward"
    num_regions: int = 100
    max_runs: int = 60
    sketch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_regions", 2), ("max_runs", 1), ("sketch_size", 1)):
            if getattr(self, name) < least:
                raise BaselineError(f"{name} is too small", given=getattr(self, name), expected=f"{least} or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcels:
    """Regions, for runs of one grid or of any.

    Attributes:
        config: How they were made.
        num_regions: How many.
        labels: Of a fitted parcellation: the region of each voxel from 1, 0 outside; None for spheres.
    """

    config: ParcelConfig
    num_regions: int
    labels: Int[np.ndarray, "x y z"] | None

    def place(self, record: ScanRecord) -> Int[np.ndarray, "x y z"]:
        """The labels for a run: the fitted ones, or the spheres where its affine puts them."""
        if self.labels is not None:
            return self.labels
        x, y, z = record.shape[-3:]
        affine = np.array(record.affine).reshape(4, 4)
        return label_spheres(load_roi_atlas(self.config.method), (x, y, z), affine)  # pyright: ignore[reportArgumentType] # an atlas's name, for it has no labels


def make_parcels(store: ScanStore, train: Sequence[str], config: ParcelConfig, cleaning: CleaningConfig) -> Parcels:
    """Fits regions on training runs, or takes those of the atlas.

    Raises:
        BaselineError: training runs on different grids, or fewer voxels than regions.
        StoreError: a run cannot be read.
    """
    if config.method in ATLASES:
        atlas = load_roi_atlas(config.method)
        return Parcels(config=config, num_regions=len(atlas.centres_mm), labels=None)
    chosen = _spread(train, config.max_runs)
    mask = _shared_mask(store, chosen)
    if mask.sum() < config.num_regions:
        raise BaselineError(
            "there are fewer voxels than regions",
            given=f"{int(mask.sum())} voxels in the brain of half of the training people",
            expected=f"{config.num_regions} or more",
            fix="lower --num-regions",
        )
    rng = np.random.default_rng(config.seed)
    sketches = [_sketch(store, scan_id, mask, cleaning, rng, config.sketch_size) for scan_id in chosen]
    found = _cluster(np.concatenate(sketches, axis=1), mask, config)
    labels = np.zeros(mask.shape, dtype=np.int16)
    labels[mask] = np.unique(found, return_inverse=True)[1] + 1
    return Parcels(config=config, num_regions=int(labels.max()), labels=labels)


def _spread(scan_ids: Sequence[str], most: int) -> list[str]:
    ordered = sorted(scan_ids)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int))
    return [ordered[place] for place in places]


def _shared_mask(store: ScanStore, scan_ids: Sequence[str]) -> Bool[np.ndarray, "x y z"]:
    grids = {store.record(scan_id).shape[-3:] for scan_id in scan_ids}
    if len(grids) > 1:
        raise BaselineError(
            "runs lie on different grids, so that a voxel is not the same place in all",
            given=", ".join(map(str, sorted(grids))),
            fix="bring them to one grid, or use spheres: --parcels seitzman",
        )
    (grid,) = grids
    counts = np.zeros(grid, dtype=np.int64)
    for scan_id in scan_ids:
        counts += read_brain(store, scan_id)
    return counts >= _SHARED_FRACTION * len(scan_ids)


def _sketch(
    store: ScanStore,
    scan_id: str,
    mask: Bool[np.ndarray, "x y z"],
    cleaning: CleaningConfig,
    rng: np.random.Generator,
    size: int,
) -> Float[np.ndarray, "voxel number"]:
    """Random projections of each voxel's series, without drift and scaled to one, a few frames in memory at a time."""
    record = store.record(scan_id)
    num_frames, where = record.shape[0], np.flatnonzero(mask)
    drift = drift_basis(num_frames, record.repetition_time_s, cleaning)
    directions = rng.standard_normal((num_frames, size)) / np.sqrt(size)
    directions -= drift @ (drift.T @ directions)
    first = np.nan_to_num(store.read_window(scan_id, 0, 1)).ravel()[where].astype(np.float64)
    along, drifted, power = np.zeros((len(where), size)), np.zeros((len(where), drift.shape[1])), np.zeros(len(where))
    for start in range(0, num_frames, _FRAMES_AT_ONCE):
        stop = min(start + _FRAMES_AT_ONCE, num_frames)
        frames = np.nan_to_num(store.read_window(scan_id, start, stop)).reshape(stop - start, -1)[:, where]
        # Against the first frame: a run's level is a hundred times its fluctuations, and its square loses their digits.
        change = frames.T - first[:, None]
        along += change @ directions[start:stop]
        drifted += change @ drift[start:stop]
        power += (change**2).sum(axis=1)
    left = power - (drifted**2).sum(axis=1)
    # A voxel that does not change has no shape: it joins whatever is nearest to nothing.
    scale = np.where(left > 1e-9 * np.maximum(power, 1e-300), 1 / np.sqrt(np.maximum(left, 1e-300)), 0)
    return (along * scale[:, None]).astype(np.float32)


def _cluster(
    sketches: Float[np.ndarray, "voxel number"], mask: Bool[np.ndarray, "x y z"], config: ParcelConfig
) -> Int[np.ndarray, " voxel"]:
    model: Any
    if config.method == "ward":
        from sklearn.cluster import AgglomerativeClustering
        from sklearn.feature_extraction.image import grid_to_graph

        graph = grid_to_graph(*mask.shape, mask=mask)
        model = AgglomerativeClustering(n_clusters=config.num_regions, connectivity=graph, linkage="ward")
    else:
        from sklearn.cluster import KMeans

        model = KMeans(n_clusters=config.num_regions, n_init="auto", random_state=config.seed)
    with warnings.catch_warnings():
        # Islands of the mask (a cerebellum on a coarse grid) are linked to what is nearest; nobody needs to be told.
        warnings.filterwarnings("ignore", message="the number of connected components")
        return model.fit_predict(sketches)

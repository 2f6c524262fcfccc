"""One stored scan examined: measures, what may be shown of it, and for a run its course in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import nibabel
import numpy as np
from jaxtyping import Bool, Float, Int8
from scipy import ndimage

from neuroray.platform.evaluate.faces import find_masked_brain, find_visible, is_lost
from neuroray.platform.quality.intensity import measure_volume
from neuroray.platform.quality.motion import estimate_motion, framewise_displacement
from neuroray.platform.quality.regions import Regions, find_regions
from neuroray.platform.quality.runs import RunMoments, RunSeries, clean, take_moments, take_series
from neuroray.platform.quality.tiles import Tile, cut_tiles
from neuroray.storage.group import StoredGroup
from neuroray.storage.store import ScanRecord, ScanStore

VERSION = 1
"""Of all that an examination gives: a higher one makes everything anew."""

FD_THRESHOLD_MM = 0.2
# Of a run that is read at once, as float32. A volume is held whole.
_BLOCK_BYTES = 64 * 2**20
_WINDOW_QUANTILE = 0.995
_CARPET_LIMIT, _MOST_COLUMNS, _CARPET_ROWS = 2.5, 600, 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A run over time.

    Attributes:
        global_signal: Percent of its mean, per frame.
        dvars: Per step; the step into frame t stands at t - 1.
        displacement_mm: Framewise displacement per step, NaN where the head was not found in one of its two frames;
            None where motion was not estimated.
        carpet: Rows of voxels from the middle of the mask to its edge, columns of frames; 127 is 2.5 deviations.
    """

    global_signal: Float[np.ndarray, " frame"]
    dvars: Float[np.ndarray, " step"]
    displacement_mm: Float[np.ndarray, " step"] | None
    carpet: Int8[np.ndarray, "row column"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanQuality:
    """What was found of one scan.

    Attributes:
        scan_id: The scan.
        voxels_sha256: Of what was examined.
        region: What the measures were taken over, "brain" or "head".
        orientation: Directions of the file's own axes ("PSR"), or of the stored ones where no file is known of.
        measures: By the names of `measures.MEASURES` and more; None where one is not defined.
        window: Values that are black and white in the tiles.
        tiles: Slices without a face; of a run, of its mean image.
        snr_tile: For a run: one axial slice of its temporal SNR, 255 being `snr_tile_top`.
        snr_tile_top: Temporal SNR that is white there.
        course: For a run.
        frozen_frames: Their indices.
        notices: What a person should know of the examination itself.
    """

    scan_id: str
    voxels_sha256: str
    region: str
    orientation: str
    measures: dict[str, float | None]
    window: tuple[float, float]
    tiles: tuple[Tile, ...] = ()
    snr_tile: Tile | None = None
    snr_tile_top: float = 0.0
    course: Course | None = None
    frozen_frames: tuple[int, ...] = ()
    notices: tuple[str, ...] = ()


def examine_scan(store: ScanStore, record: ScanRecord, *, with_motion: bool = True) -> ScanQuality:
    """Reads one scan and measures it. A run is read twice (three times with motion), some frames at a time.

    Args:
        store: Where it lies.
        record: Its row.
        with_motion: Estimate the motion of runs.

    Raises:
        StoreError: an object of the scan is missing or damaged.
    """
    if len(record.shape) == 4:
        return _examine_run(store, record, with_motion=with_motion)
    volume, num_nonfinite = clean(store.read_block(record.scan_id, (slice(None),) * 3))
    brain = read_brain_mask(store, record, volume)
    regions = find_regions(volume, _spacing(record), brain)
    measures = measure_volume(volume, _spacing(record), regions) | {"num_nonfinite": float(num_nonfinite)}
    return _gather(store, record, volume, regions, brain, measures, [])


def read_brain_mask(
    store: ScanStore, record: ScanRecord, volume: Float[np.ndarray, "x y z"]
) -> Bool[np.ndarray, "x y z"] | None:
    """The brain mask that is stored with a scan, else what is not 0 of a scan that came masked; None for a head."""
    brain = store.read_mask(record.scan_id)
    return brain if brain is not None and brain.any() else find_masked_brain(volume, _spacing(record))


def _examine_run(store: ScanStore, record: ScanRecord, *, with_motion: bool) -> ScanQuality:
    def blocks() -> Iterator[np.ndarray]:
        return read_blocks(store, record)

    notices: list[str] = []
    moments = take_moments(blocks)
    mean = moments.mean.astype(np.float32)
    brain = read_brain_mask(store, record, mean)
    regions = find_regions(mean, _spacing(record), brain)
    measures = measure_volume(mean, _spacing(record), regions)
    measures |= {"num_nonfinite": float(moments.num_nonfinite), "num_frozen": float(len(moments.frozen))}
    found = _gather(store, record, mean, regions, brain, measures, notices)
    if not regions.inside.any():
        return dataclasses.replace(found, notices=("nothing in it stands out from the background",))
    depth = np.asarray(ndimage.distance_transform_edt(regions.inside, sampling=_spacing(record)))
    series = take_series(blocks, moments, regions.inside, depth)
    displacement = None
    if with_motion and moments.num_frames > 1:
        motion = estimate_motion(blocks, mean, _spacing(record), regions.inside)
        displacement = framewise_displacement(motion)
        if np.isnan(motion).any():
            notices.append("the head was not found in all of its frames: motion is that of the others")
    snr = _temporal_snr(moments)
    tile, top = _cut_snr_tile(snr, record, regions, brain, is_hidden=not found.tiles)
    return dataclasses.replace(
        found,
        measures=found.measures | _measure_run(snr, regions, series, displacement),
        course=_shorten(series, displacement),
        frozen_frames=moments.frozen,
        notices=tuple(notices),
        snr_tile=tile,
        snr_tile_top=top,
    )


def read_blocks(store: ScanStore, record: ScanRecord) -> Iterator[Float[np.ndarray, "time x y z"]]:
    """The frames of a run in order, as many chunks at a time as fit in 64 MB."""
    chunk = store.chunk_shape(record.scan_id)[0]
    frame_bytes = 4 * int(np.prod(record.shape[1:]))
    step = chunk * max(1, _BLOCK_BYTES // (chunk * frame_bytes))
    for start in range(0, record.shape[0], step):
        yield store.read_window(record.scan_id, start, min(start + step, record.shape[0]))


def _gather(
    store: ScanStore,
    record: ScanRecord,
    volume: np.ndarray,
    regions: Regions,
    brain: np.ndarray | None,
    measures: dict[str, float | None],
    notices: list[str],
) -> ScanQuality:
    window = _choose_window(volume, regions)
    tiles: list[Tile] = []
    visible = None if is_lost(record.flags) else find_visible(regions.head, _spacing(record), brain)
    if visible is not None:
        tiles = cut_tiles(volume, _spacing(record), visible, window, brain)
    elif is_lost(record.flags):
        notices.append("not shown: its header does not say how it lies, so a face could not be kept out")
    if visible is not None and not visible.is_depth_known and brain is None:
        notices.append("its front is not shown: the top of the head is cut off, so depth cannot be told")
    return ScanQuality(
        scan_id=record.scan_id,
        voxels_sha256=record.voxels_sha256,
        region=regions.kind,
        orientation=_read_orientation(store, record),
        measures=measures,
        window=window,
        tiles=tuple(tiles),
        notices=tuple(notices),
    )


def _spacing(record: ScanRecord) -> tuple[float, float, float]:
    x, y, z = record.zooms_mm[-3:]
    return x, y, z


def _choose_window(volume: np.ndarray, regions: Regions) -> tuple[float, float]:
    values = volume[regions.inside] if regions.inside.any() else volume
    low = 0.0 if volume.min() >= 0 else float(np.quantile(volume, 1 - _WINDOW_QUANTILE))
    return low, max(float(np.quantile(values, _WINDOW_QUANTILE)), low + 1e-6)


def _read_orientation(store: ScanStore, record: ScanRecord) -> str:
    source = StoredGroup(store.location, record.path, record.manifest_sha256).attributes.get("source")
    affine = np.array(source["affine"] if source else record.affine, np.float64).reshape(4, 4)
    return "".join(code or "?" for code in nibabel.orientations.aff2axcodes(affine))


def _temporal_snr(moments: RunMoments) -> Float[np.ndarray, "x y z"]:
    return np.divide(
        moments.mean, moments.deviation, out=np.zeros_like(moments.mean), where=moments.deviation > 0
    ).astype(np.float32)


def _measure_run(
    snr: np.ndarray, regions: Regions, series: RunSeries, displacement: np.ndarray | None
) -> dict[str, float | None]:
    inside = snr[regions.inside]
    measures: dict[str, float | None] = {
        "tsnr": float(np.median(inside)) if inside.any() else None,
        "gcor": series.global_correlation,
        "dvars_nstd": float(series.dvars.mean()) if len(series.dvars) else None,
        "dvars_std": None if series.dvars_std is None else float(series.dvars_std.mean()),
    }
    steps = np.empty(0) if displacement is None else displacement[np.isfinite(displacement)]
    if not len(steps):
        return measures | dict.fromkeys(("fd_mean", "fd_max", "fd_perc"), None)
    return measures | {
        "fd_mean": float(steps.mean()),
        "fd_max": float(steps.max()),
        "fd_perc": 100 * float(np.mean(steps > FD_THRESHOLD_MM)),
    }


def _cut_snr_tile(
    snr: np.ndarray, record: ScanRecord, regions: Regions, brain: np.ndarray | None, *, is_hidden: bool
) -> tuple[Tile | None, float]:
    """An axial slice of temporal SNR, at the depth of the third axial tile."""
    visible = None if is_hidden else find_visible(regions.head, _spacing(record), brain)
    if visible is None:
        return None, 0.0
    top = max(float(np.quantile(snr[regions.inside], 0.98)), 1e-6)
    axial = [tile for tile in cut_tiles(snr, _spacing(record), visible, (0.0, top)) if tile.plane == "axial"]
    return (axial[len(axial) // 2], top) if axial else (None, 0.0)


def _shorten(series: RunSeries, displacement: np.ndarray | None) -> Course:
    """For a picture: so many rows and columns of the carpet, each the mean of its neighbours."""
    carpet = _average(_average(series.carpet, _CARPET_ROWS).T, _MOST_COLUMNS).T
    packed = np.round(127 * np.clip(carpet / _CARPET_LIMIT, -1, 1)).astype(np.int8)
    return Course(
        global_signal=series.global_signal.astype(np.float32),
        dvars=series.dvars.astype(np.float32),
        displacement_mm=None if displacement is None else displacement.astype(np.float32),
        carpet=packed,
    )


def _average(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    starts = np.linspace(0, len(rows), most, endpoint=False).astype(int)
    lengths = np.diff(np.append(starts, len(rows)))
    return np.add.reduceat(rows, starts, axis=0) / lengths[:, None]

"""A stored scan as an xarray.DataArray, for notebooks: named axes in mm and s, voxels read when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from neuroray.storage.faults import StoreError
from neuroray.storage.profiles.statistics import statistics_to_json
from neuroray.storage.store import ScanRecord, ScanStore

if TYPE_CHECKING:
    import xarray

_AXES: Final = ("x", "y", "z")


def open_scan(uri: str, *, version: int | None = None) -> xarray.DataArray:
    """Opens one scan of a store without reading its voxels.

    Dimensions are `time x y z` or `x y z`. The coordinates x, y and z are in mm, along the middle line of the volume
    (for an oblique scan a voxel's place follows from `attrs["affine"]` alone); time is in s from the first frame on,
    or counts frames where the repetition time is not known (`attrs["time_unit"]` says which). The array is dask's, in
    the store's own chunks. Where the scan has a brain mask, that is the coordinate `mask`; `attrs["statistics"]` are
    those for z-scores, None where there are none.

    Args:
        uri: `STORE#SCAN_ID`: a folder or `s3://bucket/prefix`, and the scan's name in it.
        version: Of the catalogue; the newest when None. The scan read stays the one of the time of opening.

    Raises:
        StoreError: no such store or scan.
    """
    import dask.array
    import xarray

    address, separator, scan_id = uri.rpartition("#")
    if not separator or not scan_id:
        fix = "list the scans with `neuroray inspect`"
        raise StoreError("an address names no scan", given=uri, expected="STORE#SCAN_ID", fix=fix)
    store = ScanStore(address, version=version)
    store = ScanStore(address, version=store.version)
    record = store.record(scan_id)
    voxels = _Voxels(store, record)
    dimensions = _AXES if len(record.shape) == 3 else ("time", *_AXES)
    chunks: Any = store.chunk_shape(scan_id)
    # `meta` keeps dask from reading an empty block to learn the type.
    meta = np.empty((0,) * voxels.ndim, voxels.dtype)
    array = dask.array.from_array(voxels, chunks=chunks, name=f"{scan_id}-{record.voxels_sha256}", meta=meta)
    mask = store.read_mask(scan_id)
    coordinates = _coordinates(record) | ({} if mask is None else {"mask": (_AXES, mask)})
    attributes = _attributes(record) | {"statistics": statistics_to_json(store.read_statistics(scan_id))}
    return xarray.DataArray(array, dims=dimensions, coords=coordinates, name=record.modality, attrs=attributes)


class _Voxels:
    """Values of a scan, read by slices; what dask asks of an array."""

    def __init__(self, store: ScanStore, record: ScanRecord) -> None:
        self._store, self._scan_id = store, record.scan_id
        self.shape, self.dtype, self.ndim = record.shape, np.dtype(record.dtype), len(record.shape)

    def __getitem__(self, selection: tuple[slice, ...]) -> np.ndarray:
        return self._store.read_block(self._scan_id, selection)


def _coordinates(record: ScanRecord) -> dict[str, Any]:
    affine = np.array(record.affine).reshape(4, 4)
    lengths = record.shape[-3:]
    centre = [(length - 1) / 2 for length in lengths]
    found: dict[str, Any] = {}
    for axis, name in enumerate(_AXES):
        points = np.tile([*centre, 1.0], (lengths[axis], 1))
        points[:, axis] = np.arange(lengths[axis])
        found[name] = (name, points @ affine[axis], {"units": "mm"})
    if len(record.shape) == 4:
        frames = np.arange(record.shape[0])
        known = record.repetition_time_s is not None
        times = frames * record.repetition_time_s if record.repetition_time_s is not None else frames
        found["time"] = ("time", times, {"units": "s" if known else "frames"})
    return found


def _attributes(record: ScanRecord) -> dict[str, Any]:
    return {
        "scan_id": record.scan_id,
        "affine": np.array(record.affine).reshape(4, 4),
        "orientation": "RAS+",
        "spacing_mm": record.zooms_mm,
        "repetition_time_s": record.repetition_time_s,
        "time_unit": "s" if record.repetition_time_s is not None else "frames",
        "flags": record.flags,
        "profile": record.prepared_by[0],
    }

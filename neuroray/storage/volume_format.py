"""A scan as a Zarr group and back: which arrays and attributes hold what (for other readers: `docs/format.md`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zarr
from jaxtyping import Num

from neuroray.storage.faults import StoreError
from neuroray.storage.group import ArrayContent, GroupContent, StoredGroup
from neuroray.storage.scan import Encoding, Scan, SourceGrid

VOXELS: Final = "voxels"
HEADER: Final = "header"
_AXES: Final = ("x", "y", "z")
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFrames:
    """Frames as they lie in the store: `value = stored * slope + intercept`."""

    frames: Num[np.ndarray, "time x y z"]
    slope: float
    intercept: float


def encode_scan(scan: Scan) -> GroupContent:
    """The group that holds a scan.

    Voxels go in as the file had them (int16 stays int16) where that gives back every value bit for bit, else as values.

    Raises:
        StoreError: numbers that cannot be kept: no voxels, an element type that is no number, an affine or time that is
            not finite.
    """
    _check_storable(scan)
    stored, slope, intercept = _stored_voxels(scan)
    meaning = {
        "affine": scan.affine.astype(np.float64).tolist(),
        "orientation": "RAS+",
        "spacing_mm": list(scan.zooms_mm),
        "repetition_time_s": scan.repetition_time_s,
        "units": {"space": "mm", "time": "s"},
        "slope": slope,
        "intercept": intercept,
        "value_dtype": scan.voxels.dtype.newbyteorder("=").name,
    }
    dimensions = ("time", *_AXES) if scan.is_timeseries else _AXES
    arrays = {VOXELS: ArrayContent(values=stored, dimensions=dimensions, attributes=meaning, is_sharded=True)}
    if scan.source is not None and scan.source.header:
        arrays[HEADER] = ArrayContent(values=np.frombuffer(scan.source.header, np.uint8), dimensions=("byte",))
    attributes = {
        "neuroray": {"content": "scan", "version": _VERSION},
        "encoding": _encoding_to_json(scan.encoding),
        "source": _source_to_json(scan.source),
        "flags": list(scan.flags),
    }
    return GroupContent(arrays, attributes)


def decode_scan(group: StoredGroup) -> Scan:
    """The scan that a group holds, equal to the one that was written."""
    voxels = group.array(VOXELS)
    stored = group.read_rows(VOXELS, 0, voxels.shape[0])
    header = np.asarray(group.array(HEADER)[:]).tobytes() if HEADER in group.array_names else b""
    return Scan(
        voxels=decode_values(voxels, stored),
        affine=np.array(voxels.attrs["affine"], dtype=np.float64),
        repetition_time_s=_optional_float(voxels.attrs["repetition_time_s"]),
        encoding=_encoding_from_json(group.attributes["encoding"]),
        source=_source_from_json(group.attributes["source"], header),
        flags=tuple(group.attributes["flags"]),
    )


def decode_values(array: zarr.Array[Any], stored: np.ndarray) -> np.ndarray:
    """Values of numbers read from `array`: `stored * slope + intercept` in float64, rounded once to `value_dtype`."""
    attributes: dict[str, Any] = dict(array.attrs)
    return _decode(stored, attributes["slope"], attributes["intercept"], np.dtype(attributes["value_dtype"]))


def _check_storable(scan: Scan) -> None:
    if scan.voxels.size == 0 or scan.voxels.dtype.kind not in "biuf" or scan.voxels.dtype.itemsize > 8:
        given = f"{scan.voxels.dtype} of shape {scan.voxels.shape}"
        raise StoreError("voxels cannot be stored", given=given, expected="integers, floats or booleans, at least one")
    numbers = [scan.affine, np.array(scan.repetition_time_s or 0.0)]
    numbers += [scan.source.affine] if scan.source else []
    numbers += [np.array([scan.encoding.slope, scan.encoding.intercept])] if scan.encoding else []
    if not all(np.isfinite(number).all() for number in numbers):
        raise StoreError("a scan cannot be stored", given="an affine, time or scale that is not finite")


def _stored_voxels(scan: Scan) -> tuple[np.ndarray, float, float]:
    """What to store, with slope and intercept: the file's numbers where they give back every value, else the values."""
    encoding = scan.encoding
    if encoding is None or encoding.is_identity or np.dtype(encoding.dtype).kind not in "iu" or encoding.slope == 0:
        return scan.voxels, 1.0, 0.0
    stored = np.empty(scan.voxels.shape, np.dtype(encoding.dtype).newbyteorder("="))
    # Frame by frame: float64 copies of a whole run would take four times its size.
    for frame in range(len(stored)):
        if not _invert(scan.voxels[frame], encoding, stored[frame]):
            return scan.voxels, 1.0, 0.0
    return stored, encoding.slope, encoding.intercept


def _invert(values: np.ndarray, encoding: Encoding, stored: np.ndarray) -> bool:
    """Fills `stored` from values; False where the values do not come back bit for bit."""
    limits = np.iinfo(stored.dtype)
    numbers = np.rint((values.astype(np.float64) - encoding.intercept) / encoding.slope)
    # Also false for NaN. 2**63 is no int64 but equals its limit as float64, hence the strict bound.
    if not ((numbers >= limits.min) & (numbers < float(limits.max) + 1.0)).all():
        return False
    stored[...] = numbers.astype(stored.dtype)
    again = _decode(stored, encoding.slope, encoding.intercept, values.dtype)
    return again.tobytes() == values.tobytes()


def _decode(stored: np.ndarray, slope: float, intercept: float, dtype: np.dtype[Any]) -> np.ndarray:
    if slope == 1.0 and intercept == 0.0:
        return stored.astype(dtype, copy=False)
    values = np.empty(stored.shape, dtype)
    for frame in range(len(stored)):
        values[frame] = stored[frame].astype(np.float64) * slope + intercept
    return values


def _encoding_to_json(encoding: Encoding | None) -> dict[str, Any] | None:
    if encoding is None:
        return None
    return {"dtype": encoding.dtype, "slope": encoding.slope, "intercept": encoding.intercept}


def _encoding_from_json(data: dict[str, Any] | None) -> Encoding | None:
    return None if data is None else Encoding(**data)


def _source_to_json(source: SourceGrid | None) -> dict[str, Any] | None:
    if source is None:
        return None
    return {
        "format": source.format,
        "affine": source.affine.astype(np.float64).tolist(),
        "axis_order": list(source.axis_order),
        "axis_flip": list(source.axis_flip),
        "had_time_axis": source.had_time_axis,
    }


def _source_from_json(data: dict[str, Any] | None, header: bytes) -> SourceGrid | None:
    if data is None:
        return None
    return SourceGrid(
        format=data["format"],
        header=header,
        affine=np.array(data["affine"], dtype=np.float64),
        axis_order=tuple(data["axis_order"]),
        axis_flip=tuple(data["axis_flip"]),
        had_time_axis=data["had_time_axis"],
    )


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)

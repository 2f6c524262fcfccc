"""A scan as a Zarr group and back: which arrays and attributes hold what (for other readers: `docs/format.md`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zarr
from jaxtyping import Num

from neuroray.storage.faults import StoreError
from neuroray.storage.group import ArrayContent, GroupContent, Packing, StoredGroup
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.statistics import Statistics, statistics_from_json, statistics_to_json
from neuroray.storage.profiles.stored import (
    StoredProfile,
    source_from_json,
    source_to_json,
    transform_from_json,
    transform_to_json,
)
from neuroray.storage.profiles.transform import TemplateTransform
from neuroray.storage.scan import Encoding, Scan

VOXELS: Final = "voxels"
MASK: Final = "mask"
HEADER: Final = "header"
_AXES: Final = ("x", "y", "z")
_VERSION: Final = 2  # 1 had no profile, mask, statistics, way to a template


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFrames:
    """Frames as they lie in the store: `value = stored * slope + intercept`."""

    frames: Num[np.ndarray, "time x y z"]
    slope: float
    intercept: float


def encode_scan(prepared: Prepared, packing: Packing = "fast") -> GroupContent:
    """The group that holds a prepared scan.

    Voxels go in as the file had them (int16 stays int16) where that gives back every value bit for bit, else as values.

    Raises:
        StoreError: numbers that cannot be kept: no voxels, an element type that is no number, an affine or time that is
            not finite.
    """
    scan = prepared.scan
    check_storable(scan)
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
    if prepared.mask is not None:
        arrays[MASK] = ArrayContent(values=prepared.mask, dimensions=_AXES, is_sharded=True)
    source = scan.source or (prepared.to_template.native.source if prepared.to_template else None)
    if source is not None and source.header:
        arrays[HEADER] = ArrayContent(values=np.frombuffer(source.header, np.uint8), dimensions=("byte",))
    attributes = {
        "neuroray": {"content": "scan", "version": _VERSION},
        "encoding": _encoding_to_json(scan.encoding),
        "source": source_to_json(scan.source),
        "flags": list(scan.flags),
        "profile": StoredProfile.of(prepared.profile).to_json(),
        "statistics": statistics_to_json(prepared.statistics),
        "to_template": transform_to_json(prepared.to_template),
        "ome": _describe_for_ome(scan),
    }
    return GroupContent(arrays, attributes, packing)


def check_storable(scan: Scan) -> None:
    """Refuses numbers that cannot be kept.

    Raises:
        StoreError: no voxels, an element type that is no number, an affine or time that is not finite.
    """
    if scan.voxels.size == 0 or scan.voxels.dtype.kind not in "biuf" or scan.voxels.dtype.itemsize > 8:
        given = f"{scan.voxels.dtype} of shape {scan.voxels.shape}"
        raise StoreError("voxels cannot be stored", given=given, expected="integers, floats or booleans, at least one")
    numbers = [scan.affine, np.array(scan.repetition_time_s or 0.0)]
    numbers += [scan.source.affine] if scan.source else []
    numbers += [np.array([scan.encoding.slope, scan.encoding.intercept])] if scan.encoding else []
    if not all(np.isfinite(number).all() for number in numbers):
        raise StoreError("a scan cannot be stored", given="an affine, time or scale that is not finite")


def decode_scan(group: StoredGroup) -> Scan:
    """The scan that a group holds, equal to the one that was written."""
    voxels = group.array(VOXELS)
    return Scan(
        voxels=decode_values(voxels, group.read_rows(VOXELS, 0, voxels.shape[0])),
        affine=np.array(voxels.attrs["affine"], dtype=np.float64),
        repetition_time_s=_optional_float(voxels.attrs["repetition_time_s"]),
        encoding=_encoding_from_json(group.attributes["encoding"]),
        source=source_from_json(group.attributes["source"], _read_header(group)),
        flags=tuple(group.attributes["flags"]),
    )


def decode_mask(group: StoredGroup) -> np.ndarray | None:
    """The brain mask of a group, bool `x y z`; None where it has none."""
    return np.asarray(group.array(MASK)[...]) if MASK in group.array_names else None


def decode_statistics(group: StoredGroup) -> Statistics | None:
    """The statistics of a group; None where no voxel counted, and for groups of before they were kept."""
    return statistics_from_json(group.attributes.get("statistics"))


def decode_profile(group: StoredGroup) -> StoredProfile:
    """The profile of a group; native for groups of before there were profiles."""
    return StoredProfile.from_json(group.attributes.get("profile"))


def decode_to_template(group: StoredGroup) -> TemplateTransform | None:
    """How the scan of a group was brought to a template; None where it was not."""
    data = group.attributes.get("to_template")
    return None if data is None else transform_from_json(data, _read_header(group))


def decode_values(array: zarr.Array[Any], stored: np.ndarray) -> np.ndarray:
    """Values of numbers read from `array`: `stored * slope + intercept` in float64, rounded once to `value_dtype`."""
    attributes: dict[str, Any] = dict(array.attrs)
    return _decode(stored, attributes["slope"], attributes["intercept"], np.dtype(attributes["value_dtype"]))


def _describe_for_ome(scan: Scan) -> dict[str, Any]:
    """OME-Zarr 0.5 metadata, so that its readers find the voxels and their size; it has no words for a rotation."""
    first_mm = scan.affine[:3, 3].astype(np.float64).tolist()
    axes: list[dict[str, str]] = [{"name": name, "type": "space", "unit": "millimeter"} for name in _AXES]
    scale, translation = list(scan.zooms_mm), first_mm
    if scan.is_timeseries:
        known = scan.repetition_time_s is not None
        axes.insert(0, {"name": "time", "type": "time", **({"unit": "second"} if known else {})})
        scale, translation = [scan.repetition_time_s or 1.0, *scale], [0.0, *translation]
    steps = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": translation}]
    dataset = {"path": VOXELS, "coordinateTransformations": steps}
    return {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [dataset]}]}


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


def _read_header(group: StoredGroup) -> bytes:
    return np.asarray(group.array(HEADER)[:]).tobytes() if HEADER in group.array_names else b""


def _optional_float(value: Any) -> float | None:
    return None if value is None else float(value)

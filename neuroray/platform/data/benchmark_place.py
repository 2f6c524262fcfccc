"""What BrainPlace lets pass and what it refuses: people whom it does not know, as they are, moved, turned and aged."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from scipy import ndimage

from neuroray.platform.data.brain_place import BrainPlace, learn_place
from neuroray.platform.data.brain_volumes import BrainVolumeReader, choose_grid, fit_grid, scale_brain
from neuroray.platform.data.plan import ReadItem
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles import prepare
from neuroray.storage.profiles.agreement import find_common_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

Volume = Float32[np.ndarray, "x y z"]
Move = Callable[[Volume], Volume]

_SHIFTS_MM = (4, 8, 10, 12, 20)
_TURNS_DEG = (10, 20, 30)
_PLANES = ((0, 1), (0, 2), (1, 2))
_DARK = -0.4


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="registered volumes, such as those of --profile mni_affine")
    parser.add_argument("--grid-shape", type=int, nargs=3, help="that of the tokenizer; the smallest when not given")
    parser.add_argument("--known", type=float, default=2 / 3, help="share of the people that the place is learned from")
    parser.add_argument("--scan", nargs="*", default=[], help="files of real people, prepared as the store's scans")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/brain_place.md"))
    options = parser.parse_args()
    found = measure(options)
    options.out.write_text(render(found))
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n")
    print(render(found))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Learns a place from the first people of the store and holds all others against it, in every way."""
    store = ScanStore(options.store)
    records = [record for record in store.records() if len(record.shape) == 3]
    people = sorted({record.subject for record in records})
    known = set(people[: round(options.known * len(people))])
    x, y, z = options.grid_shape or choose_grid([record.shape for record in records], 4)
    reader = BrainVolumeReader(store.uri, store.version, (x, y, z), cache_bytes=0)

    def read(record: ScanRecord) -> Volume:
        return np.array(reader(ReadItem(scan_id=record.scan_id))["volume"])

    firsts = {record.subject: record for record in reversed(records) if record.subject in known}
    place = learn_place((record.scan_id, read(record)) for record in firsts.values())
    others = [read(record) for record in records if record.subject not in known]
    profile = find_common_profile(store, records).restore()
    real = []
    for path in options.scan:
        prepared = prepare(read_scan(path), profile)
        scaled, brain = scale_brain(prepared.scan.voxels, prepared.mask)
        real.append(fit_grid(scaled, (x, y, z), brain=brain))
    spacing_mm = float(np.mean(records[0].zooms_mm[:3]))
    grid = f" --grid-shape {x} {y} {z}" if options.grid_shape else ""
    return {
        "options": grid + "".join(f" --scan {path}" for path in options.scan),
        "store": f"{len(people)} people, profile {profile.name}, voxels of {spacing_mm:g} mm, grid {x} x {y} x {z}",
        "known_people": len(firsts),
        "place": {name: value for name, value in place.to_json().items() if name != "brightness"},
        "rows": _compare(place, others, spacing_mm),
        "real_rows": _compare(place, real, spacing_mm) if real else [],
        "num_real": len(real),
    }


def list_moves(spacing_mm: float) -> Iterator[tuple[str, Sequence[Move]]]:
    """What is done to brains, by name: each of the ways counts as a brain of its own."""
    yield "as it is", [lambda volume: volume]
    yield "aged", [age_brain]
    for shift_mm in _SHIFTS_MM:
        yield f"moved by {shift_mm} mm", [_shift(axis, sign * shift_mm / spacing_mm) for axis, sign in _ways()]
    for turn_deg in _TURNS_DEG:
        yield f"turned by {turn_deg} degrees", [_turn(axis, sign * turn_deg) for axis, sign in _ways()]
    yield "left to right", [lambda volume: volume[::-1]]
    yield "front to back", [lambda volume: volume[:, ::-1]]
    yield "upside down", [lambda volume: volume[:, :, ::-1]]


def age_brain(volume: Volume) -> Volume:
    """The outermost voxels of the brain gone, and what is dark in its middle two voxels wider all around."""
    brain = volume > -1
    dark = np.asarray(ndimage.binary_erosion(brain, iterations=4), bool) & (volume < _DARK)
    labelled: Any = ndimage.label(dark)
    parts, number = labelled
    aged = volume
    if number:
        ventricles = parts == np.bincount(parts.ravel())[1:].argmax() + 1
        wider = np.asarray(ndimage.binary_dilation(ventricles, iterations=2), bool) & brain
        aged = np.where(wider, np.median(volume[ventricles]), volume)
    return np.where(ndimage.binary_erosion(brain), aged, -1).astype(np.float32)


def render(found: Mapping[str, Any]) -> str:
    """The page."""
    place = found["place"]
    lines = [
        "# Which brains count as registered",
        "",
        f"Made by `python -m neuroray.platform.data.benchmark_place STORE{found['options']}`; the rule stands in",
        "[train.md](../train.md#registered-or-not) and `platform/data/brain_place.py`.",
        "",
        f"Store: {found['store']}. The place was learned from the first scans of {found['known_people']} people:",
        f"overlap {place['least_overlap']:.3f} or more, likeness {place['least_likeness']:.4f} or more. Refused is",
        f"what overlaps by less than {place['required_overlap']:g} or is less alike than "
        f"{place['required_likeness']:.3f}.",
        "",
        "Below are the store's other people, every scan in every direction of the move. Under the mask: the same, cut",
        "to the voxels that the profile calls brain, as where a registration has failed. Aged: the outermost voxel of",
        "the brain gone all around, the ventricles two voxels wider.",
        "",
        *_tabulate(found["rows"]),
    ]
    if found["real_rows"]:
        lines += ["", f"The same of real people ({found['num_real']} scan):", "", *_tabulate(found["real_rows"])]
    return "\n".join([*lines, ""])


def _tabulate(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| | overlap | likeness | refused | likeness under the mask | refused |", "|---|---|---|---|---|---|"]
    for row in rows:
        free, masked = row["free"], row["masked"]
        lines.append(
            f"| {row['name']} | {_span(free['overlap'], 2)} | {_span(free['likeness'], 3)} | {free['refused']:.0%} "
            f"| {_span(masked['likeness'], 3)} | {masked['refused']:.0%} |"
        )
    return lines


def _span(values: Sequence[float], digits: int) -> str:
    return f"{values[0]:.{digits}f} to {values[1]:.{digits}f}"


def _compare(place: BrainPlace, volumes: Sequence[Volume], spacing_mm: float) -> list[dict[str, Any]]:
    mask = np.mean([volume > -1 for volume in volumes], axis=0) > 0.5
    rows = []
    for name, moves in list_moves(spacing_mm):
        moved = [np.ascontiguousarray(move(volume)) for volume in volumes for move in moves]
        masked = [np.where(mask, volume, np.float32(-1)) for volume in moved]
        rows.append({"name": name, "free": _judge(place, moved), "masked": _judge(place, masked)})
    return rows


def _judge(place: BrainPlace, volumes: Sequence[Volume]) -> dict[str, Any]:
    found = [place.measure(volume) for volume in volumes]
    overlaps, likeness = [one.overlap for one in found], [one.likeness for one in found]
    return {
        "overlap": (min(overlaps), max(overlaps)),
        "likeness": (min(likeness), max(likeness)),
        "refused": float(np.mean([not place.admits(one) for one in found])),
        "number": len(found),
    }


def _ways() -> Iterator[tuple[int, int]]:
    return ((axis, sign) for axis in range(3) for sign in (1, -1))


def _shift(axis: int, voxels: float) -> Move:
    way = [voxels if index == axis else 0.0 for index in range(3)]
    return lambda volume: ndimage.shift(volume, way, order=1, cval=-1)


def _turn(axis: int, degrees: float) -> Move:
    return lambda volume: ndimage.rotate(volume, degrees, _PLANES[axis], reshape=False, order=1, cval=-1)


if __name__ == "__main__":
    main()

"""The scans of a store beside each other: which stand apart from their like, and in what."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from neuroray.platform.quality.examine import ScanQuality
from neuroray.platform.quality.measures import MEASURES, tell
from neuroray.platform.quality.outliers import FEWEST, THRESHOLD, find_majority, robust_z
from neuroray.storage.profiles.profile import NATIVE
from neuroray.storage.store import ScanRecord

_CUT_FRACTION = 0.05
_FOV_STEP_MM = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something to look at in a scan.

    Attributes:
        kind: "fault": wrong in itself. "outlier": far from the others' median. "odd": unlike the majority. "flag": told
            when it was stored.
        text: In words.
        measure: Of an outlier.
        z: Its robust z.
    """

    kind: Literal["fault", "outlier", "odd", "flag"]
    text: str
    measure: str = ""
    z: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A scan, its examination, and what there is to say of it.

    Attributes:
        record: Its row.
        quality: What was measured.
        group: What it is compared with: scans of the same modality and profile, measured over the same region.
        z: Robust z by measure, of the judged ones.
        findings: The gravest first.
    """

    record: ScanRecord
    quality: ScanQuality
    group: str
    z: Mapping[str, float | None]
    findings: tuple[Finding, ...]

    @property
    def stands_apart(self) -> bool:
        """Whether anything besides a flag from its storing was found."""
        return any(finding.kind != "flag" for finding in self.findings)

    @property
    def weight(self) -> tuple[int, float]:
        """How early it is to be looked at: faults first, then the farthest."""
        kinds = [finding.kind for finding in self.findings]
        rank = 3 if "fault" in kinds else 2 if "outlier" in kinds else 1 if "odd" in kinds else 0
        return rank, max((abs(finding.z or 0.0) for finding in self.findings), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """All scans that were examined.

    Attributes:
        scans: Those to look at first come first.
        windows: For each group: the values that are black and white in its pictures.
        small_groups: Groups with too few scans for anybody to stand apart in a measure.
    """

    scans: tuple[Examined, ...]
    windows: Mapping[str, tuple[float, float]]
    small_groups: tuple[str, ...]


def compare_scans(pairs: Sequence[tuple[ScanRecord, ScanQuality]]) -> Cohort:
    """Holds every scan against its like."""
    groups: dict[str, list[tuple[ScanRecord, ScanQuality]]] = defaultdict(list)
    for record, quality in pairs:
        groups[name_group(record, quality)].append((record, quality))
    copies = _find_copies(pairs)
    scans, windows = [], {}
    for name, members in groups.items():
        z = _score(members)
        odd = _find_odd(members)
        for record, quality in members:
            scan_id = record.scan_id
            found = [*_find_faults(record, quality), *copies.get(scan_id, ())]
            found += _find_outliers(quality, z[scan_id], members)
            found += [*odd.get(scan_id, ()), *(Finding(kind="flag", text=flag) for flag in record.flags)]
            scans.append(Examined(record=record, quality=quality, group=name, z=z[scan_id], findings=tuple(found)))
        lows, highs = zip(*(quality.window for _, quality in members), strict=True)
        windows[name] = (statistics.median(lows), statistics.median(highs))
    scans.sort(key=lambda scan: (-scan.weight[0], -scan.weight[1], scan.record.scan_id))
    small = tuple(name for name, members in groups.items() if len(members) < FEWEST)
    return Cohort(scans=tuple(scans), windows=windows, small_groups=small)


def name_group(record: ScanRecord, quality: ScanQuality) -> str:
    """What a scan is compared with."""
    kind = "runs" if len(record.shape) == 4 else "volumes"
    profile = record.prepared_by[0]
    prepared = "" if profile == NATIVE else f" prepared by {profile}"
    return f"{record.modality} {kind}{prepared}, measured in the {quality.region}"


def field_of_view_mm(record: ScanRecord) -> tuple[float, float, float]:
    """Voxels times their size along x, y, z."""
    x, y, z = (count * size for count, size in zip(record.shape[-3:], record.zooms_mm[-3:], strict=True))
    return x, y, z


def _score(members: Sequence[tuple[ScanRecord, ScanQuality]]) -> dict[str, dict[str, float | None]]:
    judged = [name for name, measure in MEASURES.items() if measure.is_judged]
    columns = {name: robust_z([quality.measures.get(name) for _, quality in members]) for name in judged}
    return {
        record.scan_id: {name: column[index] for name, column in columns.items()}
        for index, (record, _) in enumerate(members)
    }


def _find_outliers(
    quality: ScanQuality, z: Mapping[str, float | None], members: Sequence[tuple[ScanRecord, ScanQuality]]
) -> list[Finding]:
    found = []
    for name, score in z.items():
        if score is None or abs(score) <= THRESHOLD:
            continue
        values = [other.measures.get(name) for _, other in members]
        median = statistics.median(value for value in values if value is not None)
        # Of scans that are nearly copies of each other the spread is tiny: what prints alike is not told.
        if tell(name, quality.measures[name]) == tell(name, median):
            continue
        way = "higher" if score > 0 else "lower"
        text = (
            f"{MEASURES[name].label} {tell(name, quality.measures[name])}, {way} than usual "
            f"(median {tell(name, median)}, z = {score:+.1f})"
        )
        found.append(Finding(kind="outlier", text=text, measure=name, z=score))
    return sorted(found, key=lambda finding: -abs(finding.z or 0.0))


def _find_faults(record: ScanRecord, quality: ScanQuality) -> list[Finding]:
    texts = []
    measures = quality.measures
    if measures.get("num_nonfinite"):
        texts.append(f"{tell('num_nonfinite', measures['num_nonfinite'])} values are NaN or infinite")
    if quality.frozen_frames:
        count, which = len(quality.frozen_frames), _list_frames(quality.frozen_frames)
        texts.append(f"{count} of {record.shape[0]} frames repeat the one before: {which}")
    cut = measures.get("head_cut_top")
    if cut is not None and cut > _CUT_FRACTION and quality.region == "head":
        texts.append("the top of the head lies outside the image")
    return [Finding(kind="fault", text=text) for text in texts]


def _list_frames(frames: Sequence[int]) -> str:
    """1-4, 7."""
    spans: list[list[int]] = []
    for frame in frames:
        if spans and frame == spans[-1][1] + 1:
            spans[-1][1] = frame
        else:
            spans.append([frame, frame])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans[:6]) + (
        ", ..." if len(spans) > 6 else ""
    )


def _find_copies(pairs: Sequence[tuple[ScanRecord, ScanQuality]]) -> dict[str, list[Finding]]:
    """Scans that hold the same voxels on the same grid."""
    holders: dict[str, list[str]] = defaultdict(list)
    for record, _ in pairs:
        holders[record.voxels_sha256].append(record.scan_id)
    return {
        scan_id: [Finding(kind="fault", text=f"holds the same voxels as {', '.join(o for o in ids if o != scan_id)}")]
        for ids in holders.values()
        if len(ids) > 1
        for scan_id in ids
    }


def _find_odd(members: Sequence[tuple[ScanRecord, ScanQuality]]) -> dict[str, list[Finding]]:
    """What more than half of the group have and one has not."""
    traits = {
        "voxel size": {r.scan_id: " x ".join(f"{size:.2f}" for size in r.zooms_mm[-3:]) + " mm" for r, _ in members},
        "field of view": {r.scan_id: _name_field(r) for r, _ in members},
        "orientation of the file": {r.scan_id: q.orientation for r, q in members},
        "repetition time": {r.scan_id: _name_time(r) for r, _ in members if len(r.shape) == 4},
        "frames": {r.scan_id: str(r.shape[0]) for r, _ in members if len(r.shape) == 4},
    }
    found: dict[str, list[Finding]] = defaultdict(list)
    for trait, values in traits.items():
        usual = find_majority(values)
        for scan_id, value in values.items():
            if usual is not None and value != usual:
                found[scan_id].append(Finding(kind="odd", text=f"{trait} {value}; most have {usual}"))
    return found


def _name_field(record: ScanRecord) -> str:
    """To the next 5 mm: a slice more or less is no other field."""
    steps = (f"{_FOV_STEP_MM * round(length / _FOV_STEP_MM):.0f}" for length in field_of_view_mm(record))
    return " x ".join(steps) + " mm"


def _name_time(record: ScanRecord) -> str:
    return "not known" if record.repetition_time_s is None else f"{record.repetition_time_s:.3g} s"

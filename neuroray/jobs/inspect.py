"""`neuroray inspect`: show what a store or a scan file holds."""

from __future__ import annotations

import collections
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.run_record import record_answer
from neuroray.storage.faults import StoreError
from neuroray.storage.nifti import read_scan
from neuroray.storage.profiles.profile import NATIVE
from neuroray.storage.profiles.statistics import statistics_to_json
from neuroray.storage.store import ScanRecord, ScanStore

_MOST_WITH_DETAIL = 100
_SCAN_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".img")


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """What a store or a single scan file holds: shapes in RAS+ order, millimetres, seconds, labels, flags."""

    target: Annotated[str, tyro.conf.Positional]
    """A store (folder or s3://bucket/prefix) or a scan file."""

    scan: tuple[str, ...] = ()
    """Only these scans of a store, by id."""

    version: int | None = None
    """The catalogue version to look at; the newest when not given."""

    out: str | None = None
    """A folder for run.json with the answer; none is written when not given."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The scans, and where they lie."""

    target: str
    catalogue_version: int | None
    scans: tuple[dict[str, Any], ...]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"num_scans": len(self.scans)}

    def __str__(self) -> str:
        if not self.scans:
            return f"{self.target}: no scans"
        lines = [f"{self.target}: {len(self.scans)} scans{_version_text(self.catalogue_version)}"]
        lines += [_line(scan) for scan in self.scans]
        return "\n".join([*lines, *_summary(self.scans)])


def run(args: Args) -> Answer:
    """Reads the catalogue of a store, or one file."""
    return record_answer(args.out, job="inspect", args=args, look=lambda: _inspect(args))


def _inspect(args: Args) -> Answer:
    if args.target.endswith(_SCAN_SUFFIXES) and Path(args.target).is_file():
        return Answer(target=args.target, catalogue_version=None, scans=(_describe_file(args.target),))
    store = ScanStore(args.target, version=args.version)
    records = _choose(args, store)
    # A look into every group is a request each: of many scans, the catalogue's word must do.
    with_detail = len(records) <= _MOST_WITH_DETAIL
    scans = tuple(_describe_record(record) | (_detail(store, record) if with_detail else {}) for record in records)
    return Answer(target=store.uri, catalogue_version=store.version, scans=scans)


def _choose(args: Args, store: ScanStore) -> list[ScanRecord]:
    records = store.records()
    unknown = set(args.scan) - {record.scan_id for record in records}
    if unknown:
        raise StoreError("the store has no such scans", given=", ".join(sorted(unknown)), fix="leave out --scan")
    return [record for record in records if not args.scan or record.scan_id in args.scan]


def _detail(store: ScanStore, record: ScanRecord) -> dict[str, Any]:
    """What stands in the group and not in the catalogue; reads its manifest alone."""
    transform = store.read_to_template(record.scan_id)
    return {
        "profile_options": store.read_profile(record.scan_id).options,
        "statistics": statistics_to_json(store.read_statistics(record.scan_id)),
        "template": None if transform is None else transform.template,
    }


def _describe_file(path: str) -> dict[str, Any]:
    scan = read_scan(path)
    return {
        "scan_id": Path(path).name,
        "shape": list(scan.voxels.shape),
        "axes": "time x y z (RAS+)" if scan.is_timeseries else "x y z (RAS+)",
        "zooms_mm": [round(zoom, 6) for zoom in scan.zooms_mm],
        "repetition_time_s": scan.repetition_time_s,
        "dtype": scan.encoding.dtype if scan.encoding else str(scan.voxels.dtype),
        "affine": scan.affine.tolist(),
        "flags": list(scan.flags),
    }


def _describe_record(record: ScanRecord) -> dict[str, Any]:
    described = dataclasses.asdict(record)
    described["profile"], described["profile_sha256"] = record.prepared_by
    described["axes"] = "time x y z (RAS+)" if len(record.shape) == 4 else "x y z (RAS+)"
    return described


def _line(scan: dict[str, Any]) -> str:
    shape = " x ".join(map(str, scan["shape"]))
    zooms = " x ".join(f"{zoom:.3g}" for zoom in scan["zooms_mm"])
    time = f"  TR {scan['repetition_time_s']:g} s" if scan["repetition_time_s"] else ""
    labels = [f"{scan['age_years']:g} y" if scan.get("age_years") is not None else "", scan.get("sex") or ""]
    person = "  " + ", ".join(filter(None, [*labels, scan.get("diagnosis")])) if any(labels) else ""
    flags = f"  [{'; '.join(scan['flags'])}]" if scan["flags"] else ""
    return f"  {scan['scan_id']:<36} {shape:>18}  {zooms} mm{time}{_prepared(scan)}{person}{flags}"


def _prepared(scan: dict[str, Any]) -> str:
    """The profile where it is not native, and what there is for z-scores."""
    parts = [scan["profile"]] if scan.get("profile", NATIVE) != NATIVE else []
    found = scan.get("statistics")
    if found:
        over = "brain mask voxels" if found["over"] == "mask" else "voxels that are not background"
        parts.append(f"{found['mean']:.4g} ± {found['std']:.3g} in {found['num_voxels']} {over}")
    return "  " + ", ".join(parts) if parts else ""


def _summary(scans: tuple[dict[str, Any], ...]) -> list[str]:
    if len(scans) < 2 or "modality" not in scans[0]:
        return []
    kinds = collections.Counter(scan["modality"] for scan in scans)
    size_mb = sum(scan["size_bytes"] for scan in scans) / 1e6
    people = len({scan["subject"] for scan in scans})
    return [
        f"  {', '.join(f'{count} {kind}' for kind, count in kinds.items())}; {people} people; {size_mb:.1f} MB stored"
    ]


def _version_text(version: int | None) -> str:
    return "" if version is None else f" (catalogue version {version})"

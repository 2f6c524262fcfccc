"""`neuroray explain RUN --group N` for models that tell a number from slices: held-out people together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroray.jobs.explain_measures import REGIONS_TOLD, ExplainScan, make_explain, tell_space
from neuroray.jobs.explained_scan import choose_people
from neuroray.jobs.logs import progress
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.style import to_png
from neuroray.platform.explain.measure_figures import draw_decades, draw_group_map, draw_parts
from neuroray.platform.explain.measure_groups import (
    MapMean,
    Member,
    average_decades,
    average_parts,
    name_decade,
    sort_decades,
)
from neuroray.platform.explain.measure_maps import ADDING_UP, SIGNED, MeasureExplanation
from neuroray.platform.explain.measure_parts import PART_KINDS, share_parts
from neuroray.platform.explain.overlay import BACKDROP
from neuroray.storage.nifti import write_map
from neuroray.storage.profiles.agreement import require_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

if TYPE_CHECKING:
    from neuroray.jobs.explain import Args


@dataclass(slots=True, kw_only=True)
class _Gathered:
    """Sums over people so far.

    Attributes:
        grid: The first person's scan.
        everybody: Of all maps.
        decades: Of the maps of each decade of age.
        anatomy: Of the scans, each with its median at 1.
        members: One of each person.
        facts: Of each map.
    """

    grid: Scan
    everybody: MapMean
    anatomy: MapMean
    decades: dict[str, MapMean] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)
    facts: list[Mapping[str, Any]] = field(default_factory=list)


def explain_group(args: Args, model: SliceMeasureModel, out: Path) -> dict[str, Any]:
    """Test people of a run: mean maps of all and of each decade on the grid of the first, parts with intervals."""
    store, records = choose_people(args.run, args.store, args.group)
    require_profile(records, model.card)
    method = args.method or "grad_x_token"
    gathered = _gather(model, store, progress(records, label="explain"), make_explain(args, model))
    group = gathered.everybody.result()
    for name in ("values", "magnitudes", "agreement"):
        write_map(getattr(group, name), gathered.grid, out / f"group_{name}.nii.gz", overwrite=True)
    target = model.targets[0]
    described = {
        "method": method,
        "target": model.explained,
        "unit": target.unit,
        "num_people": group.num_people,
        "num_families": len({member.group for member in gathered.members}),
        "space_assumed": tell_space(model),
        "map": {"sum": float(group.values.sum(dtype=float))},
        **_summarise(gathered.facts),
        "decades": _write_decades(gathered, out),
    }
    parts = {kind: average_parts(gathered.members, kind, seed=args.seed) for kind in PART_KINDS}
    described |= {kind: _describe(parts[kind]) for kind in PART_KINDS}
    anatomy = dataclasses.replace(gathered.grid, voxels=gathered.anatomy.result().values)
    drawn = draw_group_map(anatomy, group, target=model.explained, unit=target.unit, method=method)
    (out / "group_overlay.png").write_bytes(to_png(drawn, background=BACKDROP))
    (out / "group_parts.png").write_bytes(to_png(draw_parts(parts["tissues"], parts["networks"], group.num_people)))
    if len(described["decades"]) > 1:
        (out / "group_decades.png").write_bytes(
            to_png(draw_decades(described["decades"], target.unit if method in SIGNED else ""))
        )
    return described | {"text": _tell(described, out)}


def _gather(
    model: SliceMeasureModel, store: ScanStore, records: Iterable[ScanRecord], explain: ExplainScan
) -> _Gathered:
    gathered = None
    for record in records:
        scan = store.read(record.scan_id)
        found = explain(model, scan, record.sex)
        if gathered is None:
            gathered = _Gathered(
                grid=scan,
                everybody=_start(scan, found),
                anatomy=MapMean(scan.affine, scan.grid_shape, adds_up=False),
            )
        # Of a scan whose header does not say how it lies nothing is drawn, and so of a group with one.
        gathered.grid = dataclasses.replace(gathered.grid, flags=(*gathered.grid.flags, *scan.flags))
        decade = name_decade(record.age_years)
        for mean in (gathered.everybody, gathered.decades.setdefault(decade, _start(gathered.grid, found))):
            mean.add(found.values, scan.affine)
        gathered.anatomy.add(_bring_to_one(scan), scan.affine)
        parts = share_parts(found, scan.affine)
        group = name_group(record.subject, record.family_id)
        gathered.members.append(Member(group=group, decade=decade, parts=parts))
        gathered.facts.append(found.facts)
    assert gathered is not None  # a split has test people
    return gathered


def _start(grid: Scan, found: MeasureExplanation) -> MapMean:
    return MapMean(grid.affine, grid.grid_shape, adds_up=found.method in ADDING_UP)


def _bring_to_one(scan: Scan) -> np.ndarray:
    """Values with their median at 1, so that scanners count alike; what is no number is 0."""
    voxels = np.nan_to_num(np.asarray(scan.voxels, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    inside = voxels[voxels > 0]
    return voxels / (float(np.median(inside)) if len(inside) else 1.0)


def _summarise(facts: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The largest errors, and what class tokens hold in the mean; nothing of a method that does not add up."""
    errors = ("completeness_error", "completeness_error_of_sum", "map_completeness_error")
    told = {f"{name}_largest": max(one[name] for one in facts) for name in errors if name in facts[0]}
    if "prefix_tokens" in facts[0]:
        told["prefix_tokens"] = {"sum": float(np.mean([one["prefix_tokens"]["sum"] for one in facts]))}
    return told


def _write_decades(gathered: _Gathered, out: Path) -> dict[str, Any]:
    tissues = average_decades(gathered.members, "tissues")
    described = {}
    for decade in sort_decades(set(gathered.decades)):
        mean = gathered.decades[decade].result()
        name = f"group_decade_{decade}.nii.gz"
        write_map(mean.values, gathered.grid, out / name, overwrite=True)
        described[decade] = {"num_people": mean.num_people, "map": name, "tissues": tissues[decade]}
    return described


def _describe(parts: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    first = list(parts.items())[:REGIONS_TOLD]
    return {name: {what: value.to_json() for what, value in found.items()} for name, found in first}


def _tell(described: dict[str, Any], out: Path) -> str:
    lines = [f"{described['num_people']} people explained by {described['method']}: mean maps of {described['target']}"]
    for name, found in described["tissues"].items():
        density = found["density"]
        interval = "" if density["low"] is None else f" ({density['low']:.2f} to {density['high']:.2f})"
        lines.append(f"  {name:<30}{density['value']:.2f}{interval} times its size's part")
    counts = ", ".join(f"{decade}: {one['num_people']}" for decade, one in described["decades"].items())
    lines += [f"  people by decade of age: {counts}", f"  all of it takes for granted: {described['space_assumed']}"]
    return "\n".join([*lines, f"written to {out / 'group_values.nii.gz'} and beside it"])

"""`neuroray explain` for models of runs: Integrated Gradients of one run, or of a group of held-out people."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuroray.jobs.cli import UsageError
from neuroray.jobs.explained_scan import choose_people
from neuroray.jobs.logs import progress
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.evaluate.style import to_png
from neuroray.platform.evaluate.window_model import WindowModel
from neuroray.platform.explain.groups import average_maps, average_shares
from neuroray.platform.explain.integrated import IntegratedConfig
from neuroray.platform.explain.overlay import BACKDROP
from neuroray.platform.explain.randomisation import check_weights
from neuroray.platform.explain.run_figures import draw_group, draw_run
from neuroray.platform.explain.run_overlay import average_anatomy, average_frames, draw_group_map, draw_run_map
from neuroray.platform.explain.runs import RunExplanation, Share, share_by_network, share_by_region
from neuroray.platform.explain.window_answers import explain_prepared, explain_stored
from neuroray.storage.nifti import read_scan, write_map
from neuroray.storage.profiles import prepare
from neuroray.storage.profiles.agreement import read_model_profile, require_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

if TYPE_CHECKING:
    from neuroray.jobs.explain import Args

_REGIONS_TOLD = 20


def explain_one(args: Args, model: WindowModel, out: Path) -> dict[str, Any]:
    """One run: its map, its magnitudes, its networks and its course, and the check by scrambled weights."""
    config, named = _configure(args), args.target
    if args.scan is not None:
        prepared = prepare(read_scan(args.scan), read_model_profile(model.card).restore())
        scan = prepared.scan

        def explain(other: Any) -> RunExplanation:
            return explain_prepared(dataclasses.replace(model, module=other), prepared, config, target=named)
    else:
        store = ScanStore(str(args.store))
        record = _find_run(store, str(args.subject), model)
        scan = store.read(record.scan_id)

        def explain(other: Any) -> RunExplanation:
            return explain_stored(dataclasses.replace(model, module=other), store, record.scan_id, config, target=named)

    found = explain(model.module)
    # With other weights another class may be the likeliest: the check explains the same number.
    named = _name_of(found, args.target)
    networks, regions = share_by_network(found, scan.affine), share_by_region(found, scan.affine)
    described = found.to_json() | _describe_shares(networks, regions)
    if not args.skip_checks:
        described["checks"] = {
            "seed": args.seed,
            "map_correlation_after_scrambling": check_weights(model.module, explain, seed=args.seed, found=found),
        }
    write_map(found.values, scan, out / "map.nii.gz", overwrite=True)
    write_map(found.magnitudes, scan, out / "magnitude.nii.gz", overwrite=True)
    anatomy = average_frames(scan)
    (out / "overlay.png").write_bytes(to_png(draw_run_map(anatomy, found), background=BACKDROP))
    (out / "networks.png").write_bytes(to_png(draw_run(found, networks, scan.repetition_time_s)))
    return described | {"text": _tell(found, networks, described, out)}


def explain_group(args: Args, model: WindowModel, out: Path) -> dict[str, Any]:
    """Held-out people of a run: their mean map on the grid of the first, and networks with intervals over people."""
    store, records = choose_people(args.run, args.store, args.group)
    require_profile(records, model.card)
    config = _configure(args)
    explanations = [
        explain_stored(model, store, record.scan_id, config, target=args.target)
        for record in progress(records, label="explain")
    ]
    affines = [np.array(record.affine).reshape(4, 4) for record in records]
    group = average_maps(explanations, affines)
    shares = [share_by_network(each, affine) for each, affine in zip(explanations, affines, strict=True)]
    families = [name_group(record.subject, record.family_id) for record in records]
    networks = average_shares(shares, families, seed=args.seed)
    grid = Scan(voxels=np.zeros(group.values.shape, dtype=np.float32), affine=affines[0])
    for name in ("values", "magnitudes", "agreement"):
        write_map(getattr(group, name), grid, out / f"group_{name}.nii.gz", overwrite=True)
    anatomy = average_anatomy(store.read(record.scan_id) for record in records)
    targets = ", ".join(sorted({each.target for each in explanations}))
    drawn = draw_group_map(anatomy, group.values, targets, len(records))
    (out / "group_overlay.png").write_bytes(to_png(drawn, background=BACKDROP))
    (out / "group_networks.png").write_bytes(to_png(draw_group(networks, len(set(families)))))
    described = {
        "method": "integrated_gradients",
        "target": targets,
        "reference": config.reference,
        "num_steps": config.num_steps,
        "num_runs": len(records),
        "completeness_error_largest": max(max(each.completeness_errors) for each in explanations),
        "networks": {
            name: {what: value.to_json() for what, value in found.items()} for name, found in networks.items()
        },
    }
    best = next(iter(networks), None)
    told = f"; first among networks: {best}" if best else ""
    return described | {"text": f"{len(records)} runs explained{told}\nwritten to {out / 'group_values.nii.gz'}"}


def _configure(args: Args) -> IntegratedConfig:
    steps = {} if args.num_steps is None else {"num_steps": args.num_steps}
    return IntegratedConfig(reference=args.reference, **steps)


def _find_run(store: ScanStore, wanted: str, model: WindowModel) -> ScanRecord:
    found = [
        record for record in store.records() if wanted in (record.scan_id, record.subject) and len(record.shape) == 4
    ]
    if len(found) != 1:
        names = ", ".join(record.scan_id for record in found) or "none"
        raise UsageError(f"{len(found)} runs of this subject or scan id", given=names, expected="one, as --subject")
    require_profile(found, model.card)
    return found[0]


def _name_of(found: RunExplanation, named: str | None) -> str | None:
    if named is not None:
        return named
    return found.target.rsplit(" being ", 1)[1] if " being " in found.target else None


def _describe_shares(networks: Sequence[Share], regions: Sequence[Share]) -> dict[str, Any]:
    return {
        "space_assumed": "MNI152, by the affine",
        "networks": [dataclasses.asdict(share) for share in networks],
        "regions": [dataclasses.asdict(share) for share in regions[:_REGIONS_TOLD]],
    }


def _tell(found: RunExplanation, networks: Sequence[Share], described: dict[str, Any], out: Path) -> str:
    change = np.mean(found.scores) - np.mean(found.reference_scores)
    lines = [
        f"{found.target}: {np.mean(found.scores):.3f}, {change:+.3f} against {described['reference_meaning']}",
        f"  completeness error {max(found.completeness_errors):.2%} of magnitudes over {len(found.scores)} windows",
        *(f"  {share.name:<20}{share.density:.2f} times its size's part" for share in networks[:3]),
    ]
    if "checks" in described:
        for stage, value in described["checks"]["map_correlation_after_scrambling"].items():
            told = "constant" if value["values"] is None else f"{value['values']:.2f}"
            lines.append(f"  with weights scrambled down to the {stage}: map correlation {told}")
    return "\n".join([*lines, f"written to {out / 'map.nii.gz'} and beside it"])

"""`neuroray explain` for models that tell a number from slices: a map of one scan, and whether to believe it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroray.jobs.explained_scan import ExplainedScan, choose_people, find_scan
from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.style import to_png
from neuroray.platform.explain.measure_figures import draw_cascade, draw_measure_map, draw_slices
from neuroray.platform.explain.measure_maps import ADDING_UP, MeasureExplanation, compare_sums, explain_measure
from neuroray.platform.explain.measure_parts import share_parts
from neuroray.platform.explain.overlay import BACKDROP
from neuroray.platform.explain.randomisation import check_weights, slice_model_stages
from neuroray.platform.explain.runs import Share
from neuroray.platform.explain.token_reference import NUM_STEPS, TokenReference, average_tokens
from neuroray.storage.nifti import write_map
from neuroray.storage.profiles import lay_back
from neuroray.storage.profiles.agreement import read_model_profile, require_profile
from neuroray.storage.profiles.profile import IN_TEMPLATE
from neuroray.storage.scan import Scan

if TYPE_CHECKING:
    from neuroray.jobs.explain import Args

REGIONS_TOLD = 20

ExplainScan = Callable[[SliceMeasureModel, Scan, str | None], MeasureExplanation]
"""Explains a scan of a person of some sex by a model."""


def explain_one(args: Args, model: SliceMeasureModel, out: Path) -> dict[str, Any]:
    """One scan: its map, its slices, its parts and its sums, and the check by scrambled weights."""
    given = find_scan(args.scan, args.store, args.subject, model.card)
    sex, explain_scan = args.sex or given.sex, make_explain(args, model)

    model = model.settle(given.scan, sex)  # scrambled weights are asked about the same class

    def explain(module: Any) -> MeasureExplanation:
        return explain_scan(dataclasses.replace(model, module=module), given.scan, sex)

    found = explain(model.module)
    described = {"sex": sex} | found.to_json() | _write_maps(found, given, out)
    described |= describe_parts(share_parts(found, given.scan.affine), model)
    (out / "overlay.png").write_bytes(to_png(draw_measure_map(given.scan, found), background=BACKDROP))
    (out / "slices.png").write_bytes(to_png(draw_slices(found)))
    if not args.skip_checks:
        stages = slice_model_stages(model.module)
        correlations = check_weights(model.module, explain, seed=args.seed, stages=stages, found=found)
        described["checks"] = {"seed": args.seed, "map_correlation_after_scrambling": correlations}
        (out / "checks.png").write_bytes(to_png(draw_cascade(correlations, is_signed=found.is_signed)))
    return described | {"text": _tell(found, described, out)}


def make_explain(args: Args, model: SliceMeasureModel) -> ExplainScan:
    """The method that was asked for, with what it compares with: training people, looked at by the model in question.

    Raises:
        UsageError: a comparison without a RUN folder to take training people from.
        ProfileError: these were prepared otherwise than the model expects.
    """
    method = args.method or "grad_x_token"
    if method != "integrated_tokens":
        return lambda model, scan, sex: explain_measure(model, scan, method=method, sex=sex)
    store, records = choose_people(args.run, args.store if args.group else None, args.against, side="train")
    require_profile(records, model.card)
    num_steps = NUM_STEPS if args.num_steps is None else args.num_steps
    known: dict[int, TokenReference] = {}

    def explain(model: SliceMeasureModel, scan: Scan, sex: str | None) -> MeasureExplanation:
        # Of other weights another reference; the last one alone is kept, for a group asks for the same again.
        if id(model.module) not in known:
            known.clear()
            known[id(model.module)] = average_tokens(model, (store.read(record.scan_id) for record in records))
        reference = known[id(model.module)]
        return explain_measure(model, scan, method=method, sex=sex, reference=reference, num_steps=num_steps)

    return explain


def describe_parts(parts: Mapping[str, list[Share]], model: SliceMeasureModel) -> dict[str, Any]:
    """Tissues and networks, the first regions, and how sure it is that they lie where the template has them."""
    described = {kind: [dataclasses.asdict(share) for share in shares] for kind, shares in parts.items()}
    described["regions"] = described["regions"][:REGIONS_TOLD]
    return {"space_assumed": tell_space(model), **described}


def tell_space(model: SliceMeasureModel) -> str:
    """What regions, and maps of several people together, take for granted."""
    profile = read_model_profile(model.card).name
    if profile in IN_TEMPLATE:
        return f"MNI152, on whose grid the profile {profile} has laid the scan"
    return f"MNI152, by the affine; the profile {profile} does not see to it"


def _write_maps(found: MeasureExplanation, given: ExplainedScan, out: Path) -> dict[str, Any]:
    write_map(found.values, given.scan, out / "map.nii.gz", overwrite=True)
    if given.to_template is None:
        return {}
    adds_up = found.method in ADDING_UP
    native = lay_back(found.values, given.scan.affine, given.to_template, as_amounts=adds_up)
    write_map(native.voxels, native, out / "map_native.nii.gz", overwrite=True)
    if not adds_up:
        return {}
    # Interpolated, and cut off where the native grid ends: how much that takes is told.
    total = float(native.voxels.sum(dtype=float))
    return {"map_native": {"sum": total, "completeness_error": compare_sums(native.voxels, found.patches)}}


def _tell(found: MeasureExplanation, described: dict[str, Any], out: Path) -> str:
    said = "" if found.answer is None else f" {found.answer:.4g} {found.unit}".rstrip()
    lines = [f"{found.target}{said}, by {found.method}: {found.quantity}"]
    if found.method in ADDING_UP:
        lines += [
            f"  completeness error {described['completeness_error']:.1e}, "
            f"of the map {described['map_completeness_error']:.1e}",
            f"  the map sums to {described['map']['sum']:.4g}; "
            f"class tokens and registers hold {described['prefix_tokens']['sum']:.4g}",
        ]
    lines += [f"  {share['name']:<30}{share['density']:.2f} times its size's part" for share in described["tissues"]]
    lines.append(f"  tissues lie where they do if the scan is in {described['space_assumed']}")
    if "reference_answer" in described:
        lines.append(
            f"  {described['expected_sum']:+.4g} against {described['reference_answer']:.4g}, "
            f"what the model says of the mean of {described['reference_people']} people"
        )
    if "checks" in described:
        for stage, value in described["checks"]["map_correlation_after_scrambling"].items():
            told = "constant" if value["values"] is None else f"{value['values']:.2f}"
            lines.append(f"  with weights scrambled down to {stage}: map correlation {told}")
    return "\n".join([*lines, f"written to {out / 'map.nii.gz'} and beside it"])

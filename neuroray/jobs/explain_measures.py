"""`neuroray explain` for models that tell a number from slices: a map of one scan, and whether to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroray.jobs.explained_scan import find_scan
from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.style import to_png
from neuroray.platform.explain.measure_figures import draw_measure_map, draw_slices
from neuroray.platform.explain.measure_maps import MeasureExplanation, explain_measure
from neuroray.platform.explain.overlay import BACKDROP
from neuroray.storage.nifti import write_map
from neuroray.storage.profiles import lay_back

if TYPE_CHECKING:
    from neuroray.jobs.explain import Args


def explain_one(args: Args, model: SliceMeasureModel, out: Path) -> dict[str, Any]:
    """One scan: its map, its slices and its sums."""
    given = find_scan(args.scan, args.store, args.subject, model.card)
    sex = args.sex or given.sex
    found = explain_measure(model, given.scan, method=args.method or "grad_x_token", sex=sex)
    described = {"sex": sex} | found.to_json()
    write_map(found.values, given.scan, out / "map.nii.gz", overwrite=True)
    (out / "overlay.png").write_bytes(to_png(draw_measure_map(given.scan, found), background=BACKDROP))
    (out / "slices.png").write_bytes(to_png(draw_slices(found)))
    if given.to_template is not None:
        native = lay_back(found.values, given.scan.affine, given.to_template)
        write_map(native.voxels, native, out / "map_native.nii.gz", overwrite=True)
    return described | {"text": _tell(found, described, out)}


def _tell(found: MeasureExplanation, described: dict[str, Any], out: Path) -> str:
    said = "" if found.answer is None else f" {found.answer:.4g} {found.unit}".rstrip()
    lines = [
        f"{found.target}{said}, by {found.method}: {found.quantity}",
        f"  completeness error {described['completeness_error']:.1e}, "
        f"of the map {described['map_completeness_error']:.1e}",
        f"  the map sums to {described['map']['sum']:.4g}; "
        f"class tokens and registers hold {described['prefix_tokens']['sum']:.4g}",
    ]
    return "\n".join([*lines, f"written to {out / 'map.nii.gz'} and beside it"])

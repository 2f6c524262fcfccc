"""`neuroray explain`: show what a prediction rests on, as a map on the scan's own grid, and whether to believe it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuroray.jobs.cli import UsageError
from neuroray.jobs.explained_scan import find_scan
from neuroray.jobs.run_record import record_run
from neuroray.platform.evaluate.loaded import AnyModel, load_model
from neuroray.platform.evaluate.slice_measure import SliceMeasureModel
from neuroray.platform.evaluate.slice_model import SliceModel
from neuroray.platform.evaluate.style import to_png
from neuroray.platform.evaluate.window_model import WindowModel
from neuroray.platform.explain.explanation import METHODS, check_map, explain
from neuroray.platform.explain.figures import draw_checks, draw_profile
from neuroray.platform.explain.integrated import Reference
from neuroray.platform.explain.maps import Explanation
from neuroray.platform.explain.overlay import BACKDROP, draw_overlay
from neuroray.platform.generate.ageing_model import is_ageing_model
from neuroray.storage.nifti import write_map
from neuroray.storage.profiles import lay_back
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.scan import Scan

Method = Literal[
    "attention",
    "attention_patch",
    "gradient_x_input",
    "occlusion",
    "integrated_gradients",
    "grad_x_token",
    "integrated_tokens",
    "rollout",
    "paper_fused",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Explain one scan: a file, or a subject of a store."""

    run: Annotated[str, tyro.conf.Positional]
    """A RUN folder, one fold of it, or an exported model folder."""

    scan: str | None = None
    """A scan file."""

    store: str | None = None
    """A store, with --subject."""

    subject: str | None = None
    """Whose scan to take from the store, or the id of a scan in it."""

    method: Method | None = None
    """How. Models of slices: slice attention (when not given), slice times patch attention, gradient times input, or
    leaving slices out. Models of runs: Integrated Gradients. Models that tell a measure from slices: gradient times
    token (when not given), Integrated Gradients of tokens against other people, attention rollout, or the fused scores
    that BrainRotViT was released with."""

    target: str | None = None
    """The class to explain, the likeliest when not given; of a model of runs a target or a class of one."""

    sex: Literal["M", "F"] | None = None
    """Of the person in the file, for models that take it into account; it moves the stated answer, not the map."""

    reference: Reference = "mean_frame"
    """Integrated Gradients: what a window is compared with."""

    num_steps: int | None = None
    """Integrated Gradients: nodes on the way there; 32 when not given, of tokens (through the head alone) 128."""

    against: int = 8
    """Integrated Gradients of tokens: compare with the mean of so many of the run's training people, encoded anew (and
    once more for each step of the check)."""

    group: int = 0
    """Models of runs or of a measure: explain so many of the run's test people and average, in place of one scan."""

    age_years: float | None = None
    """Of a model that tells brains at other ages (neuroar): the person's, when the scan was made; of a scan in a store
    the one that the store knows when not given."""

    ages: tuple[float, ...] = ()
    """Of the same: over which the change per year is told; four or more let the order of ages be checked."""

    allow_outside: bool = False
    """Of the same: also ages that the training has not seen."""

    out: str | None = None
    """Where map.nii.gz, the pictures, explain.json and run.json go; RUN/explain when not given.

    Of a model of scans in a template's space, map.nii.gz lies there and map_native.nii.gz over the scan itself.
    """

    skip_checks: bool = False
    """Leave out the checks (slices deleted, weights scrambled), which encode the scan once more."""

    seed: int = 0
    """Seed of the checks."""

    device: str = "cpu"
    """Where to compute: cpu, cuda."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Explains the scan, or the group, and writes the maps and their pictures."""
    out = Path(args.out) if args.out else Path(args.run) / "explain"
    with record_run(out, job="explain", args=args, seed=args.seed) as record:
        _check_named(args)
        folder = _find_model(Path(args.run))
        if _is_ageing(folder):
            from neuroray.jobs.explain_ages import explain_ages

            return explain_ages(args, folder, out, record) | {"out": str(out)}
        model = load_model(folder, device=args.device)
        if isinstance(model, WindowModel):
            described = _explain_windows(args, model, out)
        elif isinstance(model, SliceMeasureModel):
            described = _explain_measure(args, model, out)
        else:
            described = _explain_slices(args, model, out)
        kept = {name: value for name, value in described.items() if name != "text"}
        (out / "explain.json").write_text(json.dumps(kept, indent=2, allow_nan=False) + "\n")
        record.add(method=described["method"], target=described["target"])
    return described | {"out": str(out)}


def _explain_slices(args: Args, model: SliceModel, out: Path) -> dict[str, Any]:
    if args.group or args.method == "integrated_gradients":
        raise UsageError(
            "this is a model of slices", given="--group" if args.group else args.method, expected=", ".join(METHODS)
        )
    given = find_scan(args.scan, args.store, args.subject, model.card)
    scan, transform = given.scan, given.to_template
    view = model.encode(scan)
    found = explain(model, scan, method=args.method or "attention", target=args.target, view=view)
    described = {"model": _describe_model(model), **found.to_json()}
    _write_pictures(out, scan, found)
    if transform is not None:
        native = lay_back(found.values, scan.affine, transform)
        write_map(native.voxels, native, out / "map_native.nii.gz", overwrite=True)
    if not args.skip_checks:
        deletion, checks = check_map(model, scan, found, seed=args.seed, view=view)
        described["checks"] = checks
        correlations = checks["map_correlation_after_scrambling"]
        (out / "checks.png").write_bytes(to_png(draw_checks(deletion, correlations, found.target)))
    return described | {"text": _tell(found, described, out)}


def _explain_windows(args: Args, model: WindowModel, out: Path) -> dict[str, Any]:
    from neuroray.jobs.explain_runs import explain_group, explain_one

    if args.method not in (None, "integrated_gradients"):
        raise UsageError("this is a model of runs", given=args.method, expected="integrated_gradients")
    described = explain_group(args, model, out) if args.group else explain_one(args, model, out)
    return {"model": _describe_model(model), **described}


def _explain_measure(args: Args, model: SliceMeasureModel, out: Path) -> dict[str, Any]:
    from neuroray.jobs.explain_measure_group import explain_group
    from neuroray.jobs.explain_measures import explain_one

    model = model.aim(args.target)
    if args.group and "likeliest" in model.explained:
        expected = ", ".join(model.targets[0].classes)
        raise UsageError("a group's map is of one class", given="no --target", expected=f"--target, one of {expected}")
    described = explain_group(args, model, out) if args.group else explain_one(args, model, out)
    return {"model": _describe_model(model), **described}


def _check_named(args: Args) -> None:
    if args.group:
        return
    if (args.scan is None) == (args.store is None):
        raise UsageError(
            "name one scan", given="both or neither", expected="--scan FILE, or --store STORE --subject ID"
        )
    if args.scan is None and args.subject is None:
        raise UsageError("a store holds many scans", expected="--subject ID beside --store")


def _find_model(folder: Path) -> Path:
    """RUN/model, or the first fold's, or the folder itself."""
    for candidate in (folder / "model", folder / "fold-0" / "model"):
        if candidate.is_dir():
            return candidate
    return folder


def _is_ageing(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and is_ageing_model(json.loads(config.read_text()))


def _write_pictures(out: Path, scan: Scan, found: Explanation) -> None:
    write_map(found.values, scan, out / "map.nii.gz", overwrite=True)
    (out / "overlay.png").write_bytes(to_png(draw_overlay(scan, found), background=BACKDROP))
    (out / "attention.png").write_bytes(to_png(draw_profile(found)))


def _describe_model(model: AnyModel) -> dict[str, Any]:
    kept = ("model_name", "classes", "target", "modality", "encoder_sha256", "feature_fingerprint")
    profile = read_model_profile(model.card)
    described = {name: model.card[name] for name in kept if name in model.card}
    return described | {"profile": profile.name, "profile_sha256": profile.sha256}


def _tell(found: Explanation, described: dict[str, Any], out: Path) -> str:
    stated = found.probabilities[found.target_index]
    profile = found.profile
    lines = [
        f"{found.target} (probability {stated:.3f}), by {found.method}: {METHODS[found.method]}",
        f"  attention is as spread as {profile.effective_slices:.1f} of {len(profile.weight)} slices alike",
    ]
    if "checks" in described:
        deletion = described["checks"]["deletion"]
        lines.append(
            f"  deleting the map's slices first lowers the log-odds by {deletion['area_random_minus_most_first']:.3f} "
            f"more than random orders do; {deletion['random_orders_as_steep']:.0%} of these lower it as much"
        )
        for part, value in described["checks"]["map_correlation_after_scrambling"].items():
            told = "the map is constant" if value is None else f"map correlation {value:.2f}"
            lines.append(f"  with the {part}'s weights scrambled: {told}")
    return "\n".join([*lines, f"written to {out / 'map.nii.gz'} and beside it"])

"""`neuroray evaluate`: judge a run on people it has not seen, with intervals, figures and a page to hand on."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.evaluate_ageing import evaluate_ageing_run, find_ageing_kind, refuse_ageing_options
from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import git_commit, package_versions, record_run
from neuroray.platform.evaluate.connectome import evaluate_connectome, list_edge_targets
from neuroray.platform.evaluate.ensemble import CALIBRATION_FILE, calibrate_ensemble, find_members
from neuroray.platform.evaluate.evidence import Evaluation
from neuroray.platform.evaluate.findings import tell_headline, tell_interval, tell_millimetres, tell_number
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
from neuroray.platform.evaluate.number_evidence import NumberEvaluation
from neuroray.platform.evaluate.number_findings import tell_number_headline
from neuroray.platform.evaluate.protocol import choose_example, evaluate
from neuroray.platform.evaluate.report import Example, write_report
from neuroray.platform.evaluate.run import read_folds
from neuroray.platform.evaluate.seeds import evaluate_seeds, find_seeds
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore
from neuroray.storage.whole_file import replace_file

_METRICS_TOLD = ("auc", "balanced_accuracy", "brier", "calibration_error")
_NUMBER_METRICS_TOLD = ("pearson_r", "r2", "mae", "rmse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Judge a run, or all its folds together, on the test people that its split recorded."""

    run: Annotated[str, tyro.conf.Positional]
    """A RUN folder; the test people of RUN/fold-* are pooled where there are folds, and where there are RUN/seed-* each
    seed is judged, and the mean of what they say."""

    store: str | None = None
    """The store of the scans; where the run found them when not given."""

    external: bool = False
    """STORE is that of another cohort: judge everybody in it, by the models of all folds together."""

    target: str | None = None
    """Which of the model's targets, where it has several; the main one when not given."""

    out: str | None = None
    """Where report.html, report.json, predictions.csv and run.json go; RUN/evaluate (-external) when not given."""

    seed: int = 0
    """Seed of the bootstrap."""

    num_resamples: int = NUM_RESAMPLES
    """Bootstrap resamples."""

    device: str = "cpu"
    """Where to compute: cpu, cuda."""

    backward: bool = False
    """Of a model of brains at other ages (neuroar): give the older scan of a pair and tell the younger one."""

    age_model: str | None = None
    """Of the same: a run of brainrotvit that tells age, to read the age off what is told; else a regression does."""

    diffusion: bool = False
    """Of the same: train a small latent diffusion too, as a further row."""

    downstream: bool = False
    """Of the same: also learn age from real scans, and from real and generated ones, and compare."""

    perceptual_weights: str | None = None
    """Of runs of neuroar: a local file of a network's weights, as for training's --loss.perceptual-weights, to
    measure the perceptual distance of images by; else it is left out."""

    perceptual_network: str = "resnet18"
    """What timm calls that network."""

    label_maps: str | None = None
    """Of runs of neuroar/transformer: a folder of label maps, one for each scan and on its file's grid (FreeSurfer's or
    SynthSeg's numbers, or a BIDS _dseg with its table), to measure the hippocampus and other structures by."""

    skip_example: bool = False
    """Leave pictures out of the page: the map of one held-out scan (models of slices), strips of pairs (neuroar)."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Judges, explains one held-out scan, writes the page."""
    run_folder = Path(args.run)
    out = Path(args.out) if args.out else run_folder / ("evaluate-external" if args.external else "evaluate")
    with record_run(out, job="evaluate", args=args, seed=args.seed) as record:
        if find_ageing_kind(run_folder) is not None:
            answer = evaluate_ageing_run(args, out, _facts(args))
            record.add(**{name: value for name, value in answer.items() if name != "text"})
            return answer
        refuse_ageing_options(args)
        judge = evaluate_seeds if find_seeds(run_folder) else evaluate
        evaluation = judge(
            run_folder,
            store=args.store,
            target=args.target,
            seed=args.seed,
            num_resamples=args.num_resamples,
            external=args.external,
            device=args.device,
            facts=_facts(args),
            track=lambda scan_ids: progress(scan_ids, label="evaluate"),
        )
        example = None
        if not args.skip_example and isinstance(evaluation, Evaluation) and evaluation.attention is not None:
            example = _explain_example(evaluation, run_folder, args)
        paths = write_report(evaluation, out, example=example)
        if not args.external:
            _calibrate_ensemble(evaluation, run_folder)
        answer = _summarise(evaluation, paths) | _judge_connectome(args, evaluation, out)
        record.add(catalogue_version=evaluation.provenance["catalogue_version"], **answer)
    return answer | {"text": _tell(evaluation, paths) + _tell_connectome(answer.get("connectome"))}


def _calibrate_ensemble(evaluation: Evaluation | NumberEvaluation, run_folder: Path) -> None:
    """Several models of a measure answer together (`neuroray predict RUN`): how far off they are, beside them."""
    members = find_members(Location(run_folder))
    if not members or not isinstance(evaluation, NumberEvaluation) or not evaluation.validation:
        return
    if evaluation.target != json.loads((run_folder / members[0].path / "model/config.json").read_text())["target"]:
        return
    weights = [digest for fold in evaluation.folds for digest in str(fold.facts["weights_sha256"]).split()]
    found = calibrate_ensemble(evaluation.validation, target=evaluation.target, weights_sha256=weights)
    replace_file(run_folder / CALIBRATION_FILE, (json.dumps(found.to_json(), indent=2) + "\n").encode())


def _judge_connectome(args: Args, evaluation: Evaluation | NumberEvaluation, out: Path) -> dict[str, Any]:
    """Of a model that was asked for connectivity: person by person over all edges, besides the one target."""
    run_folder = Path(args.run)
    folds = [] if find_seeds(run_folder) else read_folds(run_folder)
    if args.external or not folds or not list_edge_targets(folds[0].card):
        return {}
    store = ScanStore(evaluation.provenance["store"], version=evaluation.provenance["catalogue_version"])
    found = evaluate_connectome(
        folds,
        store,
        seed=args.seed,
        num_resamples=args.num_resamples,
        device=args.device,
        track=lambda scan_ids: progress(scan_ids, label="connectome"),
    )
    (out / "connectome.json").write_text(json.dumps(found.to_json(), indent=2, allow_nan=False) + "\n")
    return {"connectome": found.to_json()}


def _tell_connectome(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    lines = [f"\nconnectivity, {found['num_edges']} edges of {found['num_people']} people:"]
    for name, one in found["metrics"].items():
        lines.append(f"  {name:<20}{one['value']:.3f}  ({one['low']:.3f} to {one['high']:.3f})")
    return "\n".join(lines)


def _facts(args: Args) -> dict[str, Any]:
    return {
        "versions": package_versions(),
        "git_commit": git_commit(),
        "made_at": datetime.now(UTC).date().isoformat(),
        "commands": [shlex.join(_command(args))],
    }


def _command(args: Args) -> list[str]:
    words = ["neuroray", "evaluate", args.run]
    words += ["--store", args.store] if args.store else []
    words += ["--external"] if args.external else []
    words += ["--backward"] if args.backward else []
    words += ["--age-model", args.age_model] if args.age_model else []
    words += ["--diffusion"] if args.diffusion else []
    words += ["--downstream"] if args.downstream else []
    words += ["--perceptual-weights", args.perceptual_weights] if args.perceptual_weights else []
    words += ["--perceptual-network", args.perceptual_network] if args.perceptual_network != "resnet18" else []
    words += ["--label-maps", args.label_maps] if args.label_maps else []
    words += ["--target", args.target] if args.target else []
    words += ["--seed", str(args.seed), "--num-resamples", str(args.num_resamples)]
    return words + (["--skip-example"] if args.skip_example else [])


def _explain_example(evaluation: Evaluation, run_folder: Path, args: Args) -> Example:
    """Slice attention over the anatomy of one held-out scan; the page does not say whose."""
    from neuroray.platform.evaluate.loaded import load_slice_model
    from neuroray.platform.evaluate.style import to_png
    from neuroray.platform.explain.explanation import explain
    from neuroray.platform.explain.overlay import BACKDROP, draw_overlay

    chosen = choose_example(evaluation)
    fold = next(fold for fold in read_folds(run_folder) if fold.index == chosen.fold)
    store = ScanStore(evaluation.provenance["store"], version=evaluation.provenance["catalogue_version"])
    scan = store.read(chosen.scan_id)
    found = explain(load_slice_model(fold.path / "model", device=args.device), scan, method="attention")
    label, stated = evaluation.classes[chosen.label], chosen.probabilities[chosen.label]
    peak = found.profile.position_mm[found.profile.weight.argmax()]
    axis = {"axial": "z", "coronal": "y", "sagittal": "x"}[found.profile.axis]
    return Example(
        png=to_png(draw_overlay(scan, found), background=BACKDROP),
        title=f"In one held-out scan of class “{label}”, given {stated:.0%}, attention peaks at "
        f"{axis} = {tell_millimetres(float(peak))} mm",
        caption="Slice attention over the anatomy, in the scan's own space, left on the left; beside it the same "
        "numbers over millimetres, with the even spread dashed. The scan is the one of its class, among those called "
        "right, with the median probability.",
    )


def _headline(evaluation: Evaluation | NumberEvaluation) -> str:
    return tell_number_headline(evaluation) if isinstance(evaluation, NumberEvaluation) else tell_headline(evaluation)


def _summarise(evaluation: Evaluation | NumberEvaluation, paths: dict[str, Path]) -> dict[str, Any]:
    return {
        "headline": _headline(evaluation),
        "target": evaluation.target,
        "num_people": evaluation.num_people,
        "num_scans": len(evaluation.judged),
        "num_folds": len(evaluation.folds),
        "metrics": {name: evaluation.metrics[name].to_json() for name in evaluation.metrics},
        "seeds": evaluation.seeds.to_json() if evaluation.seeds else None,
        "warnings": list(evaluation.warnings),
        "report": str(paths["report.html"]),
        "report_json": str(paths["report.json"]),
        "predictions": str(paths["predictions.csv"]),
    }


def _tell(evaluation: Evaluation | NumberEvaluation, paths: dict[str, Path]) -> str:
    told = _NUMBER_METRICS_TOLD if isinstance(evaluation, NumberEvaluation) else _METRICS_TOLD
    lines = [f"{_headline(evaluation)} ({len(evaluation.judged)} scans of {evaluation.num_people} people)"]
    for name in told:
        found, seeds = evaluation.metrics[name], evaluation.seeds
        over = f"; seeds {seeds.mean(name):.3g} \N{PLUS-MINUS SIGN} {seeds.deviation(name):.2g}" if seeds else ""
        lines.append(f"  {name:<20}{tell_number(found.value)}  ({tell_interval(found)}){over}")
    if isinstance(evaluation, NumberEvaluation):
        unit = f" {evaluation.unit}" if evaluation.unit else ""
        lines.append(f"  {evaluation.coverage.tell(unit) if evaluation.coverage else evaluation.no_interval}")
    if isinstance(evaluation, NumberEvaluation) and evaluation.age is not None:
        gain = evaluation.age.gain_years
        lines.append(
            f"  the training mean of everybody is off by {evaluation.guess['mae']:.2f} years: "
            f"{gain.value:.2f} ({gain.low:.2f} to {gain.high:.2f}) more"
        )
    lines += [f"  note: {warning}" for warning in evaluation.warnings]
    return "\n".join([*lines, f"written to {paths['report.html']}"])

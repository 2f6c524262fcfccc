"""`neuroray baselines`: what simple predictors on connectivity or volumes reach, beside a run or alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.jobs.cli import UsageError
from neuroray.jobs.logs import progress
from neuroray.jobs.run_record import package_versions, record_run
from neuroray.platform.baselines.compare import CompareConfig, compare
from neuroray.platform.baselines.compare_volumes import VolumeCompareConfig, compare_volumes
from neuroray.platform.baselines.judging import Comparison
from neuroray.platform.baselines.model_answers import find_predictions, read_model_answers
from neuroray.platform.baselines.parcels import ParcelConfig
from neuroray.platform.baselines.question import Kind, Question, ask, ask_as_run, learn_from, locate_run
from neuroray.platform.baselines.series import CleaningConfig
from neuroray.platform.baselines.table import render_markdown, write_comparison
from neuroray.platform.baselines.volumes import VolumeConfig
from neuroray.platform.data.splits import SplitConfig
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Fit and judge the baselines on the splits of a run, or on folds of their own."""

    store: Annotated[str | None, tyro.conf.Positional] = None
    """The store; where the run found its scans when not given."""
    run: str | None = None
    """A RUN folder: its splits, its target, and its model's answers where `neuroray evaluate` has written them."""
    target: str | None = None
    """What to predict, a column of the store; with a run, another of its targets than the first."""
    kind: Kind | None = None
    """Classes or a measure; found from the values when not given: more than ten numbers are a measure."""
    modality: str | None = None
    """Without a run: which scans; bold, or the only modality of the store, when not given."""
    learn_from: str | None = None
    """As diagnosis=control: fit on these people alone, and judge everybody (for a brain age gap)."""
    predictions: str | None = None
    """The model's answers; RUN/evaluate/predictions.csv where it is there."""
    baselines: tuple[str, ...] = ()
    """Which ones; all for this kind of target that can run here when not given."""
    parcels: ParcelConfig = field(default_factory=ParcelConfig)
    """The regions."""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """What is taken out of their time series."""
    volumes: VolumeConfig = field(default_factory=VolumeConfig)
    """Of volumes: the coarse grid that they are brought to."""
    features: str | None = None
    """Of volumes: fingerprint of the slice features, where the store has those of several encoders."""
    split: SplitConfig = field(default_factory=lambda: SplitConfig(test_parts=2))
    """Without a run: how people are dealt. The default tests everybody once in five folds of 70:10:20."""
    one_fold: bool = False
    """Without a run: only the fold that the split names, instead of all."""
    out: str | None = None
    """Where baselines.json, .csv, .md and baselines_predictions.csv go; RUN/baselines when not given."""
    seed: int = 0
    """Of the bootstrap, of inner folds and of the networks."""
    num_resamples: int = NUM_RESAMPLES
    """Bootstrap resamples."""
    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Asks, fits, judges, writes the table."""
    if args.run is None and args.target is None:
        raise UsageError("a run or a target says what to predict", expected="--run, --target, or both")
    if args.out is None and args.run is None:
        raise UsageError("there is no run to put the table beside", fix="--out FOLDER")
    out = Path(args.out) if args.out else Path(str(args.run)) / "baselines"
    store, question = _ask(args)
    with record_run(out, job="baselines", args=args, seed=args.seed) as record:
        comparison = _compare(args, store, question)
        facts = {"store": store.uri, "catalogue_version": store.version, "versions": package_versions()}
        paths = write_comparison(comparison, out, facts=facts)
        answer = _summarise(comparison, paths)
        record.add(catalogue_version=store.version, **answer)
    return answer | {"text": f"{render_markdown(comparison)}written to {paths['baselines.md']}"}


def _ask(args: Args) -> tuple[ScanStore, Question]:
    if args.run is None:
        if args.store is None:
            raise UsageError("no store is named", fix="neuroray baselines STORE --target ...")
        store = ScanStore(args.store)
        store = ScanStore(args.store, version=store.version)
        assert args.target is not None
        modality, num_axes = _find_scans(store, args.modality)
        question = ask(
            store,
            args.target,
            args.split,
            kind=args.kind,
            modality=modality,
            all_folds=not args.one_fold,
            num_axes=num_axes,
        )
        return store, question
    found, version = locate_run(Path(args.run))
    uri = args.store or found
    if uri is None:
        raise UsageError("the run does not say where its scans are", fix="neuroray baselines STORE --run ...")
    store = ScanStore(uri, version=version)
    return store, ask_as_run(Path(args.run), store, target=args.target, kind=args.kind)


def _find_scans(store: ScanStore, modality: str | None) -> tuple[str, int]:
    """The modality asked for, else bold where there is any, else the only one; and how many axes its scans have."""
    found = {record.modality: len(record.shape) for record in store.records()}
    chosen = modality or ("bold" if "bold" in found else next(iter(found)) if len(found) == 1 else None)
    if chosen not in found:
        raise UsageError(
            "which scans to predict from is not said, or there are none",
            given=modality,
            expected=f"one of {', '.join(sorted(found))}",
            fix="--modality",
        )
    return chosen, found[chosen]


def _compare(args: Args, store: ScanStore, question: Question) -> Comparison:
    predictions = find_predictions(Path(args.run) if args.run else None, args.predictions)
    model = read_model_answers(predictions, question) if predictions else None
    if args.learn_from is not None:
        question = learn_from(question, store, args.learn_from)
    shared: dict[str, Any] = {
        "names": args.baselines or None,
        "model": model,
        "model_label": f"Model ({Path(args.run).resolve().name})" if args.run else "Model",
        "track": lambda scan_ids, label: progress(scan_ids, label=label),
    }
    draws: dict[str, Any] = {"num_resamples": args.num_resamples, "seed": args.seed}
    scan_id = next(iter(question.values))
    if len(store.record(scan_id).shape) == 3:
        volumes = VolumeCompareConfig(volumes=args.volumes, features=args.features, **draws)
        return compare_volumes(question, store, volumes, **shared)
    runs = CompareConfig(parcels=args.parcels, cleaning=args.cleaning, **draws)
    return compare(question, store, runs, **shared)


def _summarise(comparison: Comparison, paths: dict[str, Path]) -> dict[str, Any]:
    return {
        "target": comparison.question.target,
        "kind": comparison.question.kind,
        "num_scans": len(comparison.judged),
        "metrics": {
            answers.name: {name: found.to_json() for name, found in answers.metrics.items()}
            for answers in comparison.answers
        },
        "skipped": dict(comparison.skipped),
        **{name.replace(".", "_"): str(path) for name, path in paths.items()},
    }

"""`neuroray train RECIPE`: fits a recipe on a store, or goes on where an earlier start was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from neuroray.jobs.cli import UsageError, parse_args
from neuroray.jobs.dry_run import forecast_recipe
from neuroray.jobs.extract import extract_for
from neuroray.jobs.logs import progress
from neuroray.jobs.ray_session import ensure_ray
from neuroray.jobs.recipes import list_recipes, load_recipe
from neuroray.jobs.run_record import RunRecord, record_run
from neuroray.platform.data.extract import extract_features
from neuroray.platform.data.splits import split_subjects
from neuroray.platform.train.loop import Run, fit_run, prepare_run, training_plan
from neuroray.platform.train.motion_range import with_motion
from neuroray.platform.train.people import choose_records
from neuroray.platform.train.recipe import Recipe, RecipeError
from neuroray.platform.train.run_folder import FitResult, choose_version, read_result
from neuroray.platform.train.slice_features import use_encoder
from neuroray.platform.train.start_weights import find_start
from neuroray.platform.train.step import RankBatch
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe, use_tokenizer
from neuroray.platform.train.visit_pairs import pair_sides
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """What a training takes besides its recipe."""

    store: str = ""
    """The store: a folder or s3://bucket/prefix. A dry run without one takes the recipe's own grid and frames."""

    out: str = ""
    """The run folder. The same one again continues the run, and refuses another recipe."""

    workers: int | None = None
    """Ray Train workers; 0 trains in this process. The recipe's scaling.num_workers when not given."""

    folds: Literal["all"] | None = None
    """Train every fold, one after another, into OUT/fold-0, OUT/fold-1, ..."""

    seeds: tuple[int, ...] = ()
    """Train each of these seeds, one after another, into OUT/seed-0, ...: other weights, the same people."""

    init: str | None = None
    """Start from the encoder of this finished run (of its fold-K, where it has folds): a pretraining, or any other."""

    encoder: str | None = None
    """The run of a first stage (brainrotvit:stage1, neuroar/vqvae:base) whose encoder or tokenizer is taken."""

    extract: bool = False
    """First compute the slice features, or tokens, that are missing."""

    motion_runs: int = 20
    """Of models of runs: how many training runs to measure the motion of, so that answers for runs that moved more are
    warned of; 0: none."""

    dry_run: bool = False
    """Check everything, tell what would be done and what memory and work it would take; 1 where it would not fit."""

    gpu: str | None = None
    """With a dry run: the GPU to hold it against, such as h200; what the recipe would run on here when not given."""

    device_memory_gb: float | None = None
    """With a dry run: the memory of each rank to hold it against, in 10^9 bytes."""

    json: bool = False
    """Answer as JSON."""


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Takes the command line: a recipe, then its fields and the arguments above in any order."""
    if not argv or argv[0].startswith("-"):
        return _help(argv)
    try:
        recipe = load_recipe(argv[0])
    except RecipeError as fault:
        raise UsageError(fault.fault, given=fault.given, expected=fault.expected, fix=fault.fix) from fault
    args, recipe = _parse(recipe, argv)
    return run(args, recipe)


def run(args: Args, recipe: Recipe) -> dict[str, Any]:
    """Trains, and tells what came of it."""
    if args.workers is not None:
        scaling = dataclasses.replace(recipe.scaling, num_workers=args.workers)
        recipe = dataclasses.replace(recipe, scaling=scaling)
    _require_places(args)
    if args.encoder is not None:
        recipe = _take_encoder(args.encoder, recipe)
    if args.dry_run and not args.store:
        return _forecast(args, recipe, None)
    if args.extract and not args.dry_run:
        _extract(args, recipe)
    runs = [prepare_run(fold, store=args.store, folder=folder) for folder, fold in _variants(args, recipe)]
    if args.dry_run:
        told = _forecast(args, recipe, runs[0])
        text = "\n".join([*map(_tell_plan, runs), "", told["text"]])
        return told | {"text": text, "plans": [_plan(run) for run in runs]}
    num_workers = recipe.scaling.worker_range[1]
    with contextlib.ExitStack() as stack:
        if num_workers > 0 or recipe.data.feed == "ray":
            stack.enter_context(ensure_ray(num_cpus=math.ceil(num_workers * recipe.scaling.cpus_per_worker)))
        results = [_fit(args, run) for run in runs]
    text = "\n".join(map(_tell_result, results))
    if args.folds is None and not args.seeds:
        return results[0].to_json() | {"text": text}
    name = "seeds" if args.seeds else "folds"
    return {"run": Location(args.out).uri, name: [result.to_json() for result in results], "text": text}


def _require_places(args: Args) -> None:
    if args.store and not args.out:
        raise UsageError("a run needs its folder", expected="--out RUN")
    if not args.store and not args.dry_run:
        raise UsageError("a training needs a store", expected="--store STORE --out RUN")


def _forecast(args: Args, recipe: Recipe, run: Run | None) -> dict[str, Any]:
    return forecast_recipe(recipe, run, gpu=args.gpu, memory_gb=args.device_memory_gb)


def _parse(recipe: Recipe, argv: Sequence[str]) -> tuple[Args, Recipe]:
    # Made for the recipe's own class, so that every field of it can be set.
    command = dataclasses.make_dataclass(
        "Train",
        [
            ("args", Annotated[Args, tyro.conf.arg(name="")]),
            ("recipe", Annotated[type(recipe), tyro.conf.arg(name="")], recipe),
        ],
        frozen=True,
        kw_only=True,
    )
    parsed: Any = parse_args(command, argv[1:], prog=f"neuroray train {argv[0]}", description=__doc__)
    return parsed.args, parsed.recipe


def _help(argv: Sequence[str]) -> dict[str, Any]:
    names = list_recipes()
    if not argv or argv[0] not in ("-h", "--help"):
        raise UsageError(
            "a training starts with its recipe", expected=f"one of {', '.join(names)}, or ./file.py:function"
        )
    lines = ["usage: neuroray train RECIPE --store STORE --out RUN [--FIELD VALUE ...]", "", "recipes:"]
    lines += [f"  {name}" for name in names] + ["  ./file.py:function    a recipe of your own"]
    return {"text": "\n".join([*lines, "", "  neuroray train RECIPE --help    every field that can be set"])}


def _take_encoder(run: str, recipe: Recipe) -> Recipe:
    described: Any = recipe
    if isinstance(recipe, NeuroARRecipe):
        return use_tokenizer(recipe, run)
    if not hasattr(described.model, "encoder"):
        expected = "e.g. brainrotvit:base, or neuroar/transformer:base"
        raise UsageError("this model has no first stage", given=recipe.name, expected=expected)
    return dataclasses.replace(described, model=use_encoder(described.model, run))


def _variants(args: Args, recipe: Recipe) -> list[tuple[Location, Recipe]]:
    """Each seed, and of it each fold, in a folder of its own; the run folder itself where there is one of each."""
    folder = Location(args.out)
    if args.init is not None and not hasattr(recipe, "start"):
        given = f"--init {args.init} with {recipe.name}"
        raise UsageError("this recipe draws its first weights", given=given, expected="a recipe of brainmt")
    if not args.seeds:
        return _folds(args, recipe, folder)
    if len(set(args.seeds)) < len(args.seeds):
        raise UsageError("a seed is named twice", given=" ".join(map(str, args.seeds)))
    seeded = [(folder.child(f"seed-{seed}"), dataclasses.replace(recipe, seed=seed)) for seed in args.seeds]
    return [one for child, variant in seeded for one in _folds(args, variant, child)]


def _folds(args: Args, recipe: Recipe, folder: Location) -> list[tuple[Location, Recipe]]:
    if args.folds is None:
        return [(folder, _start(args, recipe))]
    numbers = range(recipe.split.num_folds)
    splits = [dataclasses.replace(recipe.split, fold=number) for number in numbers]
    folds = [(folder.child(f"fold-{split.fold}"), dataclasses.replace(recipe, split=split)) for split in splits]
    return [(child, _start(args, fold)) for child, fold in folds]


def _start(args: Args, recipe: Recipe) -> Recipe:
    """The recipe with the weights that it starts from, pinned."""
    if args.init is None:
        return recipe
    return dataclasses.replace(recipe, **{"start": find_start(args.init, fold=recipe.split.fold)})


def _fit(args: Args, run: Run) -> FitResult:
    def watch(batches: Iterable[RankBatch], total: int) -> Iterable[RankBatch]:
        return progress(batches, total=total, label=f"train {run.recipe.name}", unit="step")

    if read_result(run.folder) is not None:
        return fit_run(run)  # nothing is done, so what is recorded of it stays
    with _recorded(args, run) as record:
        result = fit_run(with_motion(run, args.motion_runs), watch=watch)
        record.add(result=result.to_json())
        return result


@contextlib.contextmanager
def _recorded(args: Args, run: Run) -> Iterator[RunRecord]:
    """run.json in the run folder, also where that is a bucket."""
    with contextlib.ExitStack() as stack:
        if run.folder.is_local:
            out = run.folder.path
        else:
            out = stack.enter_context(tempfile.TemporaryDirectory(prefix="neuroray-run-"))
            stack.callback(lambda: run.folder.write_bytes("run.json", Path(out, "run.json").read_bytes()))
        facts = {"recipe": run.recipe.to_json(), "recipe_fingerprint": run.recipe.fingerprint(), **run.cohort.to_json()}
        yield stack.enter_context(record_run(out, job="train", args=args, seed=run.recipe.seed, **facts))


def _extract(args: Args, recipe: Recipe) -> None:
    store = ScanStore(args.store, version=choose_version(_variants(args, recipe)[0][0], recipe))
    scan_ids = [record.scan_id for record in choose_records(store, recipe)]
    if isinstance(recipe, NeuroARRecipe):
        _require_use(args, recipe, store)
        extract_for(recipe, store, scan_ids)
        return
    described: Any = recipe  # of all recipes, those of slice models have an encoder whose features are kept
    extract_features(
        store, described.model, scan_ids, track=lambda made, total: progress(made, total=total, label="extract")
    )


def _require_use(args: Args, recipe: NeuroARRecipe, store: ScanStore) -> None:
    """Raises RecipeError, before hours are spent on tokens, where they would be for nothing.

    That is where the tokenizer is none, or none that is good enough, and where a side has no pairs of visits.
    """
    recipe.task().require_tokenizer()
    records = choose_records(store, recipe)
    for _, one in _variants(args, recipe):
        split = split_subjects(records, one.split, catalogue_version=store.version)
        pair_sides(records, split, recipe.direction, with_same=recipe.with_same)


def _plan(run: Run) -> dict[str, Any]:
    """What a run would be."""
    module = run.recipe.task().build()
    plan = training_plan(run.recipe, run.cohort)
    return {
        "run": run.folder.uri,
        "recipe": run.recipe.to_json(),
        "recipe_fingerprint": run.recipe.fingerprint(),
        "cohort": run.cohort.to_json(),
        "num_parameters": sum(p.numel() for p in module.parameters()),
        "num_trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "steps_per_epoch": plan.steps_per_epoch,
        "num_steps": plan.num_steps,
    }


def _tell_plan(run: Run) -> str:
    plan = _plan(run)
    counts = "; ".join(
        f"{side} {', '.join(f'{n} {name}' for name, n in classes.items())}"
        for side, classes in plan["cohort"]["counts"].items()
    )
    return "\n".join(
        [
            json.dumps(plan["recipe"], indent=2),
            f"run: {plan['run']}",
            f"recipe: {run.recipe.name}, fingerprint {plan['recipe_fingerprint'][:16]}",
            f"people: {counts}; left out {plan['cohort']['left_out']}",
            f"parameters: {plan['num_trained_parameters']:,} trained of {plan['num_parameters']:,}",
            f"steps: {plan['num_steps']:,} in {run.recipe.loop.num_epochs} epochs of {plan['steps_per_epoch']}",
        ]
    )


def _tell_result(result: FitResult) -> str:
    scores = ", ".join(f"{name} {value:.4f}" for name, value in result.best_scores.items())
    lead = "finished before" if result.was_finished else "trained"
    resumed = f", continued after step {result.resumed_from}" if result.resumed_from else ""
    return (
        f"{lead}: {result.num_steps} steps{resumed}; best at step {result.best_step}: {scores}; model: {result.model}"
    )

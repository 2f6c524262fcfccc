"""A run of NeuroAR's transformer judged on the pairs of visits of people that it has not seen."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuroray.platform.baselines.brain_change import BRAIN_CHANGE_LABELS
from neuroray.platform.baselines.latent_diffusion import DIFFUSION, DIFFUSION_LABEL
from neuroray.platform.evaluate.age_model_overlap import find_age_overlap
from neuroray.platform.evaluate.ageing_bench import AgeingOptions, Bench, first_visits, set_up
from neuroray.platform.evaluate.ageing_cohort import AgeingCohort, gather_held_out, gather_strangers
from neuroray.platform.evaluate.ageing_evidence import (
    MODEL,
    ROW_LABELS,
    AgeingEvaluation,
    JudgedPair,
    part_by_gap,
    weigh_rows,
)
from neuroray.platform.evaluate.ageing_findings import gather_ageing_warnings
from neuroray.platform.evaluate.ageing_models import average_models
from neuroray.platform.evaluate.ageing_pictures import Picture, choose_pairs, draw_pair
from neuroray.platform.evaluate.ageing_regions import weigh_regions
from neuroray.platform.evaluate.ageing_sweep import SweptPerson, weigh_sweep
from neuroray.platform.evaluate.evidence import Fold
from neuroray.platform.evaluate.generated_ages import weigh_read_ages
from neuroray.platform.evaluate.generated_training import ToldTwice, train_twice, weigh_downstream
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES
from neuroray.platform.evaluate.labelled_regions import open_label_maps
from neuroray.platform.evaluate.run import describe_origin, read_curves, read_folds
from neuroray.platform.evaluate.visits import name_scans
from neuroray.storage.profiles.agreement import read_model_profile

_BASELINE_LABELS = {**BRAIN_CHANGE_LABELS, DIFFUSION: DIFFUSION_LABEL}
Track = Callable[[Sequence[str]], Iterable[str]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FoldFound:
    """What one fold has given."""

    bench: Bench
    judged: list[JudgedPair]
    swept: list[SweptPerson]
    num_left_out: int
    told: ToldTwice | None


def evaluate_ageing(
    run: Path,
    *,
    store: str | None = None,
    external: bool = False,
    options: AgeingOptions | None = None,
    num_resamples: int = NUM_RESAMPLES,
    facts: Mapping[str, Any] | None = None,
    track: Track | None = None,
) -> AgeingEvaluation:
    """Judges a run, or all its folds together, on all pairs of visits of the test people that its splits recorded.

    Args:
        run: The run folder of `neuroar/transformer`; with `fold-*` folders in it, their test people are pooled.
        store: Where the scans are; where the run found them when left out.
        external: Judge everybody in the store, which is that of another cohort, by the models of all folds: figures of
            a pair are means over them, and what is told at many ages, learned downstream or drawn is the first's.
        options: What is judged.
        num_resamples: Of the bootstrap, whose seed is that of the options.
        facts: What the report is to tell of its making: `versions`, `made_at`, `git_commit`, `commands`.
        track: Shows progress over pairs and people.

    Raises:
        EvaluationError: people or families on two sides, a run that is not finished, nobody with two visits; another
            cohort that the run was trained on, or whose ages it has not seen.
        GenerationError: a model folder that tells no brains, or whose tokenizer is not its own.
        ProfileError: scans that were prepared otherwise than those of the training.
        StoreError: scans that cannot be read.
        LabelMapError: label maps on another grid, without a known label, or several of one scan.
    """
    options = options or AgeingOptions()
    folds = [name_scans(fold) for fold in read_folds(run)]
    gather = gather_strangers if external else gather_held_out
    cohort = gather(folds, store, backward=options.backward)
    for note in cohort.notes:
        logger.warning("%s", note)
    labels = None
    if options.label_maps is not None:
        labels = open_label_maps(options.label_maps, cohort.store, cohort.find_pairs())
    notes = (*cohort.notes, *_check_age_model(options, cohort))
    found = []
    for fold, pairs in zip(folds, cohort.pairs, strict=True):
        bench = set_up(fold, cohort, pairs, options, labels)
        found.append(_judge_fold(bench, options, track, pairs_only=external and bool(found)))
    provenance = describe_origin(run, folds, cohort.store, facts or {})
    if external:
        provenance |= {"protocol": "external", "num_models": len(folds), "catalogue_version_recorded": False}
    return _assemble(found, cohort, options, provenance, notes=notes, num_resamples=num_resamples)


def _check_age_model(options: AgeingOptions, cohort: AgeingCohort) -> tuple[str, ...]:
    """Says at once, and in the report, where the age model knows people who are judged."""
    if options.age_model is None:
        return ()
    judged = [record for pair in cohort.find_pairs() for record in (pair.previous, pair.target)]
    note = find_age_overlap(options.age_model, judged, cohort.store.uri)
    if note is None:
        return ()
    logger.warning("%s", note)
    return (note,)


def _judge_fold(bench: Bench, options: AgeingOptions, track: Track | None, *, pairs_only: bool) -> _FoldFound:
    follow = track or (lambda names: names)
    pairs = {f"{pair.previous.scan_id} {pair.target.scan_id}": pair for pair in bench.pairs}
    judged = [bench.judge(pairs[name]) for name in follow(list(pairs))]
    if pairs_only:
        return _FoldFound(bench=bench, judged=judged, swept=[], num_left_out=0, told=None)
    people = {record.scan_id: record for record in first_visits(bench.pairs)}
    swept = [bench.sweep(people[name]) for name in follow(list(people))]
    known = [person for person in swept if person is not None]
    return _FoldFound(
        bench=bench,
        judged=judged,
        swept=known,
        num_left_out=len(swept) - len(known),
        told=train_twice(bench, seed=options.seed) if options.downstream else None,
    )


def _assemble(
    found: Sequence[_FoldFound],
    cohort: AgeingCohort,
    options: AgeingOptions,
    provenance: Mapping[str, Any],
    *,
    notes: Sequence[str],
    num_resamples: int,
) -> AgeingEvaluation:
    judged = [one for fold in found for one in fold.judged]
    if cohort.is_external:
        judged = average_models(judged)
    bench = found[0].bench
    named = ROW_LABELS | {teller.name: _BASELINE_LABELS[teller.name] for teller in bench.tellers[1:]}
    # A fold whose training people have no two visits has no baselines.
    labels = {row: label for row, label in named.items() if all(row in one.scores for one in judged)}
    rows, draws = list(labels), {"seed": options.seed, "num_resamples": num_resamples}
    maps = bench.measure.maps(bench.read(judged[0].pair.previous))
    reader = bench.age_reader
    told = [fold.told for fold in found if fold.told is not None]
    swept, num_left_out = [one for fold in found for one in fold.swept], sum(fold.num_left_out for fold in found)
    evaluation = AgeingEvaluation(
        model_name=bench.fold.card["model_name"],
        modality=bench.fold.card["modality"],
        row_labels=labels,
        judged=tuple(judged),
        folds=tuple(_describe_fold(fold, cohort) for fold in found),
        whole=weigh_rows(judged, rows, **draws),
        by_gap={name: weigh_rows(some, rows, **draws) for name, some in part_by_gap(judged).items()},
        regions=weigh_regions(judged, rows, **draws),
        main_region=maps.main,
        region_method=maps.method,
        sweep=weigh_sweep(swept, judged, maps.main, num_left_out=num_left_out, **draws),
        read_age=None if reader is None else weigh_read_ages(judged, rows, reader.label, **draws),
        downstream=weigh_downstream(told, **draws) if told else None,
        perceptual=options.perceptual,
        labels=bench.labels,
        backward=options.backward,
        seed=options.seed,
        num_resamples=num_resamples,
        provenance=provenance,
    )
    card, people = bench.fold.card, [fold.bench.train for fold in found]
    warnings = (*notes, *gather_ageing_warnings(evaluation, card, people))
    pictures = _draw_pictures(found[:1] if cohort.is_external else found) if options.pictures else ()
    return dataclasses.replace(evaluation, warnings=warnings, pictures=pictures)


def _draw_pictures(found: Sequence[_FoldFound]) -> tuple[Picture, ...]:
    chosen = choose_pairs([one for fold in found for one in fold.judged])
    benches = {fold.bench.fold.index: fold.bench for fold in found}
    names = ("The pair with the longest gap", "The pair of which the model's error is the median")
    return tuple(draw_pair(benches[one.fold], one, which=name) for one, name in zip(chosen, names, strict=False))


def _describe_fold(found: _FoldFound, cohort: AgeingCohort) -> Fold:
    fold, judged = found.bench.fold, found.judged
    known = {side: cohort.select_side(fold, side) for side in ("train", "val")}
    counts = {"train": len(fold.split.train), "val": len(fold.split.val)}
    # People are counted by the records that are there; where none are, scans stand for them.
    people = {side: len({record.subject for record in some}) or counts[side] for side, some in known.items()}
    test = {record.scan_id: record for pair in found.bench.pairs for record in (pair.previous, pair.target)}
    if not cohort.is_external:
        test = {scan_id: cohort.records[scan_id] for scan_id in fold.split.test}
    counts["test"], people["test"] = len(test), len({record.subject for record in test.values()})
    means = {name: float(np.mean([one.scores[MODEL][name] for one in judged])) for name in ("psnr_brain", "ssim_brain")}
    return Fold(
        index=fold.index,
        counts={side: {"all": number} for side, number in counts.items()},
        num_subjects=people,
        curves=read_curves(fold, score="error_to_copy"),
        metrics=means,
        facts={
            "weights_sha256": fold.card["weights"]["sha256"],
            "tokenizer_sha256": fold.card["tokenizer"]["sha256"],
            "profile": read_model_profile(fold.card).name,
            "profile_sha256": read_model_profile(fold.card).sha256,
            "split_sha256": fold.split_sha256,
            "recipe": fold.recipe.get("name"),
            "recipe_seed": fold.recipe.get("seed"),
        },
    )

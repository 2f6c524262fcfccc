"""A tokenizer judged on scans that it has not seen: how near its reconstructions are, and how its codebook is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroray.platform.data.tokens import Tokenizer, load_tokenizer
from neuroray.platform.evaluate.ageing_evidence import estimate_means
from neuroray.platform.evaluate.ageing_findings import LEAST_PSNR_DB
from neuroray.platform.evaluate.ageing_pictures import Picture
from neuroray.platform.evaluate.evidence import Fold
from neuroray.platform.evaluate.image_quality import IMAGE_METRICS, compare_volumes
from neuroray.platform.evaluate.intervals import NUM_RESAMPLES, Estimate, draw_resamples
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.evaluate.perceptual import PERCEPTUAL, PERCEPTUAL_METRIC, PerceptualMeter, keep_measured
from neuroray.platform.evaluate.run import (
    RunFold,
    check_people,
    describe_origin,
    open_run_store,
    read_curves,
    read_folds,
)
from neuroray.platform.evaluate.visits import Visit, VisitReader, place_grid
from neuroray.platform.generate.pictures import PictureRow, draw_strip, find_shown, to_dark_png
from neuroray.platform.models.neuroar.quantiser import measure_usage
from neuroray.storage.profiles.agreement import read_model_profile
from neuroray.storage.records import ScanRecord
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

SCAN_METRICS = IMAGE_METRICS | {PERCEPTUAL: PERCEPTUAL_METRIC}
Track = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleUsage:
    """How one scale uses the codebook over some scans.

    Attributes:
        num_positions: Of one scan.
        used: Share of the codebook that some position had.
        perplexity: exp of the entropy: so many codes, used equally, would be as hard to guess.
        most: The perplexity that as many positions of as many scans allow.
    """

    num_positions: int
    used: float
    perplexity: float
    most: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookUsage:
    """How the codebook is used over some scans.

    Attributes:
        num_scans: How many.
        num_codes: There are.
        used: Share of them that some position of some scale had.
        scales: The coarsest first.
    """

    num_scans: int
    num_codes: int
    used: float
    scales: tuple[ScaleUsage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedScan:
    """One held-out scan and its reconstruction."""

    fold: int
    record: ScanRecord
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerEvaluation:
    """All that the report tells.

    Attributes:
        metrics: The mean over held-out scans, with intervals over people.
        usage: By side: `train` and `test` of the first fold.
        picture: A scan, its reconstruction and the difference.
        perceptual: What measured the perceptual distance; None where it was not.
    """

    modality: str
    judged: tuple[JudgedScan, ...]
    folds: tuple[Fold, ...]
    metrics: Mapping[str, Estimate]
    usage: Mapping[str, CodebookUsage]
    seed: int
    num_resamples: int
    provenance: Mapping[str, Any]
    picture: Picture | None = None
    perceptual: PerceptualMeter | None = None
    warnings: tuple[str, ...] = ()

    @property
    def num_people(self) -> int:
        """People judged, each counted once."""
        return len({one.record.subject for one in self.judged})


def evaluate_tokenizer(
    run: Path,
    *,
    store: str | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    device: str = "cpu",
    with_picture: bool = True,
    perceptual: PerceptualMeter | None = None,
    facts: Mapping[str, Any] | None = None,
    track: Track | None = None,
) -> TokenizerEvaluation:
    """Judges a run of `neuroar/vqvae`, or all its folds together, on the test people that its splits recorded.

    Args:
        run: The run folder.
        store: Where the scans are; where the run found them when left out.
        seed: Of the bootstrap.
        num_resamples: Of the bootstrap.
        device: Where to compute.
        with_picture: Draw one scan beside its reconstruction.
        perceptual: Measures the perceptual distance; None: it is left out.
        facts: What the report is to tell of its making.
        track: Shows progress over scans.

    Raises:
        EvaluationError: people or families on two sides, or a run that is not finished.
        ProfileError: scans that were prepared otherwise than those of the training.
        StoreError: scans that cannot be read.
    """
    folds = read_folds(run)
    opened = open_run_store(folds[0], store)
    records = {record.scan_id: record for record in opened.records()}
    follow = track or (lambda names: names)
    judged: list[JudgedScan] = []
    described: list[Fold] = []
    for fold in folds:
        check_people(fold, records)
        tokenizer, read = _open(fold, opened, device)
        scans = follow(list(fold.split.test))
        found = [_judge(fold.index, read(records[name]), tokenizer, perceptual) for name in scans]
        judged += found
        described.append(_describe_fold(fold, records, found))
    tokenizer, read = _open(folds[0], opened, device)
    usage = {}
    for side, names in (("train", folds[0].split.train), ("test", folds[0].split.test)):
        usage[side] = tell_usage([read(records[name]).tokens for name in follow(list(names))], tokenizer)
    measured = keep_measured(SCAN_METRICS, (one.scores for one in judged))
    columns = {name: np.array([one.scores[name] for one in judged]) for name in measured}
    groups = [name_group(one.record.subject, one.record.family_id) for one in judged]
    resamples = draw_resamples(groups, ["all"] * len(groups), seed=seed, num_resamples=num_resamples)
    metrics = estimate_means(columns, resamples)
    first = [one for one in judged if one.fold == folds[0].index]
    return TokenizerEvaluation(
        modality=folds[0].card["modality"],
        judged=tuple(judged),
        folds=tuple(described),
        metrics=metrics,
        usage=usage,
        seed=seed,
        num_resamples=num_resamples,
        provenance=describe_origin(run, folds, opened, facts or {}),
        picture=_draw(read, tokenizer, first) if with_picture else None,
        perceptual=perceptual,
        warnings=_warn(metrics, usage),
    )


def _open(fold: RunFold, store: ScanStore, device: str) -> tuple[Tokenizer, VisitReader]:
    found = load_tokenizer(str(fold.path))
    tokenizer = dataclasses.replace(found, model=found.model.to(device))
    return tokenizer, VisitReader(store, tokenizer.model, tokenizer.grid)


def tell_usage(tokens: Sequence[torch.Tensor], tokenizer: Tokenizer) -> CodebookUsage:
    """Over all these scans together, for what few scans hold bounds what can be found."""
    sizes, num_codes = tokenizer.scale_sizes, tokenizer.model.config.quantiser.num_codes
    whole, used, perplexities = measure_usage(torch.cat(list(tokens)).cpu(), sizes, num_codes)
    scales = [
        ScaleUsage(num_positions=size, used=share, perplexity=value, most=min(num_codes, size * len(tokens)))
        for size, share, value in zip(sizes, used, perplexities, strict=True)
    ]
    return CodebookUsage(num_scans=len(tokens), num_codes=num_codes, used=whole, scales=tuple(scales))


def _rebuild(visit: Visit, tokenizer: Tokenizer) -> np.ndarray:
    return tokenizer.model.decode(visit.tokens, tokenizer.grid)[0].cpu().numpy()


def _judge(fold_index: int, visit: Visit, tokenizer: Tokenizer, perceptual: PerceptualMeter | None) -> JudgedScan:
    made = _rebuild(visit, tokenizer)
    scores = compare_volumes(made, visit.volume, visit.brain)
    if perceptual is not None:
        scores[PERCEPTUAL] = perceptual.measure(made, visit.volume, visit.brain)
    return JudgedScan(fold=fold_index, record=visit.record, scores=scores)


def _draw(read: VisitReader, tokenizer: Tokenizer, judged: Sequence[JudgedScan]) -> Picture:
    """The scan with the median error."""
    ordered = sorted(judged, key=lambda one: (one.scores["psnr_brain"], one.record.scan_id))
    one = ordered[len(ordered) // 2]
    visit = read(one.record)
    scan, made = (
        np.where(visit.brain, (volume + 1) / 2, 0).astype(np.float32)
        for volume in (visit.volume, _rebuild(visit, tokenizer))
    )
    seen = Scan(voxels=visit.volume, affine=place_grid(visit.record, tokenizer.grid), flags=visit.record.flags)
    rows = [
        PictureRow(label="scan", values=scan, change=None),
        PictureRow(label="through the\ntokenizer", values=made, change=made - scan),
    ]
    shown = find_shown(seen, scan, visit.brain)
    return Picture(
        png=to_dark_png(draw_strip(seen, rows, shown, notes="Change: reconstruction minus scan.", units="from 0 to 1")),
        title=f"The scan with the median error is drawn with {one.scores['psnr_brain']:.1f} dB in the brain",
        caption="Axial planes of the brain on the model's grid; the person's left is on the left.",
    )


def _describe_fold(fold: RunFold, records: Mapping[str, ScanRecord], judged: Sequence[JudgedScan]) -> Fold:
    sides = {side: fold.split.side(side) for side in ("train", "val", "test")}
    return Fold(
        index=fold.index,
        counts={side: {"all": len(scan_ids)} for side, scan_ids in sides.items()},
        num_subjects={side: len({records[one].subject for one in scan_ids}) for side, scan_ids in sides.items()},
        curves=read_curves(fold, score="psnr"),
        metrics={name: float(np.nanmean([one.scores[name] for one in judged])) for name in IMAGE_METRICS},
        facts={
            "weights_sha256": fold.card["weights"]["sha256"],
            "profile": read_model_profile(fold.card).name,
            "profile_sha256": read_model_profile(fold.card).sha256,
            "split_sha256": fold.split_sha256,
            "recipe": fold.recipe.get("name"),
            "recipe_seed": fold.recipe.get("seed"),
        },
    )


def _warn(metrics: Mapping[str, Estimate], usage: Mapping[str, CodebookUsage]) -> tuple[str, ...]:
    found = []
    reached = metrics["psnr_brain"].value
    if reached < LEAST_PSNR_DB:
        found.append(f"{reached:.1f} dB in the brain is less than the {LEAST_PSNR_DB:g} worth a transformer.")
    poor = [
        f"{number} ({one.perplexity:.0f} of {one.most})"
        for number, one in enumerate(usage["train"].scales, start=1)
        if one.perplexity < one.most / 2
    ]
    if poor:
        found.append(
            f"Over the training scans, perplexity at scale {', '.join(poor)} is less than half of what its positions "
            "allow."
        )
    if usage["train"].used < 0.8:
        found.append(f"The training scans use {usage['train'].used:.0%} of the codebook.")
    return tuple(found)

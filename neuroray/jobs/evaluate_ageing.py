"""`neuroray evaluate` of a run of NeuroAR: its transformer on pairs of visits, its tokenizer on scans."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroray.jobs.logs import progress
from neuroray.platform.evaluate.ageing_bench import AgeingOptions
from neuroray.platform.evaluate.ageing_evidence import MODEL, PAIR_METRICS, AgeingEvaluation
from neuroray.platform.evaluate.ageing_findings import tell_change, tell_structures, tell_sweep
from neuroray.platform.evaluate.ageing_protocol import evaluate_ageing
from neuroray.platform.evaluate.ageing_report import describe_ageing, write_ageing_report
from neuroray.platform.evaluate.intervals import Estimate
from neuroray.platform.evaluate.metrics import EvaluationError
from neuroray.platform.evaluate.perceptual import PERCEPTUAL, PerceptualMeter, open_perceptual_meter, tell_perceptual
from neuroray.platform.evaluate.tokenizer_protocol import SCAN_METRICS, evaluate_tokenizer
from neuroray.platform.evaluate.tokenizer_report import describe_tokenizer, write_tokenizer_report

if TYPE_CHECKING:
    from neuroray.jobs.evaluate import Args

TRANSFORMER, TOKENIZER = "neuroar", "neuroar_vqvae"
_TOLD = ("psnr_brain", "ssim_brain", "l1_brain", "changed_token_accuracy", PERCEPTUAL)
_OF_PAIRS = ("backward", "age_model", "diffusion", "downstream", "perceptual_weights", "label_maps")
_OF_TOKENIZERS = ("perceptual_weights",)


def find_ageing_kind(run: Path) -> str | None:
    """`neuroar` or `neuroar_vqvae` where the run, or its first fold, is of one; else None."""
    name = _find_model_name(run, "fold-*")
    return name if name in (TRANSFORMER, TOKENIZER) else None


def evaluate_ageing_run(args: Args, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Judges a transformer, or a tokenizer, and writes its report.

    Raises:
        EvaluationError: options that such a run has not, besides what judging raises.
    """
    if args.target is not None:
        raise EvaluationError("a run that tells brains has no target", given=f"--target {args.target}")
    if find_ageing_kind(Path(args.run)) == TOKENIZER:
        if args.external:
            raise EvaluationError(
                "a tokenizer is judged on its own split",
                given="--external",
                fix="judge a transformer of it on the other cohort: the row called ceiling is the tokenizer's",
            )
        refuse_ageing_options(args, allowed=_OF_TOKENIZERS)
        return _judge_tokenizer(args, out, facts)
    return _judge_transformer(args, out, facts)


def refuse_ageing_options(args: Args, *, allowed: Collection[str] = ()) -> None:
    """Makes sure that nothing was asked for that a run of another kind cannot answer.

    Args:
        args: What was asked for.
        allowed: Options that may stand.

    Raises:
        EvaluationError: an option of a run of `neuroar/transformer`.
    """
    given = [f"--{name.replace('_', '-')}" for name in _OF_PAIRS if name not in allowed and getattr(args, name)]
    kind = _find_model_name(Path(args.run), "fold-*", "seed-*")
    # Where there is no run, that is what is to be said of it.
    if given and kind is not None:
        raise EvaluationError(
            f"a run of {kind} is not judged by such options",
            given=" ".join(given),
            expected="a run of neuroar/transformer",
            fix="leave them out",
        )


def _find_model_name(run: Path, *parts: str) -> str | None:
    """What kind of model it, or the first of its parts, is of; None where there is no finished run."""
    for folder in (run, *(path for part in parts for path in sorted(run.glob(part)))):
        card = folder / "model" / "config.json"
        if card.is_file():
            return json.loads(card.read_text()).get("model_name")
    return None


def _open_perceptual(args: Args) -> PerceptualMeter | None:
    if args.perceptual_weights is None:
        return None
    return open_perceptual_meter(args.perceptual_weights, network=args.perceptual_network, device=args.device)


def _judge_tokenizer(args: Args, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    found = evaluate_tokenizer(
        Path(args.run),
        store=args.store,
        seed=args.seed,
        num_resamples=args.num_resamples,
        device=args.device,
        with_picture=not args.skip_example,
        perceptual=_open_perceptual(args),
        facts=facts,
        track=lambda names: progress(names, label="evaluate"),
    )
    paths = write_tokenizer_report(found, out)
    described = describe_tokenizer(found)
    lines = [f"{len(found.judged)} scans of {found.num_people} held-out people"]
    for name, one in found.metrics.items():
        metric = SCAN_METRICS[name]
        lines.append(f"  {metric.label:<22}{one.value:.4g} {metric.unit}  ({one.low:.4g} to {one.high:.4g})")
    for side, usage in found.usage.items():
        scales = ", ".join(f"{one.perplexity:.0f} of {one.most}" for one in usage.scales)
        lines.append(f"  {side}: {usage.used:.0%} of {usage.num_codes} codes in use; perplexity by scale: {scales}")
    lines += [f"  {tell_perceptual(None)}"] if found.perceptual is None else []
    lines += [f"  note: {warning}" for warning in found.warnings]
    return {
        **{name: described[name] for name in ("num_people", "num_scans", "metrics", "usage", "warnings")},
        **{name.replace(".", "_"): str(path) for name, path in paths.items()},
        "text": "\n".join([*lines, f"written to {paths['report.html']}"]),
    }


def _judge_transformer(args: Args, out: Path, facts: dict[str, Any]) -> dict[str, Any]:
    found = evaluate_ageing(
        Path(args.run),
        store=args.store,
        external=args.external,
        options=AgeingOptions(
            backward=args.backward,
            diffusion=args.diffusion,
            age_model=args.age_model,
            downstream=args.downstream,
            perceptual=_open_perceptual(args),
            label_maps=args.label_maps,
            pictures=not args.skip_example,
            device=args.device,
            seed=args.seed,
        ),
        num_resamples=args.num_resamples,
        facts=facts,
        track=lambda names: progress(names, label="evaluate"),
    )
    paths = write_ageing_report(found, out)
    described = describe_ageing(found)
    answer = {
        "num_people": found.num_people,
        "num_pairs": len(found.judged),
        **{name: described[name] for name in ("whole", "by_gap", "regions", "sweep", "read_age", "downstream")},
        "warnings": list(found.warnings),
        **{name.replace(".", "_"): str(path) for name, path in paths.items()},
    }
    return answer | {"text": _tell(found, paths)}


def _tell(found: AgeingEvaluation, paths: dict[str, Path]) -> str:
    lines = [f"{len(found.judged)} pairs of visits of {found.num_people} {found.who}"]
    told = [name for name in _TOLD if name in found.metrics]
    lines.append("  " + " " * 84 + "".join(f"{PAIR_METRICS[name].label:>24}" for name in told))
    for row, label in found.row_labels.items():
        values = "".join(f"{_tell_value(found.whole.metrics[row][name]):>24}" for name in told)
        lines.append(f"  {label:<84}{values}")
    gain = found.whole.gains[MODEL]["l1_brain"]
    lines.append(f"  L1 in the brain, model less copy: {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})")
    lines += [f"  {text}" for text in (tell_change(found), *tell_structures(found), tell_sweep(found))]
    lines += [f"  {tell_perceptual(None)}"] if found.perceptual is None else []
    lines += [f"  note: {warning}" for warning in found.warnings]
    return "\n".join([*lines, f"written to {paths['report.html']}"])


def _tell_value(found: Estimate) -> str:
    return "\N{EN DASH}" if found.value != found.value else f"{found.value:.4g}"

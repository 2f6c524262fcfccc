"""`neuroray extract`: slice features, or tokens, of a store's scans, made once and kept beside the scans."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from neuroray.config import ConfigError
from neuroray.jobs.logs import progress
from neuroray.jobs.ray_session import ensure_ray
from neuroray.jobs.recipes import load_recipe
from neuroray.jobs.run_record import record_run
from neuroray.platform.data.extract import Extraction, SliceModelConfig, extract_features
from neuroray.platform.data.tokens import TokenActors, extract_tokens, load_tokenizer
from neuroray.platform.models import MODELS
from neuroray.platform.train.slice_features import use_encoder
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe, use_tokenizer
from neuroray.storage.store import ScanStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Compute and cache slice features. Scans that have them already cost nothing: repeat a run that was stopped."""

    store: Annotated[str, tyro.conf.Positional]
    """A store: a folder or s3://bucket/prefix."""

    recipe: str = "dinoatten3d:base"
    """The recipe whose encoder is wanted, and whose kind of scan."""

    model: str | None = None
    """A model's config.json in place of the recipe's model."""

    encoder: str | None = None
    """The run of a first stage: brainrotvit:stage1, whose encoder is taken in place of the recipe's; neuroar/vqvae,
    whose tokens are made (recipe neuroar/transformer)."""

    modality: str | None = None
    """The kind of scan, in place of the recipe's."""

    version: int | None = None
    """The catalogue version to read; the newest when not given."""

    workers: int = 0
    """Actors of Ray; 0 works in this process, without Ray."""

    num_cpus: float = 1.0
    """Logical CPUs, and threads, of each actor."""

    num_gpus: float = 0.0
    """GPUs of each actor; in process, 1 uses the GPU."""

    out: str | None = None
    """A folder for run.json; none is written when not given."""

    json: bool = False
    """Answer as JSON."""


def run(args: Args) -> dict[str, Any]:
    """Makes what is missing."""
    if args.out is None:
        return _extract(args)
    with record_run(args.out, job="extract", args=args) as record:
        answer = _extract(args)
        record.add(**{name: value for name, value in answer.items() if name != "text"})
        return answer


def extract_for(
    recipe: NeuroARRecipe,
    store: ScanStore,
    scan_ids: list[str],
    *,
    device: str = "cpu",
    actors: TokenActors | None = None,
) -> dict[str, Any]:
    """Makes the tokens of scans that a recipe's tokenizer has not made yet.

    Raises:
        ConfigError: the recipe has no tokenizer.
    """
    if recipe.tokenizer is None:
        raise ConfigError("tokens are made by a tokenizer", given=recipe.name, fix="--encoder RUN of neuroar/vqvae")
    tokenizer = load_tokenizer(recipe.tokenizer.folder)
    made = extract_tokens(
        store,
        tokenizer,
        scan_ids,
        device=device,
        actors=actors,
        track=lambda made, total: progress(made, total=total, label="extract"),
    )
    present = len(scan_ids) - len(made)
    return {
        "store": store.uri,
        "modality": recipe.data.modality,
        "fingerprint": tokenizer.fingerprint,
        "extracted": made,
        "num_extracted": len(made),
        "num_present": present,
        "num_tokens": sum(tokenizer.scale_sizes),
        "text": f"{store.uri}: tokens of {len(made)} scans made, {present} were there already; "
        f"{sum(tokenizer.scale_sizes)} tokens a scan, tokenizer {tokenizer.fingerprint[:16]}",
    }


def _extract(args: Args) -> dict[str, Any]:
    recipe = load_recipe(args.recipe)
    if isinstance(recipe, NeuroARRecipe):
        return _extract_tokens(args, recipe)
    config, modality = _choose_model(args)
    store = ScanStore(args.store, version=args.version)
    scan_ids = [record.scan_id for record in store.records() if record.modality == modality]
    with contextlib.ExitStack() as stack:
        if args.workers > 0:
            stack.enter_context(ensure_ray(num_cpus=math.ceil(args.workers * args.num_cpus)))
        done = extract_features(
            store,
            config,
            scan_ids,
            num_workers=args.workers,
            num_cpus=args.num_cpus,
            num_gpus=args.num_gpus,
            track=lambda made, total: progress(made, total=total, label="extract"),
        )
    answer = {"store": store.uri, "modality": modality, "num_extracted": len(done.extracted)}
    return answer | dataclasses.asdict(done) | {"text": _tell(store.uri, modality, done)}


def _extract_tokens(args: Args, recipe: NeuroARRecipe) -> dict[str, Any]:
    if args.model is not None:
        raise ConfigError("tokens are made by a trained tokenizer", given=f"--model {args.model}", fix="--encoder RUN")
    if args.encoder is not None:
        recipe = use_tokenizer(recipe, args.encoder)
    store, modality = ScanStore(args.store, version=args.version), args.modality or recipe.data.modality
    scan_ids = [record.scan_id for record in store.records() if record.modality == modality]
    if args.workers == 0:
        return extract_for(recipe, store, scan_ids, device="cuda" if args.num_gpus > 0 else "cpu")
    actors = TokenActors(number=args.workers, num_cpus=args.num_cpus, num_gpus=args.num_gpus)
    with ensure_ray(num_cpus=math.ceil(args.workers * args.num_cpus)):
        return extract_for(recipe, store, scan_ids, actors=actors)


def _choose_model(args: Args) -> tuple[SliceModelConfig, str]:
    recipe: Any = load_recipe(args.recipe)
    modality = args.modality or recipe.data.modality
    if not hasattr(recipe.model, "slices"):
        raise ConfigError(
            "only models of slices have features to extract",
            given=args.recipe,
            expected="a recipe of a model that looks at slices, as dinoatten3d:smoke",
            fix=f"train it at once: neuroray train {args.recipe} STORE",
        )
    if args.model is None:
        return recipe.model if args.encoder is None else use_encoder(recipe.model, args.encoder), modality
    try:
        card = json.loads(Path(args.model).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError("the model's config.json cannot be read", given=f"{args.model}: {error}") from error
    config: Any = MODELS[recipe.model_name].from_json(card.get("model", card))
    return config, modality


def _tell(store: str, modality: str, done: Extraction) -> str:
    return (
        f"{store}: {len(done.extracted)} {modality} scans encoded, {done.num_present} were there already; "
        f"{done.num_slices} slices of {done.num_channels} channels, encoder {done.fingerprint[:16]}"
    )

"""Where a run's first weights come from when they are another run's: found, pinned by digest, checked, loaded."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from neuroray.config import Config, ConfigError, without_effect
from neuroray.platform.data.splits import Split
from neuroray.platform.data.standardise import StandardiseConfig, read_standard
from neuroray.platform.models.brainmt import BrainMT, BrainMTConfig, MaskedBrainMTConfig
from neuroray.platform.models.brainmt.embedding import TokenEmbedding
from neuroray.platform.train.recipe import RecipeError
from neuroray.platform.train.run_folder import CONFIG_FILE, MODEL, SPLITS_FILE, read_json
from neuroray.platform.train.task import Cohort
from neuroray.storage.checkpoint import CONFIG, load_weights
from neuroray.storage.faults import StoreError
from neuroray.storage.locations import Location
from neuroray.storage.profiles.agreement import read_model_profile

logger = logging.getLogger(__name__)

# What two encoders must share for the weights of one to be the other's; all else is the head's, or a table that is
# interpolated, or has no weights.
_ARCHITECTURE: Final = (
    "width",
    "frame_encoder",
    "mamba_depth",
    "attention_depth",
    "bidirectional",
    "halve_directions",
    "state_size",
    "conv_taps",
    "expansion",
    "num_heads",
    "mlp_ratio",
    "shared_mlp",
)
_HEAD: Final = ("head.", "final_norm.")
_PRETRAINED: Final = "brainmt_masked"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartConfig(Config):
    """The run that the first weights are taken from, pinned when this one starts.

    Attributes:
        model: Its model folder; it must stay there until this run is done.
        weights_sha256: Digest of its weights, which decides what this run learns; the place does not.
        recipe: Name of its recipe.
        recipe_fingerprint: Of all that affects its result.
    """

    model: str = without_effect("")
    weights_sha256: str
    recipe: str = without_effect("")
    recipe_fingerprint: str = without_effect("")


def find_start(run: str, *, fold: int = 0) -> StartConfig:
    """Pins the model of a finished run: of `RUN/fold-K` where there are folds, else of RUN, or a model folder itself.

    Raises:
        RecipeError: there is no finished model.
    """
    folder = Location(run)
    of_fold = folder.child(f"fold-{fold}")
    folder = of_fold if read_json(of_fold, CONFIG_FILE) is not None else folder
    for place in (folder.child(MODEL), folder):
        card = read_json(place, CONFIG)
        if card is not None and {"weights", "training", "model"} <= card.keys():
            return StartConfig(
                model=place.uri,
                weights_sha256=card["weights"]["sha256"],
                recipe=card["training"].get("recipe", ""),
                recipe_fingerprint=card["training"].get("recipe_fingerprint", ""),
            )
    is_run = read_json(folder, CONFIG_FILE) is not None
    raise RecipeError(
        "the run to start from has no model yet" if is_run else "there is no run to start from",
        given=folder.uri,
        expected="a finished run of neuroray train, or the model folder in it",
        fix="let it train to its end: the same command again continues it" if is_run else "check --init",
    )


def load_encoder(module: BrainMT, start: StartConfig) -> None:
    """Gives the module the encoder's weights; its head keeps its own. Tables of other sizes are interpolated.

    Raises:
        RecipeError: the weights are no longer those that were pinned, or of another model.
    """
    card = _read_card(start)
    source = _read_encoder_config(card, start)
    _require_same_architecture(source, module.config, start)
    try:
        state, _, _ = load_weights(start.model)
    except StoreError as fault:
        fix = "a run needs the one that it starts from until it is done"
        raise RecipeError("the weights to start from cannot be read", given=fault, fix=fix) from fault
    if card["model_name"] == _PRETRAINED:
        prefix = "encoder."
        encoder = {name.removeprefix(prefix): one for name, one in state.items() if name.startswith(prefix)}
    else:
        encoder = {name: one for name, one in state.items() if not name.startswith(_HEAD)}
    encoder |= _fit_tables(encoder, source, module)
    missing, foreign = module.load_state_dict(encoder, strict=False)
    missing = [name for name in missing if not name.startswith(_HEAD)]
    if missing or foreign:
        given = f"missing {', '.join(missing) or 'nothing'}; unknown {', '.join(foreign) or 'nothing'}"
        raise RecipeError(f"{start.model} does not hold the weights of this encoder", given=given)
    logger.info("the encoder starts from %s (%s)", start.model, start.recipe or "a run")


def join_start(cohort: Cohort, start: StartConfig, config: BrainMTConfig, *, standard: StandardiseConfig) -> Cohort:
    """The cohort of a run that starts from another, checked and with what is to be known of that on its card.

    A test person whom the pretraining saw, though without a label, is no stranger to the encoder: how many there are
    is counted, said in the log, and recorded.

    Raises:
        RecipeError: the weights cannot be read, or are of another model.
    """
    card = _read_card(start)
    _require_same_architecture(_read_encoder_config(card, start), config, start)
    if read_model_profile(card) != cohort.profile:
        logger.warning("the scans were prepared otherwise than those of the run to start from")
    if read_standard(card).by != standard.by:
        by = read_standard(card).by
        logger.warning("the run to start from saw scores by %s, this one by %s: --standardise.by", by, standard.by)
    seen = _count_seen(start, cohort.split.test)
    if seen is None:
        logger.warning("the run to start from does not say whom it has seen: test people may be among them")
    elif seen:
        num_test = len(cohort.split.test)
        logger.warning(
            "%d of %d test scans were trained or selected on by the run to start from: give both the same --split.*",
            seen,
            num_test,
        )
    return dataclasses.replace(cohort, facts={**cohort.facts, "num_test_seen_before": seen})


def _count_seen(start: StartConfig, scan_ids: Iterable[str]) -> int | None:
    """How many of these scans the earlier run trained or selected on; None where it does not say."""
    run, _, name = start.model.rstrip("/").rpartition("/")
    data = read_json(Location(run), SPLITS_FILE) if name == MODEL else None
    if data is None:
        return None
    split = Split.from_json(data)
    return len({*split.train, *split.val} & set(scan_ids))


def _read_card(start: StartConfig) -> Mapping[str, Any]:
    """The card of the model to start from, which must be the one that was pinned."""
    card = read_json(Location(start.model), CONFIG)
    if card is None:
        fix = "a run needs the one that it starts from until it is done"
        raise RecipeError("the model to start from is gone", given=start.model, fix=fix)
    found = str(card.get("weights", {}).get("sha256"))
    if found != start.weights_sha256:
        raise RecipeError(
            f"the weights in {start.model} are not those that this run started from",
            given=found[:16],
            expected=start.weights_sha256[:16],
            fix="bring the earlier ones back, or choose another --out",
        )
    return card


def _read_encoder_config(card: Mapping[str, Any], start: StartConfig) -> BrainMTConfig:
    """Of a pretraining, or of a run that was trained on labels."""
    kind = card.get("model_name")
    try:
        if kind == _PRETRAINED:
            return MaskedBrainMTConfig.from_json(card["model"]).encoder
        if kind == "brainmt":
            return BrainMTConfig.from_json(card["model"])
    except ConfigError as fault:
        raise RecipeError(f"the model in {start.model} cannot be read", given=fault) from fault
    expected = f"{_PRETRAINED} (brainmt:pretrain), or brainmt"
    raise RecipeError("BrainMT cannot start from this model", given=f"{kind} in {start.model}", expected=expected)


def _require_same_architecture(source: BrainMTConfig, wanted: BrainMTConfig, start: StartConfig) -> None:
    differing = [name for name in _ARCHITECTURE if getattr(source, name) != getattr(wanted, name)]
    if not differing:
        return
    raise RecipeError(
        "the encoder to start from is another than this recipe's",
        given="; ".join(f"{name} {getattr(wanted, name)} in this recipe" for name in differing),
        expected="; ".join(f"{name} {getattr(source, name)} as in {start.model}" for name in differing),
        fix=" ".join(f"--model.{name.replace('_', '-')} {getattr(source, name)}" for name in differing),
    )


def _fit_tables(encoder: Mapping[str, Tensor], source: BrainMTConfig, module: BrainMT) -> dict[str, Tensor]:
    """The tables of places and times for this module's grid and frames; the log says where they are interpolated."""
    sizes = module.config.token_grid, module.config.num_frames
    if sizes == (source.token_grid, source.num_frames):
        return {}
    held, prefix = TokenEmbedding(source), "embedding."
    with torch.no_grad():
        own = {name.removeprefix(prefix): one for name, one in encoder.items() if name.startswith(prefix)}
        held.load_state_dict(own)
        space, time = held.resize(*sizes)
    return {"embedding.space": space.clone(), "embedding.time": time.clone()}

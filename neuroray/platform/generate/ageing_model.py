"""A trained NeuroAR with its tokenizer, out of one folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from neuroray.config import ConfigError
from neuroray.platform.data.brain_place import BrainPlace
from neuroray.platform.data.brain_volumes import Grid
from neuroray.platform.data.older_weights import load_state
from neuroray.platform.generate.ages import GenerationError
from neuroray.platform.models.neuroar import NeuroARConfig, VQVAEConfig
from neuroray.platform.models.neuroar.generate import SamplingConfig, generate_tokens
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer
from neuroray.platform.models.neuroar.vqvae import VQVAE
from neuroray.storage.checkpoint import load_weights
from neuroray.storage.faults import MissingObjectError
from neuroray.storage.locations import Location

_NAME: Final = "neuroar"
CARD_FORMATS: Final = (1,)
"""Of its `config.json`, those that this version reads."""
_HOW = "neuroray train neuroar/transformer:base --store STORE --out RUN --encoder TOKENIZER"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeingModel:
    """A transformer and the tokenizer that it was trained with.

    Attributes:
        transformer: In eval mode.
        tokenizer: In eval mode, on the same device.
        grid: Of the volumes that it was trained on.
        card: `config.json` of its folder.
        device: Where it computes.
        slab: Places along x that the decoder computes at once; None: all (`VQVAE.decode_latent`).
    """

    transformer: NeuroARTransformer
    tokenizer: VQVAE
    grid: Grid
    card: Mapping[str, Any]
    device: torch.device
    slab: int | None = None

    @property
    def place(self) -> BrainPlace | None:
        """Where the brains of its training lay; None for one from before that was kept."""
        described = self.card.get("brain_place")
        return None if described is None else BrainPlace.from_json(described)

    def probe(self) -> dict[str, torch.Tensor]:
        """What it tells of a volume made up by itself, the same everywhere: two copies must agree bit for bit."""
        ball = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in self.grid), indexing="ij")).norm(dim=0)
        volume = torch.where(ball < 0.8, torch.cos(7 * ball), -1.0)[None].to(self.device)
        low, high = self.card["age_range_years"]
        ages = torch.tensor([[low, low], [low, high]], dtype=torch.float32, device=self.device)
        tokens = self.tokenizer.encode(volume)
        made = generate_tokens(self.transformer, self.tokenizer.quantiser, tokens, ages)
        return {"tokens": tokens, "generated": made, "volume": self.tokenizer.decode(made[1:], self.grid)}

    def complete(self, sampling: SamplingConfig) -> SamplingConfig:
        """With what its recipe says where nothing else is asked for."""
        return sampling.complete(**self.card.get("sampling", {"decode": "codes", "detail": "none"}))

    def to_json(self) -> dict[str, Any]:
        """What is told of it."""
        profile = self.card["profile"]
        return {
            "model_name": self.card["model_name"],
            "tokenizer_sha256": self.card["tokenizer"]["sha256"],
            "grid_shape": list(self.grid),
            "age_range_years": self.card["age_range_years"],
            "gap_range_years": self.card["gap_range_years"],
            "profile": profile["options"]["name"],
            "profile_sha256": profile["sha256"],
        }


def is_ageing_model(card: Mapping[str, Any]) -> bool:
    """Whether this `config.json` is that of a NeuroAR with its tokenizer."""
    return card.get("model_name") == _NAME


def load_ageing_model(run: str, *, device: str = "cpu", slab: int | None = None) -> AgeingModel:
    """The model of a finished run, or of a model folder.

    Args:
        run: Its folder.
        device: Where it is to compute.
        slab: See `AgeingModel`.

    Raises:
        GenerationError: a slab of nothing; there is no model, or one of another kind; its tokenizer is missing, or is
            not the transformer's.
        StoreError: it is damaged.
    """
    if slab is not None and slab < 1:
        raise GenerationError("a slab has planes", given=slab, expected="1 or more; 16, say")
    state, card = _load(run)
    _require_transformer(card, run)
    config, tokenizer_config = NeuroARConfig.from_json(card["model"]), _read_tokenizer(card, state, run)
    x, y, z = card["grid_shape"]
    _require_match(config, tokenizer_config, (x, y, z), run)
    transformer, tokenizer = config.build(), tokenizer_config.build()
    try:
        load_state(transformer, _part(state, "transformer."))
        load_state(tokenizer, _part(state, "tokenizer."))
    except RuntimeError as fault:
        raise GenerationError(f"the weights in {run} are not those of its config.json", given=fault) from None
    return AgeingModel(
        transformer=transformer.requires_grad_(False).to(device).eval(),
        tokenizer=tokenizer.requires_grad_(False).to(device).eval(),
        grid=(x, y, z),
        card=card,
        device=torch.device(device),
        slab=slab,
    )


def _load(run: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    for place in (Location(run).child("model"), Location(run)):
        try:
            state, card, _ = load_weights(place)
        except MissingObjectError:
            continue
        return state, card
    raise GenerationError(
        "there is no trained model here",
        given=run,
        expected="the run folder of NeuroAR's second stage, after its training has ended",
        fix=_HOW,
    )


def _require_transformer(card: Mapping[str, Any], run: str) -> None:
    if card.get("model_name") != _NAME:
        is_tokenizer = card.get("model_name") == "neuroar_vqvae"
        raise GenerationError(
            f"{run} generates no brains",
            given="the tokenizer alone, which is the first stage" if is_tokenizer else card.get("model_name"),
            expected="a run of neuroar/transformer",
            fix=_HOW,
        )
    if card.get("format") not in CARD_FORMATS:
        fix = "use the version of neuroray that wrote it"
        given, expected = f"format {card.get('format')}", f"format {' or '.join(map(str, CARD_FORMATS))}"
        raise GenerationError("this version does not read such a model folder", given=given, expected=expected, fix=fix)


def _read_tokenizer(card: Mapping[str, Any], state: Mapping[str, torch.Tensor], run: str) -> VQVAEConfig:
    described = card.get("tokenizer")
    if not isinstance(described, Mapping) or not _part(state, "tokenizer."):
        raise GenerationError(
            f"the tokenizer is missing in {run}",
            given=f"{len(state)} tensors, none of a tokenizer" if described else "a config.json that names none",
            expected="transformer and tokenizer in one folder, as train writes them",
            fix="copy the folder again, or train the second stage again",
        )
    return VQVAEConfig.from_json(described["model"])


def _require_match(config: NeuroARConfig, tokenizer: VQVAEConfig, grid: Grid, run: str) -> None:
    try:
        latent = tokenizer.latent_shape(grid)
    except (ConfigError, ValueError) as fault:
        raise GenerationError(f"the tokenizer in {run} cannot take the grid of its volumes", given=fault) from None
    if config.quantiser != tokenizer.quantiser or config.latent_shape != latent:
        raise GenerationError(
            f"the tokenizer in {run} is of another version than the transformer",
            given=f"{tokenizer.quantiser.num_codes} codes of {tokenizer.quantiser.code_dim} on {latent}",
            expected=f"{config.quantiser.num_codes} codes of {config.quantiser.code_dim} on {config.latent_shape}",
            fix="copy the folder again, or train the second stage with this tokenizer (--encoder)",
        )


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

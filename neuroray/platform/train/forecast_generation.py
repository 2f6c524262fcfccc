"""What generating a brain will hold: transformer, then decoder, by a rehearsal on tensors without memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from neuroray.platform.data.tokens import load_tokenizer
from neuroray.platform.models.neuroar import VQVAEConfig
from neuroray.platform.models.neuroar.generate import generate_tokens
from neuroray.platform.models.neuroar.quantiser import MultiScaleQuantiser
from neuroray.platform.models.neuroar.transformer import NeuroARTransformer
from neuroray.platform.models.neuroar.vqvae import VQVAE
from neuroray.platform.train.rehearsal import Grid, trace_peak
from neuroray.platform.train.tasks.neuroar import NeuroARRecipe

_FLOAT = 4
_SLAB = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationForecast:
    """Of one brain at one age, in float32, as `neuroray generate` makes it; in bytes.

    Attributes:
        grid: Of the volume.
        parameters: Of transformer and tokenizer.
        working: What is held besides while the scan is encoded, its tokens are told, and they are decoded; also where
            that is done in slabs, which is no part of the peak.
    """

    grid: Grid
    parameters: int
    working: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """The most that is held at once."""
        return self.parameters + max(self.working.values())

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return dataclasses.asdict(self) | {"peak_bytes": self.peak_bytes}


def forecast_generation(recipe: NeuroARRecipe) -> GenerationForecast:
    """With the tokenizer of the recipe; of one that has none yet, with the paper's.

    Raises:
        TokenError: the recipe's tokenizer is not there.
    """
    tokenizer, grid = _choose_tokenizer(recipe)
    model = recipe.model
    counts: list[int] = []

    def tell(module: NeuroARTransformer) -> None:
        counts.append(sum(parameter.numel() for parameter in module.parameters()))
        tokens = torch.zeros(1, model.num_tokens, dtype=torch.int64)
        generate_tokens(module, MultiScaleQuantiser(model.quantiser).eval(), tokens, torch.ones(1, 2))

    def encode(module: VQVAE) -> None:
        counts.append(sum(parameter.numel() for parameter in module.parameters()))
        module.encode(torch.zeros(1, *grid))

    def decode(module: VQVAE, slab: int | None = None) -> None:
        module.decode(torch.zeros(1, model.num_tokens, dtype=torch.int64), grid, slab=slab)

    working = {
        "encoder": trace_peak(tokenizer.build, encode),
        "transformer": trace_peak(model.build, tell),
        "decoder": trace_peak(tokenizer.build, decode),
        f"decoder with --slab {_SLAB}": trace_peak(tokenizer.build, partial(decode, slab=_SLAB)),
    }
    return GenerationForecast(grid=grid, parameters=_FLOAT * sum(counts), working=working)


def _choose_tokenizer(recipe: NeuroARRecipe) -> tuple[VQVAEConfig, Grid]:
    if recipe.tokenizer is not None and recipe.tokenizer.folder:
        found = load_tokenizer(recipe.tokenizer.folder)
        return found.model.config, found.grid
    tokenizer = VQVAEConfig(quantiser=recipe.model.quantiser)
    x, y, z = (size * tokenizer.factor for size in recipe.model.latent_shape)
    return tokenizer, (x, y, z)

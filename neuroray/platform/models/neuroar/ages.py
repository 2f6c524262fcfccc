"""AgeEmbedding: previous and target age, and the years between them, as tokens and as one vector."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroray.platform.models.errors import ModelError
from neuroray.platform.models.neuroar.transformer_config import NeuroARConfig

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_OLDEST_YEARS = 130.0


class AgeEmbedding(nn.Module):
    """Sines of an age over periods from months to a life, through a small MLP; hidden ages are a learned token."""

    def __init__(self, config: NeuroARConfig) -> None:
        super().__init__()
        number, width = config.num_age_tokens, config.width
        self._config = config
        self.mlp = nn.Sequential(nn.Linear(2 * config.num_age_periods + 1, width), nn.SiLU(), nn.Linear(width, width))
        self.kinds = nn.Parameter(torch.randn(number, width) * 0.02)
        self.hidden = nn.Parameter(torch.randn(number, width) * 0.02)
        self.merge = nn.Linear(number * width, width)

    def forward(
        self, ages_years: Float[Tensor, "batch 2"], hide: Bool[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch age channel"], Float[Tensor, "batch channel"]]:
        """Tokens to look at, and the vector of all of them.

        Args:
            ages_years: Previous and target age.
            hide: Rows whose ages are not told.

        Raises:
            ModelError: ages that are none.
        """
        check_ages(ages_years)
        years = torch.cat([ages_years, ages_years[:, 1:] - ages_years[:, :1]], 1)[:, : len(self.kinds)]
        # Not a buffer, which a model in half precision would round: a period of months asks for ages to a day.
        low, high = map(math.log10, self._config.age_periods_years)
        periods = torch.logspace(low, high, self._config.num_age_periods, device=years.device)
        angles = years.float()[..., None] * (2 * math.pi / periods)
        features = torch.cat([angles.sin(), angles.cos(), years.float()[..., None] / 100], -1)
        tokens = self.mlp(features.to(self.kinds.dtype)) + self.kinds
        if hide is not None:
            tokens = torch.where(hide[:, None, None], self.hidden.to(tokens.dtype), tokens)
        return tokens, self.merge(functional.silu(tokens.flatten(1)))


def check_ages(ages_years: Float[Tensor, "batch 2"]) -> None:
    """Raises ModelError where an age is no number, below 0, or beyond any person's."""
    if ages_years.ndim != 2 or ages_years.shape[1] != 2:
        raise ModelError("two ages per row", given=tuple(ages_years.shape), expected="batch 2: previous, target")
    if not bool(((ages_years >= 0) & (ages_years <= _OLDEST_YEARS)).all()):
        given = f"{float(ages_years.min())} to {float(ages_years.max())} years"
        raise ModelError("ages are none", given=given, expected=f"0 to {_OLDEST_YEARS:.0f} years")

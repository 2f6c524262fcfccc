"""NeuroARConfig: sizes and options of the transformer; the defaults are of the paper's size."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from neuroray.config import Config, ConfigError
from neuroray.platform.models.neuroar.quantiser_config import QuantiserConfig, Shape

if TYPE_CHECKING:
    from neuroray.platform.models.neuroar.transformer import NeuroARTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuroARConfig(Config):
    """The transformer. Of the paper: 32 blocks, AdaLN and cross-attention by age in each, the previous scan beside the
    target at every scale. All else is a choice, most of it VAR's.

    Attributes:
        quantiser: Of the tokenizer whose tokens are told.
        latent_shape: Of the tokenizer, for the volumes at hand; 10 x 12 x 11 for 160 x 192 x 176.
        width: Of a token.
        depth: Blocks.
        num_heads: Of self- and cross-attention.
        mlp_ratio: Width of the hidden layer, in widths.
        previous: How the previous scan is seen. `channel`: added to the target's embedding at the same place, which
            registration allows. `sequence`: as tokens before the target's, whose work is done once for many target
            ages. `none`: not at all (ablation).
        order: `scale`: all places of a scale at once, as in VAR. `token`: one token after another, scale by scale and
            in C order within each, as in older autoregression (ablation): as many passes as tokens.
        adaln: How ages scale and shift: by `own` weights in each block, by `shared` ones, or not at all (`none`).
        cross_attention: Whether tokens look at the ages in each block.
        ages: Ages that are told: previous and target, and their difference where it is asked for.
        age_periods_years: Shortest and longest period of the sines that an age becomes.
        num_age_periods: How many periods there are.
        head: How codes are told. `linear`: by a classifier, as in the paper. `nearest`: by their distances from a told
            vector, which is what the previous scan would look up next had nothing changed, plus a learned change that
            starts at 0: the model starts as a copy, near codes are confused before far ones, and what is learned is
            change alone. Only where the previous scan is seen as `channel`.
        normalise_keys: Compare directions of queries and keys, scaled by a learned number per head.
        gamma: Size at first of the factors by which blocks add to a token.
        dropout: Share of the numbers into which both scans' codes are embedded that are set to 0 in training: few pairs
            are soon known by heart, for most of what differs between two visits is noise.
        age_dropout: Share of training rows whose ages are hidden, for guidance.
        previous_dropout: The same of previous scans.
    """

    quantiser: QuantiserConfig = field(default_factory=QuantiserConfig)
    latent_shape: Shape = (10, 12, 11)
    width: int = 1024
    depth: int = 32
    num_heads: int = 16
    mlp_ratio: float = 4.0
    previous: Literal["channel", "sequence", "none"] = "channel"
    order: Literal["scale", "token"] = "scale"
    adaln: Literal["own", "shared", "none"] = "own"
    cross_attention: bool = True
    ages: Literal["pair", "pair_and_gap"] = "pair_and_gap"
    age_periods_years: tuple[float, float] = (0.5, 128.0)
    num_age_periods: int = 32
    head: Literal["linear", "nearest"] = "linear"
    normalise_keys: bool = True
    gamma: float = 1e-3
    dropout: float = 0.0
    age_dropout: float = 0.1
    previous_dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.num_heads, *self.latent_shape) < 1 or self.width % self.num_heads:
            raise ConfigError(
                "sizes do not fit",
                given=f"width {self.width}, depth {self.depth}, {self.num_heads} heads, grid {self.latent_shape}",
                expected="at least 1, and heads that divide the width",
            )
        for name in ("dropout", "age_dropout", "previous_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is no share", given=getattr(self, name), expected="0 <= share < 1")
        if self.order == "token" and self.previous == "sequence":
            fix = "--model.previous channel"
            raise ConfigError("tokens one by one see the previous scan at their own place", given="sequence", fix=fix)
        if self.head == "nearest" and (
            self.previous != "channel" or self.order != "scale" or self.quantiser.distance != "euclidean"
        ):
            raise ConfigError(
                "codes near to the previous scan's need that scan beside the target, whole scales, Euclidean distances",
                given=f"previous {self.previous}, order {self.order}, distance {self.quantiser.distance}",
                fix="--model.previous channel --model.order scale, or --model.head linear",
            )
        low, high = self.age_periods_years
        if not 0 < low < high or self.num_age_periods < 2:
            raise ConfigError("periods are none", given=f"{self.num_age_periods} from {low} to {high} years")
        self.quantiser.resolve_scales(self.latent_shape)

    @property
    def scales(self) -> tuple[Shape, ...]:
        """Sizes of all scales, the coarsest first."""
        return self.quantiser.resolve_scales(self.latent_shape)

    @property
    def ends(self) -> tuple[int, ...]:
        """0, and behind which token each scale ends."""
        return (0, *accumulate(math.prod(scale) for scale in self.scales))

    @property
    def num_tokens(self) -> int:
        """Of one volume."""
        return self.ends[-1]

    @property
    def num_age_tokens(self) -> int:
        """Tokens that tell of ages."""
        return 2 if self.ages == "pair" else 3

    def build(self) -> NeuroARTransformer:
        """The transformer; its weights are drawn from torch's global generator."""
        from neuroray.platform.models.neuroar.transformer import NeuroARTransformer

        return NeuroARTransformer(self)

"""QuantiserConfig: the scales, the codebook and its update, and the scales of a latent grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from neuroray.config import Config, ConfigError

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiserConfig(Config):
    """The multi-scale residual quantiser; the defaults are the paper's where it says (codes, scales), else VAR's.

    Attributes:
        num_codes: Entries of the codebook, which all scales share.
        code_dim: Length of a code.
        num_scales: Scales, where `scales` names none: each is half of the next, rounded up.
        scales: Sizes from the coarsest on; the last one must be the latent grid. Empty: see `num_scales`.
        num_refiners: Convolutions that refine what was looked up; scales at about the same place share one.
        refiner_share: Share of the convolution in what a refiner gives; the rest is what it was given.
        distance: Nearest by Euclidean distance, or by angle (codes are added as they are either way).
        update: `average`: each code follows the running mean of the vectors it stands for, starts from data, and is
            set anew where it is hardly used. `gradient`: it learns as any weight.
        decay: Of the running means, per step.
        revive_below: A code is dead when its running count of uses falls below this share of the mean; 0: never.
        commitment: Weight of the encoder's term beside the codebook's.
        scale_dropout: Share of training volumes that are reconstructed without their finest scales, a number of them
            drawn for each, so that coarse scales must say what they can; all scales are looked up, and all codes move.
        scales_kept: Of these volumes, the scales that are never left out.
        level_sizes: Divide what each scale looks up by its usual size (the running root of its mean square), and
            multiply what is found by it: all scales then use all of the codebook, where else coarse scales, whose
            means are small, and late ones, to which little is left, share a few codes about 0.
        equal_scales: In the running means of codes, let all scales weigh the same, however many places they have: where
            each place counts once, codes go where the finest scale needs them, and a scale of one place shares a few.
    """

    num_codes: int = 2048
    code_dim: int = 32
    num_scales: int = 5
    scales: tuple[Shape, ...] = ()
    num_refiners: int = 4
    refiner_share: float = 0.5
    distance: Literal["euclidean", "cosine"] = "euclidean"
    update: Literal["average", "gradient"] = "average"
    decay: float = 0.99
    revive_below: float = 0.1
    commitment: float = 0.25
    scale_dropout: float = 0.0
    scales_kept: int = 2
    level_sizes: bool = False
    equal_scales: bool = False

    def __post_init__(self) -> None:
        counts = (self.num_codes - 1, self.code_dim, self.num_scales, self.num_refiners, *sum(self.scales, ()))
        if min(counts) < 1:
            raise ConfigError("sizes are too small", given=self.to_json(), expected="2 codes or more, all else above 0")
        is_share = 0 < self.decay < 1 and 0 <= self.refiner_share <= 1 and 0 <= self.revive_below < 1
        if not is_share or not 0 <= self.scale_dropout < 1 or self.scales_kept < 1:
            raise ConfigError(
                "a share is none",
                given=f"decay {self.decay}, refiner_share {self.refiner_share}, revive_below {self.revive_below}, "
                f"scale_dropout {self.scale_dropout}, scales_kept {self.scales_kept}",
                expected="between 0 and 1, and a scale kept",
            )

    def resolve_scales(self, latent_shape: Shape) -> tuple[Shape, ...]:
        """The sizes of all scales for a latent grid, the coarsest first.

        Raises:
            ConfigError: named scales end on another grid.
        """
        if not self.scales:
            return halve(latent_shape, self.num_scales)
        if self.scales[-1] != latent_shape:
            raise ConfigError("the last scale is not the latent grid", given=self.scales[-1], expected=latent_shape)
        return self.scales

    def choose_refiner(self, scale_index: int, num_scales: int) -> int:
        """Which refiner a scale takes: the one whose place between coarse and fine is nearest, the finer of two.

        VAR's rule: its four are spread a little wider than any other number of them.
        """
        place = scale_index / (num_scales - 1) if num_scales > 1 else 0.0
        share = 1 / 3 if self.num_refiners == 4 else 1 / 2
        first, last = share / self.num_refiners, 1 - share / self.num_refiners
        step = (last - first) / (self.num_refiners - 1) if self.num_refiners > 1 else 0.0
        # Rounded, for what ties in numbers must not be decided by their last bits.
        return min(range(self.num_refiners), key=lambda one: (round(abs(first + one * step - place), 9), -one))


def halve(shape: Shape, num_scales: int) -> tuple[Shape, ...]:
    """`shape` and its halves, rounded up, the smallest first."""
    scales = [shape]
    while len(scales) < num_scales:
        scales.append(tuple(-(-size // 2) for size in scales[-1]))  # pyright: ignore[reportArgumentType]: three again
    return tuple(reversed(scales))

"""PatchDiscriminator: scores patches of a volume, high for real ones; only used while the tokenizer is trained."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class PatchDiscriminator(nn.Module):
    """Three-dimensional PatchGAN (Isola et al. 2017): each score sees a patch, of 34 voxels with two halvings.

    GroupNorm in place of BatchNorm: a volume's scores must not depend on what else is in the batch.
    """

    def __init__(self, channels: int, num_halvings: int = 2) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(num_halvings + 1)]
        layers: list[nn.Module] = [nn.Conv3d(1, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if level < num_halvings - 1 else 1
            layers += [nn.Conv3d(before, after, 4, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(max(1, after // 16), after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv3d(widths[-1], 1, 4, padding=1))

    def forward(self, volume: Float[Tensor, "batch x y z"]) -> Float[Tensor, "batch u v w"]:
        """Scores of patches; a volume of 20 voxels or more along each axis has some."""
        return self.layers(volume[:, None])[:, 0]

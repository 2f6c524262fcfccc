"""Second moments: how the leading components of the frame encoder's tokens vary together over a window's frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from neuroray.platform.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Bool, Float
    from torch import Tensor

_WEIGHT_POWER = 0.25
_LEAST_VARIANCE = 1e-4  # of a component, as a part of what it has over the training scans
_OVERSAMPLING = 4  # random directions for each component that is sought, so that the last ones are found too


def count_moments(num_components: int) -> int:
    """Of so many components: each with itself and with every other one once."""
    return num_components * (num_components + 1) // 2


def find_held(voxels: Float[Tensor, "batch time x y z"]) -> Bool[Tensor, "batch time"]:
    """Frames with something in them: padding and frames that were not acquired are of one value."""
    flat = voxels.flatten(2)
    return flat.amax(2) > flat.amin(2)


class PrincipalMoments(nn.Module):
    """Correlations and log-variances over time of the tokens' principal components.

    What connectivity is for regions, this is for the directions in which a frame encoder's tokens, of all places at
    once, vary most: found on training scans without labels (`fit`), and held. A component's moments are weighted by
    the fourth root of its variance, so that a linear map learns from the strong ones first and it matters little how
    many there are. No part of the paper's model.

    Args:
        num_places: Tokens of a frame.
        num_channels: Of a token.
        num_components: At most all.
    """

    axes: Tensor
    variances: Tensor

    def __init__(self, num_places: int, num_channels: int, num_components: int) -> None:
        super().__init__()
        self.num_places, self.num_channels = num_places, num_channels
        # Before it is fitted, the first channels of the first place.
        self.register_buffer("axes", torch.eye(num_channels * num_places, num_components))
        self.register_buffer("variances", torch.ones(num_components))

    def forward(
        self, frames: Float[Tensor, "batch time channel place"], held: Bool[Tensor, "batch time"]
    ) -> Float[Tensor, "batch moment"]:
        """Moments over the held frames, in float32; the upper triangle, row by row, on its diagonal half the logarithm.

        A window with one held frame or none has 0.

        Raises:
            ModelError: tokens of another grid.
        """
        self._check(frames)
        with torch.autocast(frames.device.type, enabled=False):
            weights = (self.variances / self.variances[0]) ** _WEIGHT_POWER
            scores = _centre(frames.float(), held).flatten(2) @ (self.axes / self.variances.sqrt())
            number = held.sum(1).clamp(min=1).to(scores.dtype)[:, None, None]
            covariance = scores.transpose(1, 2) @ scores / number
            variance = covariance.diagonal(dim1=1, dim2=2).clamp(min=_LEAST_VARIANCE)
            scale = variance.rsqrt()
            moments = covariance * scale[:, :, None] * scale[:, None, :]
            moments = torch.diagonal_scatter(moments, variance.log() / 2, dim1=1, dim2=2)
            moments = moments * weights[:, None] * weights
            moments = moments * (held.sum(1) > 1)[:, None, None]
        row, column = torch.triu_indices(*moments.shape[1:], device=moments.device)
        return moments[:, row, column]

    @torch.no_grad()
    def fit(
        self,
        windows: Iterable[tuple[Float[Tensor, "batch time channel place"], Bool[Tensor, "batch time"]]],
        *,
        seed: int = 0,
    ) -> None:
        """Finds the components of training windows' tokens, centred within each window, in one pass.

        By a random sketch of the covariance (Tropp et al. 2017, fixed-rank Nystroem), so that tokens of many places
        and channels need no matrix of all pairs.

        Args:
            windows: Tokens, and which frames count.
            seed: Of the sketch.

        Raises:
            ModelError: tokens of another grid, or too few frames, or none that vary.
        """
        size, num_components = self.axes.shape
        draws = min(size, _OVERSAMPLING * num_components)
        generator = torch.Generator().manual_seed(seed)
        directions, _ = torch.linalg.qr(torch.randn(size, draws, generator=generator, dtype=torch.float64))
        sketch, num_frames = torch.zeros(size, draws, dtype=torch.float64), 0
        for frames, held in windows:
            self._check(frames)
            rows = _centre(frames.double().cpu(), held.cpu()).flatten(2).flatten(0, 1)
            sketch += rows.T @ (rows @ directions)
            num_frames += int(held.sum())
        if num_frames <= num_components or not float(sketch.abs().max()) > 0:
            raise ModelError(
                "there are too few frames that vary to find components",
                given=f"{num_frames} frames of the training scans",
                expected=f"more than {num_components}",
                fix="more training scans, or a smaller --model.num-components",
            )
        variances, axes = _solve(sketch / num_frames, directions)
        self.axes.copy_(axes[:, :num_components])
        floor = 1e-9 * variances[0]
        self.variances.copy_(variances[:num_components].clamp(min=float(floor)))

    def _check(self, frames: Tensor) -> None:
        if frames.shape[2:] != (self.num_channels, self.num_places):
            channels, places = frames.shape[2:]
            raise ModelError(
                "the components are those of another grid",
                given=f"{places} tokens of {channels} channels in a frame",
                expected=f"{self.num_places} of {self.num_channels}",
                fix="resample the run to the training's grid, or train with --model.grid-shape and pool cls on it",
            )


def _centre(
    frames: Float[Tensor, "batch time channel place"], held: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time channel place"]:
    """Less the mean of the held frames; 0 where none was held."""
    counted = held[:, :, None, None].to(frames.dtype)
    number = held.sum(1).clamp(min=1).to(frames.dtype)[:, None, None, None]
    # Frames that do not count may hold anything.
    kept = frames.where(held[:, :, None, None], 0.0)
    return (kept - kept.sum(1, keepdim=True) / number) * counted


def _solve(
    sketch: Float[Tensor, "feature draw"], directions: Float[Tensor, "feature draw"]
) -> tuple[Float[Tensor, " component"], Float[Tensor, "feature component"]]:
    """Eigenvalues, the largest first, and axes of a covariance of which the product with `directions` is known."""
    # A shift keeps the small matrix positive in spite of rounding, and is taken off again.
    shift = 1e-12 * float(sketch.norm())
    shifted = sketch + shift * directions
    lower = torch.linalg.cholesky(_symmetric(directions.T @ shifted))
    left, values, _ = torch.linalg.svd(
        torch.linalg.solve_triangular(lower, shifted.T, upper=False).T, full_matrices=False
    )
    # The sign of an axis is free; its largest number is made positive, so that the same scans give the same numbers.
    signs = left.gather(0, left.abs().argmax(0, keepdim=True)).sign()
    return (values.square() - shift).clamp(min=0), left * signs


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2

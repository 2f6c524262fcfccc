"""From stored numbers to z-scores, on the device where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from neuroray.config import Config, ConfigError

_FRAMES_AT_ONCE = 8  # float32 copies of that many frames stand beside the batch
_LEAST_SPREAD = 1e-6  # of a voxel over time, in standard deviations of the scan: float32 tells no less


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardiseConfig(Config):
    """How stored numbers become scores.

    Attributes:
        by: What scores are relative to: mean and spread of the whole `scan`, by which anatomy outweighs fluctuations;
            or of each `voxel` over the frames of its window, which leaves fluctuations alone.
        drift_degree: By voxel, the polynomial over the window's frames that is taken out of each voxel as drift (as
            AFNI's `polort`: 1 and another for each 150 s); 0: its mean alone.
    """

    by: Literal["scan", "voxel"] = "scan"
    drift_degree: int = 0

    def __post_init__(self) -> None:
        if self.drift_degree < 0 or (self.by == "scan" and self.drift_degree):
            raise ConfigError(
                "drift is taken out of voxels",
                given=f"by {self.by}, drift_degree {self.drift_degree}",
                expected="0, or by voxel 0 or more",
            )

    @property
    def background(self) -> float | None:
        """The score of background and of frames that hold nothing; None: the lowest of each scan."""
        return 0.0 if self.by == "voxel" else None


BY_SCAN = StandardiseConfig()


def read_standard(card: Mapping[str, Any]) -> StandardiseConfig:
    """How a model's windows were prepared, from its card; of models from before there was a choice, by scan."""
    return StandardiseConfig.from_json(card.get("standardise", {}))


def standardise(
    batch: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, *, config: StandardiseConfig = BY_SCAN
) -> Float[Tensor, "batch time x y z"]:
    """The voxels of a batch of windows as z-scores.

    By scan: z = (stored * slope + intercept - mean) / std, with mean and std over the brain in all frames of the run.
    Background is what the `brain` mask leaves out where the batch has one, else values of 0; it, and padding, are set
    to the z of the smallest value in the brain, so that nothing lies below the brain (as SwiFT, TFF and BrainMT's code
    prepare runs). So is what is no number, and a frame whose brain is all of one value: it was not acquired.

    By voxel: each brain voxel minus its mean (and drift, fitted by least squares), over the standard deviation (of the
    population) of what is left, over the frames of the window that were acquired; so only fluctuations are left, as
    BrainMT's README has it ("voxel-wise across time"). Background, padding, what is no number, frames that were not
    acquired and voxels that do not fluctuate are 0.

    Args:
        batch: As `WindowReader` gives it: `voxels`, `frame_mask`, `slope`, `intercept`, `mean`, `std`, `minimum`.
        dtype: Of the result; computed in float32, from stored numbers of more than two bytes in float64.
        config: By scan or by voxel.

    Raises:
        ValueError: a scan whose values are all alike.
    """
    voxels = batch["voxels"]
    scores = torch.empty(voxels.shape, dtype=dtype, device=voxels.device)
    for row, given in zip(scores, _rows_of(batch), strict=True):
        if not given.std > 0:
            raise ValueError("a scan without spread has no z-scores")
        if config.by == "voxel":
            _score_by_voxel(given, row, config.drift_degree)
            continue
        for frames, values, background, is_empty in _scan_scores(given):
            values.masked_fill_(background, given.lowest)
            values[is_empty] = given.lowest
            row[frames] = values
    return scores


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One window of a batch, and the numbers that go with it."""

    stored: Num[Tensor, "time x y z"]
    frame_mask: Bool[Tensor, " time"]
    brain: Bool[Tensor, "x y z"] | None
    slope: float
    intercept: float
    mean: float
    std: float
    minimum: float

    @property
    def lowest(self) -> float:
        """The score of the smallest value in the brain."""
        return (self.minimum - self.mean) / self.std


def _rows_of(batch: Mapping[str, Tensor]) -> Iterator[_Row]:
    names = ("slope", "intercept", "mean", "std", "minimum")
    numbers = torch.stack([batch[name].double() for name in names], dim=1).tolist()
    for index, found in enumerate(numbers):
        yield _Row(
            stored=batch["voxels"][index],
            frame_mask=batch["frame_mask"][index],
            brain=batch["brain"][index] if "brain" in batch else None,
            **dict(zip(names, found, strict=True)),
        )


def _score_by_voxel(given: _Row, scores: Float[Tensor, "time x y z"], drift_degree: int) -> None:
    """Fills `scores`. A few passes, so that never more than some frames are held in another dtype.

    A score by scan is the value but for scale and offset, which a z-score over time takes out.
    """
    shape, device = scores.shape[1:], scores.device
    total, squares, count = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(3))
    is_held = torch.ones(len(scores), dtype=torch.bool, device=device)
    for frames, values, background, is_empty in _scan_scores(given):
        is_held[frames] = ~is_empty
        is_absent = background | is_empty[:, None, None, None]
        total += values.masked_fill_(is_absent, 0).sum(dim=0, dtype=torch.float64)
        count += (~is_absent).sum(dim=0)
    # Sums in float64, what is summed as exact as scores by scan are: a voxel's spread is a hundredth of 1 or more.
    mean = (total / count.clamp_min(1)).to(_dtype_of_scores(given.stored.dtype))

    basis = _drift_basis(is_held, drift_degree).to(mean.dtype)
    weights = mean.new_zeros((basis.shape[1], *shape))
    if drift_degree:
        for frames, values in _deviations(given, mean):
            weights += torch.einsum("td,txyz->dxyz", basis[frames], values)
    for frames, values in _deviations(given, mean):
        squares += values.sub_(_drift(basis[frames], weights)).square_().sum(dim=0, dtype=torch.float64)
    spread = (squares / count.clamp_min(1)).sqrt_().to(mean.dtype)
    is_still = spread < _LEAST_SPREAD
    spread[is_still] = 1
    for frames, values, background, is_empty in _scan_scores(given):
        values.sub_(mean).sub_(_drift(basis[frames], weights)).div_(spread).masked_fill_(background | is_still, 0)
        values[is_empty] = 0
        scores[frames] = values


def _deviations(given: _Row, mean: Float[Tensor, "x y z"]) -> Iterator[tuple[slice, Float[Tensor, "time x y z"]]]:
    """Some frames at a time, minus each voxel's mean; 0 where there is nothing."""
    for frames, values, background, is_empty in _scan_scores(given):
        yield frames, values.sub_(mean).masked_fill_(background | is_empty[:, None, None, None], 0)


def _drift_basis(is_held: Bool[Tensor, " time"], degree: int) -> Float[Tensor, "time degree"]:
    """Orthonormal polynomials without the constant, over the frames that hold something; 0 in the others."""
    basis = torch.zeros((len(is_held), 0), dtype=torch.float64, device=is_held.device)
    degree = min(degree, int(is_held.sum()) - 1)  # as many as there are frames take out everything
    if degree < 1:
        return basis
    place = torch.linspace(-1, 1, len(is_held), dtype=torch.float64, device=is_held.device)[is_held]
    found, _ = torch.linalg.qr(torch.stack([place**power for power in range(degree + 1)], dim=1))
    basis = basis.new_zeros((len(is_held), degree))
    basis[is_held] = found[:, 1:]
    return basis


def _drift(basis: Float[Tensor, "time degree"], weights: Float[Tensor, "degree x y z"]) -> Float[Tensor, "time x y z"]:
    return torch.einsum("td,dxyz->txyz", basis, weights)


def _scan_scores(
    given: _Row,
) -> Iterator[tuple[slice, Float[Tensor, "time x y z"], Bool[Tensor, "*time x y z"], Bool[Tensor, " time"]]]:
    """Some frames at a time: which, their z-scores by scan, where there is background, which hold nothing."""
    exact = _dtype_of_scores(given.stored.dtype)
    factor, offset = given.slope / given.std, (given.intercept - given.mean) / given.std
    for first in range(0, len(given.stored), _FRAMES_AT_ONCE):
        frames = slice(first, first + _FRAMES_AT_ONCE)
        stored = given.stored[frames]
        values = stored.to(exact, copy=True).mul_(factor).add_(offset)
        background = ~given.brain if given.brain is not None else _is_zero(stored, given.slope, given.intercept)
        if stored.is_floating_point():
            background = background | ~stored.isfinite()
        yield frames, values, background, _is_flat(values, background) | ~given.frame_mask[frames]


def _dtype_of_scores(stored: torch.dtype) -> torch.dtype:
    """One in which no digit of a stored number is lost."""
    return torch.float32 if stored.itemsize <= 2 or stored == torch.float32 else torch.float64


def _is_flat(values: Float[Tensor, "time x y z"], background: Bool[Tensor, "*time x y z"]) -> Bool[Tensor, " time"]:
    """Frames of which all brain voxels are equal."""
    least = values.masked_fill(background, torch.inf).amin((1, 2, 3))
    most = values.masked_fill(background, -torch.inf).amax((1, 2, 3))
    return least == most


def _is_zero(stored: Num[Tensor, "time x y z"], slope: float, intercept: float) -> Bool[Tensor, "time x y z"]:
    """Where the value is 0; asked of the stored numbers, for rounding may make almost 0 of it."""
    zero = -intercept / slope
    if not stored.is_floating_point():
        # 2**53: whole numbers beyond it are not told apart.
        if abs(zero - round(zero)) > 1e-6 or abs(zero) > 2**53:
            return torch.zeros_like(stored, dtype=torch.bool)
        zero = round(zero)
    return stored == zero

"""BrainPlace: where the brains of a training lay on its grid, so that scans that were not registered are told apart."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from neuroray.platform.data.plan import PlanError

LEAST_OVERLAP: Final = 0.8
"""Skull-stripped brains on grids of their own overlap by 0.83: it refuses what is grossly elsewhere, as upside down."""

LIKENESS_MARGIN: Final = 0.035
"""How much less alike than the training's scans a scan may be. Between registered people whose outermost 4 mm of brain
are gone and whose ventricles are large, and brains that are moved by 10 mm: docs/benchmarks/brain_place.md."""

FEWEST_TO_LEARN_FROM: Final = 8
"""Of fewer scans how alike registered ones are cannot be told."""

_SPREADS: Final = 4
_MOST_CELLS: Final = 16
_NUM_SHADES: Final = 255

Shades = Float32[np.ndarray, "x y z"]


class UnregisteredError(PlanError):
    """A scan whose brain lies elsewhere than those of the training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How a brain lies in the place of others.

    Attributes:
        overlap: Twice what both have in common over the sum of both (Dice, of shades); 0 to 1.
        likeness: Correlation of shades over all of the grid, at most 1: where brains end and where they are dark counts
            more than how large they are.
    """

    overlap: float
    likeness: float

    def __str__(self) -> str:
        return f"an overlap of {self.overlap:.2f}, a likeness of {self.likeness:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainPlace:
    """The mean brightness of training brains, coarsely.

    Attributes:
        brightness: Mean over scans and over cubes of voxels, 0 to 1; 0 is what is no brain.
        block: Voxels along the edge of such a cube.
        least: The least overlap among the scans that it was learned from.
        required: Overlap that a scan must reach.
        least_likeness: The least likeness among them, each with the mean of the others; None where there were fewer
            than `FEWEST_TO_LEARN_FROM`, or in a place from before it was learned.
        required_likeness: Likeness that a scan must reach besides; None: any.
    """

    brightness: Shades = field(hash=False, compare=False)
    block: int
    least: float
    required: float = LEAST_OVERLAP
    least_likeness: float | None = None
    required_likeness: float | None = None

    def measure(self, volume: Float32[np.ndarray, "u v w"]) -> Placement:
        """How a scan lies in it.

        Args:
            volume: On the training's grid, in [-1, 1]; -1 is what is no brain.
        """
        return _compare(_shade(volume, self.block), self.brightness)

    def require(self, volume: Float32[np.ndarray, "u v w"], *, name: str = "the scan") -> Placement:
        """How it lies, where that is near enough.

        Raises:
            UnregisteredError: it is not.
        """
        found = self.measure(volume)
        if not self.admits(found):
            least = f"{self.least:.2f}" + (f" and {self.least_likeness:.3f}" if self.least_likeness is not None else "")
            raise UnregisteredError(
                f"{name} is not registered as the scans of the training were: its brain lies elsewhere",
                given=str(found),
                expected=f"{self._tell_required()}; the training's have {least}",
                fix="look at the scan; register it and take off the skull, or ingest with --profile mni_affine",
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """As it stands in a model's `config.json`: shades of a byte."""
        shades = np.round(self.brightness * _NUM_SHADES).astype(np.uint8)
        return {
            "shape": list(shades.shape),
            "block": self.block,
            "least_overlap": self.least,
            "required_overlap": self.required,
            "least_likeness": self.least_likeness,
            "required_likeness": self.required_likeness,
            "brightness": base64.b64encode(shades.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BrainPlace:
        """What `to_json` wrote, to a shade; of older models, which know of no likeness, the overlap alone."""
        shades = np.frombuffer(base64.b64decode(data["brightness"]), np.uint8).reshape(data["shape"])
        return cls(
            brightness=(shades / _NUM_SHADES).astype(np.float32),
            block=int(data["block"]),
            least=float(data["least_overlap"]),
            required=float(data.get("required_overlap", LEAST_OVERLAP)),
            least_likeness=data.get("least_likeness"),
            required_likeness=data.get("required_likeness"),
        )

    def admits(self, found: Placement) -> bool:
        """Whether a scan that lies so counts as registered."""
        alike = self.required_likeness is None or found.likeness >= self.required_likeness
        return alike and found.overlap >= self.required

    def _tell_required(self) -> str:
        if self.required_likeness is None:
            return f"an overlap of {self.required:g} or more"
        return f"an overlap of {self.required:g} or more, a likeness of {self.required_likeness:.3f} or more"


def learn_place(
    volumes: Iterable[tuple[str, Float32[np.ndarray, "x y z"]]], *, required: float = LEAST_OVERLAP
) -> BrainPlace:
    """Where these brains lie; all of one grid, in [-1, 1].

    How alike scans must be is learned from them. None of them may be less alike than their median less four times its
    distance from the lower quartile, which few scans that lie elsewhere do not move, less `LIKENESS_MARGIN`; what is
    looked at later may be as much less alike than the least of them as that margin.

    Args:
        volumes: Some of the training's, of a person each where that can be had, with their names.
        required: Overlap that each of them must reach, and every scan that is looked at later; 0: any, and any
            likeness.

    Raises:
        UnregisteredError: some of them lie elsewhere than the others.
    """
    names, shades, block = [], [], 1
    for name, volume in volumes:
        block = -(-max(volume.shape) // _MOST_CELLS)
        names.append(name)
        shades.append(_shade(volume, block))
    total = np.sum(shades, axis=0, dtype=np.float64)
    mean = (total / len(shades)).astype(np.float32)
    likeness = [_correlate(one, total - one) for one in shades]
    enough = required > 0 and len(shades) >= FEWEST_TO_LEARN_FROM
    place = BrainPlace(
        brightness=mean,
        block=block,
        least=min(_overlap(one, mean) for one in shades),
        required=required,
        least_likeness=min(likeness) if enough else None,
        required_likeness=_bound(likeness) if enough else None,
    )
    found = {
        name: Placement(overlap=_overlap(one, mean), likeness=alike)
        for name, one, alike in zip(names, shades, likeness, strict=True)
    }
    apart = [name for name, placed in found.items() if not place.admits(placed)]
    if apart:
        raise UnregisteredError(
            f"{len(apart)} of {len(names)} scans that were looked at do not lie as the others do: not registered",
            given="; ".join(f"{name} with {found[name]}" for name in apart[:4]),
            expected=f"{place._tell_required()}, with the mean of the others",
            fix="register them and take off the skull, or ingest with --profile mni_affine; or insist: --min-overlap 0",
        )
    return dataclasses.replace(place, required_likeness=min(likeness) - LIKENESS_MARGIN) if enough else place


def _bound(likeness: Sequence[float]) -> float:
    lower, median = np.percentile(likeness, [25, 50])
    return float(median - _SPREADS * (median - lower) - LIKENESS_MARGIN)


def _compare(one: Shades, other: Shades) -> Placement:
    return Placement(overlap=_overlap(one, other), likeness=_correlate(one, other))


def _correlate(one: np.ndarray, other: np.ndarray) -> float:
    """Of volumes without any brain 0."""
    first, second = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (one, other))
    size = float(np.sqrt((first * first).sum() * (second * second).sum()))
    return float((first * second).sum()) / size if size else 0.0


def _overlap(one: Shades, other: Shades) -> float:
    total = float(one.sum(dtype=np.float64) + other.sum(dtype=np.float64))
    return 2 * float(np.minimum(one, other).sum(dtype=np.float64)) / total if total else 0.0


def _shade(volume: Float32[np.ndarray, "x y z"], block: int) -> Shades:
    """Means over cubes, in [0, 1]; what the last cubes lack counts as no brain."""
    cells = [-(-size // block) for size in volume.shape]
    padded = np.zeros([count * block for count in cells], np.float32)
    padded[tuple(slice(size) for size in volume.shape)] = (volume + 1) / 2
    x, y, z = cells
    return padded.reshape(x, block, y, block, z, block).mean(axis=(1, 3, 5))

"""BrainPlace: where the brains of a training lay on its grid, so that scans that were not registered are told apart."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from neuroray.platform.data.plan import PlanError

LEAST_OVERLAP: Final = 0.8
"""Registered brains overlap by 0.96 and more, skull-stripped ones on grids of their own by 0.83 (measured on simulated
people, 4 mm); brains moved by 20 mm by 0.77, upside down by 0.70, turned by 30 degrees by about 0.8, moved by 10 mm by
0.86: it refuses what is grossly elsewhere, and not what is slightly so."""

_MOST_CELLS: Final = 16
_NUM_SHADES: Final = 255


class UnregisteredError(PlanError):
    """A scan whose brain lies elsewhere than those of the training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainPlace:
    """The mean brightness of training brains, coarsely.

    Attributes:
        brightness: Mean over scans and over cubes of voxels, 0 to 1; 0 is what is no brain.
        block: Voxels along the edge of such a cube.
        least: The least overlap among the scans that it was learned from.
        required: What a scan must reach.
    """

    brightness: Float32[np.ndarray, "x y z"] = field(hash=False, compare=False)
    block: int
    least: float
    required: float = LEAST_OVERLAP

    def measure(self, volume: Float32[np.ndarray, "u v w"]) -> float:
        """Overlap of a scan with it: twice what both have in common over the sum of both (Dice, of shades); 0 to 1.

        Args:
            volume: On the training's grid, in [-1, 1]; -1 is what is no brain.
        """
        return _overlap(_shade(volume, self.block), self.brightness)

    def require(self, volume: Float32[np.ndarray, "u v w"], *, name: str = "the scan") -> float:
        """The overlap, where it is enough.

        Raises:
            UnregisteredError: it is not.
        """
        found = self.measure(volume)
        if found < self.required:
            raise UnregisteredError(
                f"{name} is not registered as the scans of the training were: its brain lies elsewhere",
                given=f"an overlap of {found:.2f}",
                expected=f"{self.required:g} or more; the training's have {self.least:.2f}",
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
            "brightness": base64.b64encode(shades.tobytes()).decode(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BrainPlace:
        """What `to_json` wrote, to a shade."""
        shades = np.frombuffer(base64.b64decode(data["brightness"]), np.uint8).reshape(data["shape"])
        brightness = (shades / _NUM_SHADES).astype(np.float32)
        least, required = float(data["least_overlap"]), float(data.get("required_overlap", LEAST_OVERLAP))
        return cls(brightness=brightness, block=int(data["block"]), least=least, required=required)


def learn_place(
    volumes: Iterable[tuple[str, Float32[np.ndarray, "x y z"]]], *, required: float = LEAST_OVERLAP
) -> BrainPlace:
    """Where these brains lie; all of one grid, in [-1, 1].

    Args:
        volumes: Some of the training's, with their names.
        required: What each of them must reach, and every scan that is looked at later.

    Raises:
        UnregisteredError: some of them lie elsewhere than the others.
    """
    names, shades, block = [], [], 1
    for name, volume in volumes:
        block = -(-max(volume.shape) // _MOST_CELLS)
        names.append(name)
        shades.append(_shade(volume, block))
    mean = np.mean(shades, axis=0, dtype=np.float64).astype(np.float32)
    overlaps = {name: _overlap(shade, mean) for name, shade in zip(names, shades, strict=True)}
    apart = [name for name, found in overlaps.items() if found < required]
    if apart:
        raise UnregisteredError(
            f"{len(apart)} of {len(names)} scans that were looked at do not lie as the others do: not registered",
            given=", ".join(f"{name} with an overlap of {overlaps[name]:.2f}" for name in apart[:4]),
            expected=f"{required:g} or more with the mean of all",
            fix="register them and take off the skull, or ingest with --profile mni_affine; or insist: --min-overlap 0",
        )
    return BrainPlace(brightness=mean, block=block, least=min(overlaps.values()), required=required)


def _overlap(one: Float32[np.ndarray, "x y z"], other: Float32[np.ndarray, "x y z"]) -> float:
    total = float(one.sum(dtype=np.float64) + other.sum(dtype=np.float64))
    return 2 * float(np.minimum(one, other).sum(dtype=np.float64)) / total if total else 0.0


def _shade(volume: Float32[np.ndarray, "x y z"], block: int) -> Float32[np.ndarray, "u v w"]:
    """Means over cubes, in [0, 1]; what the last cubes lack counts as no brain."""
    cells = [-(-size // block) for size in volume.shape]
    padded = np.zeros([count * block for count in cells], np.float32)
    padded[tuple(slice(size) for size in volume.shape)] = (volume + 1) / 2
    x, y, z = cells
    return padded.reshape(x, block, y, block, z, block).mean(axis=(1, 3, 5))

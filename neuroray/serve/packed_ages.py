"""The same brain at other ages as it goes over the wire: volumes as NIfTI, pictures, numbers, within a limit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from neuroray.platform.generate.generated import BrainAtAge
from neuroray.platform.generate.pictures import draw_strip, to_dark_png
from neuroray.platform.generate.sweep import AgeSweep
from neuroray.platform.generate.sweep_pictures import draw_ages, find_shown_of, tell_notes, tell_rows
from neuroray.serve.question import SentFiles
from neuroray.storage.nifti import write_map
from neuroray.storage.scan import Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """A volume in bytes.

    Attributes:
        nifti: As .nii.gz, on the grid of the file that was asked about; None where it would be too much.
        size_bytes: Of the file, also where it was left out.
        no_nifti: Why it was left out.
    """

    nifti: bytes | None
    size_bytes: int
    no_nifti: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedAge:
    """One age.

    Attributes:
        facts: What was measured.
        png: Three planes, and what has changed in them.
        files: `volume`, `difference`, `spread`, as far as they were asked for.
    """

    facts: Mapping[str, Any]
    png: bytes
    files: Mapping[str, PackedFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedAges:
    """A sweep over ages.

    Attributes:
        facts: What was asked, and what holds for all ages.
        strip: All ages in one picture.
        ages: An entry for each, in the order asked.
        reconstruction: Of the scan itself, where it was asked for.
    """

    facts: Mapping[str, Any]
    strip: bytes
    ages: tuple[PackedAge, ...]
    reconstruction: PackedFile | None


def pack_ages(sweep: AgeSweep, *, files: SentFiles, max_bytes: int) -> PackedAges:
    """Volumes of all ages first, then the others: what no longer fits within the limit is left out, and why.

    Args:
        sweep: The brains.
        files: Which volumes.
        max_bytes: Of all of them together, compressed.
    """
    left = _Allowance(max_bytes)
    grid = sweep.given.own_grid
    kept: list[dict[str, PackedFile]] = [{} for _ in sweep.made]
    if files != "none":
        for one, found in zip(sweep.made, kept, strict=True):
            found["volume"] = left.pack(one.values, grid)
    reconstruction = None
    if files == "all":
        for one, found in zip(sweep.made, kept, strict=True):
            found |= {name: left.pack(values, grid) for name, values in _name_others(sweep, one).items()}
        reconstruction = left.pack(sweep.reconstruction, grid)
    facts = sweep.to_json()
    described = zip(facts.pop("ages"), draw_ages(sweep), kept, strict=True)
    return PackedAges(
        facts=facts,
        strip=to_dark_png(draw_strip(grid, tell_rows(sweep), find_shown_of(sweep), notes=tell_notes(sweep))),
        ages=tuple(PackedAge(facts=told, png=png, files=found) for told, png, found in described),
        reconstruction=reconstruction,
    )


def write_nifti(values: Float[np.ndarray, "x y z"], grid: Scan) -> bytes:
    """The file that `write_map` writes; it lies in a temporary folder meanwhile, and nowhere afterwards."""
    with tempfile.TemporaryDirectory(prefix="neuroray-map-") as folder:
        path = Path(folder) / "map.nii.gz"
        write_map(values, grid, path)
        return path.read_bytes()


class _Allowance:
    """How much may still be sent."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._left = max_bytes

    def pack(self, values: Float[np.ndarray, "x y z"], grid: Scan) -> PackedFile:
        written = write_nifti(values, grid)
        if len(written) <= self._left:
            self._left -= len(written)
            return PackedFile(nifti=written, size_bytes=len(written), no_nifti=None)
        reason = (
            f"the volume takes {len(written)} bytes, of {self._max_bytes} that are sent here, {self._left} are left: "
            "ask for fewer ages at a time, use neuroray generate, or ask whoever runs this service to raise its limit"
        )
        return PackedFile(nifti=None, size_bytes=len(written), no_nifti=reason)


def _name_others(sweep: AgeSweep, one: BrainAtAge) -> dict[str, np.ndarray]:
    spread = {} if one.spread is None else {"spread": one.spread}
    return {"difference": sweep.change_to(one), **spread}

"""Volumes of tissues and places in a scan, in its reconstruction and at each age: what a table tells of a brain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuroray.platform.data.brain_volumes import restore_grid
from neuroray.platform.evaluate.brain_regions import map_regions
from neuroray.platform.generate.generated import BrainAtAge, ScanInTokens, Volume

Millilitres = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRegions:
    """Volumes in ml, in the person's own space; NaN where the values fall into less than three classes.

    Attributes:
        method: How they are measured, in a sentence.
        main: The region that widens with age.
        scan: Of the scan.
        reconstruction: Of what the tokenizer makes of it.
        start: Of what changes are told against: of either, as the sweep says.
        ages: Of the brain at each age; of several samples of their mean.
    """

    method: str
    main: str
    scan: Millilitres
    reconstruction: Millilitres
    start: Millilitres
    ages: Mapping[float, Millilitres]

    def describe_age(self, age_years: float) -> dict[str, Any]:
        """Volumes at an age, and how far they are from those it starts from."""
        told = self.ages[age_years]
        change = {name: value - self.start[name] for name, value in told.items()}
        return {"regions_ml": _tell(told), "regions_change_ml": _tell(change)}

    def to_json(self) -> dict[str, Any]:
        """What holds for all ages."""
        return {
            "method": self.method,
            "main": self.main,
            "scan_ml": _tell(self.scan),
            "reconstruction_ml": _tell(self.reconstruction),
            "start_ml": _tell(self.start),
        }


def measure_regions(
    given: ScanInTokens, reconstruction: Volume, made: Sequence[BrainAtAge], *, from_scan: bool = False
) -> SweepRegions:
    """All of them on the prepared grid, the same voxels of brain throughout.

    Args:
        given: The scan.
        reconstruction: On the model's grid, in [-1, 1].
        made: The brain at each age.
        from_scan: Tell changes against the scan, in place of its reconstruction.
    """
    affine = given.prepared.affine
    maps = map_regions(
        given.prepared.grid_shape,
        tuple(float(value) for value in np.asarray(affine).ravel()),
        in_template=given.to_template is not None,
    )
    # A voxel of the template stands for as much of the person as the way there stretches it.
    stretch = 1.0 if given.to_template is None else abs(np.linalg.det(given.to_template.affine[:3, :3]))
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3])) / stretch / 1000)

    def measure(volume: Volume) -> Millilitres:
        return maps.measure(restore_grid(volume, given.prepared.grid_shape), given.brain, voxel_ml=voxel_ml)

    scan, redrawn = measure(given.volume), measure(reconstruction)
    return SweepRegions(
        method=maps.method,
        main=maps.main,
        scan=scan,
        reconstruction=redrawn,
        start=scan if from_scan else redrawn,
        ages={one.age_years: measure(one.volume) for one in made},
    )


def _tell(volumes_ml: Millilitres) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in volumes_ml.items()}

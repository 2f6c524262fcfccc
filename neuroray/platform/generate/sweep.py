"""A sweep over ages: one scan, prepared and encoded once, its brain told at each age, and what is measured of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Bool

from neuroray.platform.generate.ageing_model import AgeingModel
from neuroray.platform.generate.generated import (
    BrainAtAge,
    ScanInTokens,
    Volume,
    find_own_brain,
    generate_at_age,
    mean_absolute,
    measure_reconstruction,
    reconstruct,
)
from neuroray.platform.generate.sweep_regions import SweepRegions, measure_regions
from neuroray.platform.models.neuroar.generate import SamplingConfig

# What training asks of a tokenizer unless told otherwise (--min-psnr-db).
_LEAST_PSNR_DB: Final = 25.0
_AGAINST: Final = {
    "none": "the tokenizer's own reconstruction of the scan (reconstruction.nii.gz), and not the scan",
    "scan": "the scan as its profile left it, whose detail was kept",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgesAsked:
    """What is asked of one scan.

    Attributes:
        age_years: Of the person when the scan was made.
        target_ages_years: For which the brain is told.
        sampling: How codes are chosen.
        num_samples: Drawn for each age.
        seed: Of the draws.
        allow_outside: Ages and a diagnosis that the training has not seen are told all the same, with a warning.
        diagnosis: Of the person, as the study calls it; None: not told.
    """

    age_years: float
    target_ages_years: tuple[float, ...]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_samples: int = 1
    seed: int = 0
    allow_outside: bool = False
    diagnosis: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeSweep:
    """The same brain at each of the ages asked for.

    Attributes:
        asked: What was asked.
        given: The scan as the model took it.
        brain: What counts as brain, on the file's grid.
        prepared: The scan as its profile left it, its brain alone, on the file's grid: as blurred by the way as the
            others.
        reconstruction: What the tokenizer makes of it, there too.
        start: What changes are counted from: the reconstruction, or, where the scan's detail is kept, the scan.
        psnr_db: Of the reconstruction, over the brain.
        regions: Volumes of tissues and places.
        made: An entry for each age, in the order asked.
        warnings: Why all this may deserve less trust.
    """

    asked: AgesAsked
    given: ScanInTokens
    brain: Bool[np.ndarray, "x y z"]
    prepared: Volume
    reconstruction: Volume
    start: Volume
    psnr_db: float
    regions: SweepRegions
    made: tuple[BrainAtAge, ...]
    warnings: tuple[str, ...] = ()

    def change_to(self, one: BrainAtAge) -> Volume:
        """An age minus what it starts from: what the transformer changed, free of the tokenizer's errors."""
        return one.values - self.start

    @property
    def difference_against(self) -> str:
        """What changes are counted from, in words."""
        return _AGAINST[self.asked.sampling.detail or "none"]

    def to_json(self) -> dict[str, Any]:
        """All that is measured; no volumes."""
        asked = self.asked
        return {
            "age_years": asked.age_years,
            "sampling": {**asked.sampling.to_json(), "seed": asked.seed},
            "num_samples": asked.num_samples,
            "ages": [self._describe(one) for one in self.made],
            "difference_against": self.difference_against,
            "reconstruction": {
                "psnr_db": self.psnr_db,
                "mean_absolute_error": mean_absolute(self.reconstruction - self.prepared, self.brain),
            },
            "regions": self.regions.to_json(),
        }

    def _describe(self, one: BrainAtAge) -> dict[str, Any]:
        return {
            "age_years": one.age_years,
            "mean_absolute_difference": mean_absolute(self.change_to(one), self.brain),
            "changed_token_fraction": one.changed_fraction,
            **self.regions.describe_age(one.age_years),
        }


def sweep_ages(
    model: AgeingModel,
    given: ScanInTokens,
    asked: AgesAsked,
    *,
    warnings: Sequence[str] = (),
    track: Iterable[float] | None = None,
) -> AgeSweep:
    """Tells the brain at each age, each by itself: which others are asked for changes no bit.

    Args:
        model: Which.
        given: The scan, prepared and encoded: done once for all ages.
        asked: Ages that were checked.
        warnings: What is known by now.
        track: The target ages, where somebody watches them go by.

    Raises:
        GenerationError: samples that would all be the same.
    """
    asked = dataclasses.replace(asked, sampling=model.complete(asked.sampling))
    plain = reconstruct(model, given)
    psnr_db = measure_reconstruction(given, plain)
    made = [
        generate_at_age(
            model,
            given,
            (asked.age_years, target),
            sampling=asked.sampling,
            num_samples=asked.num_samples,
            seed=asked.seed,
        )
        for target in (asked.target_ages_years if track is None else track)
    ]
    return AgeSweep(
        asked=asked,
        given=given,
        brain=find_own_brain(given),
        prepared=_lay_prepared(given),
        reconstruction=given.restore(plain),
        start=given.restore(given.volume if asked.sampling.detail == "scan" else plain),
        psnr_db=psnr_db,
        regions=measure_regions(given, plain, made, from_scan=asked.sampling.detail == "scan"),
        made=tuple(made),
        warnings=(*warnings, *_judge_reconstruction(psnr_db)),
    )


def add_present(model: AgeingModel, sweep: AgeSweep) -> AgeSweep:
    """The same with the brain at the present age as the model tells it, where it was not asked for."""
    asked = sweep.asked
    if asked.age_years in asked.target_ages_years:
        return sweep
    now = dataclasses.replace(asked, target_ages_years=(asked.age_years,))
    first = sweep_ages(model, sweep.given, now)
    regions = dataclasses.replace(sweep.regions, ages={**first.regions.ages, **sweep.regions.ages})
    ages = (asked.age_years, *asked.target_ages_years)
    return dataclasses.replace(
        sweep,
        asked=dataclasses.replace(asked, target_ages_years=ages),
        made=(*first.made, *sweep.made),
        regions=regions,
    )


def _lay_prepared(given: ScanInTokens) -> Volume:
    values = np.nan_to_num(given.prepared.voxels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return given.lay(np.where(given.brain, values, 0).astype(np.float32))


def _judge_reconstruction(psnr_db: float) -> tuple[str, ...]:
    if psnr_db >= _LEAST_PSNR_DB:
        return ()
    told = f"this scan is reconstructed with {psnr_db:.1f} dB, less than the {_LEAST_PSNR_DB:g} that training asks for"
    return (f"{told}: of what the tokenizer cannot draw no change with age is told",)

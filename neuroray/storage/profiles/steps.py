"""The steps of each profile: pure functions from Prepared to Prepared, so that a graph can have one node for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from neuroray.storage.profiles.masks import mask_run
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import Profile, find_profile
from neuroray.storage.profiles.registration import align_to_template, correct_bias, resample_in_template
from neuroray.storage.profiles.statistics import measure_statistics
from neuroray.storage.scan import Scan, ScanError


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a profile; can be pickled, keeps no state, gives the same for the same.

    Attributes:
        name: What it does.
        apply: The function.
    """

    name: str
    apply: Callable[[Prepared], Prepared]

    def __call__(self, prepared: Prepared) -> Prepared:
        """Applies it."""
        return self.apply(prepared)


def steps(profile: Profile) -> tuple[Step, ...]:
    """The steps of a profile, in order; the first checks that the scan is of the kind that the profile is for.

    Raises:
        ProfileError: the profile is not known.
    """
    find_profile(profile.name)
    return _STEPS[profile.name]


def prepare(scan: Scan, profile: Profile) -> Prepared:
    """Takes a scan through all steps of a profile.

    Raises:
        ScanError: the scan is not of the kind that the profile is for, or cannot be masked or registered.
        ProfileError: the profile needs a package that is not installed.
    """
    prepared = Prepared(scan=scan, profile=profile)
    for step in steps(profile):
        prepared = step(prepared)
    return prepared


def _measure(prepared: Prepared) -> Prepared:
    return dataclasses.replace(prepared, statistics=measure_statistics(prepared.scan.voxels, prepared.mask))


def _require_run(prepared: Prepared) -> Prepared:
    if not prepared.scan.is_timeseries:
        raise ScanError(
            f"the profile {prepared.profile.name} is for runs, not for single volumes",
            given=f"one volume of {prepared.scan.grid_shape}",
            expected="a four-dimensional scan",
            fix="ingest volumes with the profile native, n4, mni_affine or mni_grid",
        )
    return prepared


def _require_volume(prepared: Prepared) -> Prepared:
    if prepared.scan.is_timeseries:
        raise ScanError(
            f"the profile {prepared.profile.name} is for single volumes, not for runs",
            given=f"{prepared.scan.num_frames} frames",
            expected="a three-dimensional scan",
            fix="ingest runs with the profile native or fmri_minimal",
        )
    return prepared


_STEPS: Final[dict[str, tuple[Step, ...]]] = {
    "native": (Step("measure statistics", _measure),),
    "n4": (
        Step("require a volume", _require_volume),
        Step("correct the bias field", correct_bias),
        Step("measure statistics", _measure),
    ),
    "mni_affine": (
        Step("require a volume", _require_volume),
        Step("correct the bias field", correct_bias),
        Step("align to the template", align_to_template),
        Step("measure statistics", _measure),
    ),
    "mni_grid": (
        Step("require a volume", _require_volume),
        Step("resample to the template's grid", resample_in_template),
        Step("measure statistics", _measure),
    ),
    "fmri_minimal": (
        Step("require a run", _require_run),
        Step("mask the brain", mask_run),
        Step("measure statistics", _measure),
    ),
}

"""Profile: which preprocessing a scan has had, as a name, a version and options with a hash of all that affects it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from neuroray.config import Config
from neuroray.errors import NeurorayError

NATIVE: Final = "native"
IN_TEMPLATE: Final = frozenset({"mni_affine", "mni_grid"})
"""Profiles after which voxels lie in MNI152, on the template's grid."""


class ProfileError(NeurorayError, ValueError):
    """A profile that is not known, or cannot be run or repeated here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile(Config):
    """What all profiles have.

    Attributes:
        name: The key in `PROFILES`.
        version: Of the algorithm; goes up with every change that can change a voxel, the mask or the statistics.
    """

    name: str
    version: int = 1

    @property
    def changes_values(self) -> bool:
        """Whether voxels are no longer the numbers of the file."""
        return False

    def made_with(self) -> dict[str, str]:
        """What besides the options decides about the result: versions of libraries, digests of templates.

        Raises:
            ProfileError: one of them is not installed.
        """
        return {}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of options, version and `made_with`.

        Raises:
            ProfileError: as `made_with`.
        """
        options = Config.fingerprint(self)
        parts = json.dumps({"options": options, "made_with": self.made_with()}, sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Native(Profile):
    """The scan as it was read: RAS+ order, no interpolation, no value changed."""

    name: Literal["native"] = NATIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasCorrected(Profile):
    """Volumes freed of the coil's smooth shading by N4 (Tustison et al. 2010), on their own grid.

    Attributes:
        shrink_factor: N4 estimates the field on every n-th voxel; the field is applied at full resolution.
        num_iterations: At most, per level of the spline.
    """

    name: Literal["n4"] = "n4"
    shrink_factor: int = 4
    num_iterations: tuple[int, ...] = (50, 50, 50, 50)

    def __post_init__(self) -> None:
        _check_bias_options(self.shrink_factor, self.num_iterations)

    @property
    def changes_values(self) -> bool:
        """They are divided by the shading."""
        return True

    def made_with(self) -> dict[str, str]:
        """The version of ANTs."""
        return {"antspyx": installed_version("antspyx")}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateAligned(Profile):
    """Volumes after N4, registered to MNI152 by an affine map (ANTs) and resampled to its grid, with its brain mask.

    Attributes:
        spacing_mm: Of the grid, which covers the template's field of view.
        shrink_factor: As in `n4`.
        num_iterations: As in `n4`.
        seed: Of the voxels that the registration samples.
    """

    name: Literal["mni_affine"] = "mni_affine"
    spacing_mm: float = 1.0
    shrink_factor: int = 4
    num_iterations: tuple[int, ...] = (50, 50, 50, 50)
    seed: int = 1

    def __post_init__(self) -> None:
        _check_bias_options(self.shrink_factor, self.num_iterations)
        _check_spacing(self.name, self.spacing_mm)
        if self.seed < 1:
            raise ProfileError(
                "mni_affine: ANTs takes a seed of 0 for the clock", given=self.seed, expected="1 or more"
            )

    @property
    def changes_values(self) -> bool:
        """They are divided by the shading, and resampled."""
        return True

    def made_with(self) -> dict[str, str]:
        """The version of ANTs, and the digest of the template's maps."""
        # Here, for a look at the profiles' names should not wait for what reads and makes templates.
        from neuroray.storage.profiles.template import template_sha256

        return {"antspyx": installed_version("antspyx"), "template_sha256": template_sha256()}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnTemplateGrid(Profile):
    """Volumes that others have brought to MNI152: resampled to the template's grid where they lie, with its brain mask.

    Attributes:
        spacing_mm: Of the grid, which covers the template's field of view.
    """

    name: Literal["mni_grid"] = "mni_grid"
    spacing_mm: float = 1.0

    def __post_init__(self) -> None:
        _check_spacing(self.name, self.spacing_mm)

    @property
    def changes_values(self) -> bool:
        """They are resampled."""
        return True

    def made_with(self) -> dict[str, str]:
        """The digest of the template's maps."""
        from neuroray.storage.profiles.template import template_sha256

        return {"template_sha256": template_sha256()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics(Profile):
    """Runs that others have preprocessed: voxels as they are, a brain mask, z-score statistics of the whole run in it.

    The mask: voxels that are not 0 in all frames, where the run comes masked; else nilearn's mask of the mean frame.
    """

    name: Literal["fmri_minimal"] = "fmri_minimal"

    def made_with(self) -> dict[str, str]:
        """The version of nilearn, which makes the mask of runs that have none."""
        return {"nilearn": installed_version("nilearn")}


def find_profile(name: str) -> Profile:
    """The profile of that name, with its default options; `dataclasses.replace` gives it others.

    Raises:
        ProfileError: there is none.
    """
    found = PROFILES.get(name)
    if found is None:
        raise ProfileError("there is no such profile", given=name, expected=f"one of {', '.join(PROFILES)}")
    return found


def parse_profile(data: dict[str, Any]) -> Profile:
    """The profile that `to_json` described.

    Raises:
        ProfileError: no profile of that name, or of a version that this neuroray has not.
        ConfigError: options that do not fit it.
    """
    known = find_profile(str(data.get("name")))
    found = type(known).from_json(data)
    if found.version != known.version:
        raise ProfileError(
            f"this neuroray has another version of the profile {known.name}",
            given=found.version,
            expected=known.version,
            fix="use the version of neuroray that prepared the scans, or ingest them again",
        )
    return found


def installed_version(package: str) -> str:
    """The version of a package that a profile runs on.

    Raises:
        ProfileError: it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install 'neuroray[ants]'" if package == "antspyx" else f"pip install {package}"
        raise ProfileError("this profile needs a package that is not installed", given=package, fix=fix) from None


def _check_spacing(name: str, spacing_mm: float) -> None:
    if not 1.0 <= spacing_mm <= 8.0:
        raise ProfileError(f"{name}: no such grid", given=f"{spacing_mm} mm", expected="1 to 8 mm")


def _check_bias_options(shrink_factor: int, num_iterations: tuple[int, ...]) -> None:
    if shrink_factor < 1 or not num_iterations or min(num_iterations) < 1:
        given = f"shrink_factor {shrink_factor}, num_iterations {num_iterations}"
        raise ProfileError("N4 cannot run so", given=given, expected="1 or more, and at least one level")


# Last, for to make them runs the checks above.
PROFILES: Final[dict[str, Profile]] = {
    "native": Native(),
    "n4": BiasCorrected(),
    "mni_affine": TemplateAligned(),
    "mni_grid": OnTemplateGrid(),
    "fmri_minimal": RunStatistics(),
}


NATIVE_SHA256: Final = PROFILES[NATIVE].fingerprint()

"""What a store writes down of a profile and of the way to a template, as JSON and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuroray.storage.profiles.profile import NATIVE, NATIVE_SHA256, Profile, ProfileError, find_profile, parse_profile
from neuroray.storage.profiles.transform import NativeGrid, TemplateTransform
from neuroray.storage.scan import SourceGrid


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProfile:
    """A profile as something was once prepared by it, here or elsewhere.

    Attributes:
        options: The profile itself, as `to_json` gives it: name, version, options.
        sha256: Its fingerprint then.
        made_with: Versions of libraries and digests of templates that it ran with.
    """

    options: dict[str, Any] = field(hash=False)
    sha256: str
    made_with: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The key in `PROFILES`."""
        return str(self.options["name"])

    @classmethod
    def of(cls, profile: Profile) -> StoredProfile:
        """What is to be written down of a profile that runs here.

        Raises:
            ProfileError: it does not run here.
        """
        return cls(options=profile.to_json(), sha256=profile.fingerprint(), made_with=profile.made_with())

    def restore(self) -> Profile:
        """The profile, able to run here with the same result.

        Raises:
            ProfileError: this neuroray, or what is installed, would give another result.
        """
        profile = parse_profile(self.options)
        if profile.fingerprint() != self.sha256:
            raise ProfileError(
                f"the profile {self.name} would not give the same result here",
                given=f"{_tell(profile.made_with())} (hash {profile.fingerprint()[:12]})",
                expected=f"{_tell(self.made_with)} (hash {self.sha256[:12]})",
                fix="install the versions that the scans were prepared with, or prepare the scans again",
            )
        return profile

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"options": self.options, "sha256": self.sha256, "made_with": self.made_with}

    @classmethod
    def from_json(cls, data: dict[str, Any] | None) -> StoredProfile:
        """What `to_json` described; native for None, which is how all was prepared before there were profiles."""
        if data is None:
            return cls(options=find_profile(NATIVE).to_json(), sha256=NATIVE_SHA256)
        return cls(options=data["options"], sha256=data["sha256"], made_with=data["made_with"])


def source_to_json(source: SourceGrid | None) -> dict[str, Any] | None:
    """All but the header's bytes."""
    if source is None:
        return None
    return {
        "format": source.format,
        "affine": source.affine.astype(np.float64).tolist(),
        "axis_order": list(source.axis_order),
        "axis_flip": list(source.axis_flip),
        "had_time_axis": source.had_time_axis,
    }


def source_from_json(data: dict[str, Any] | None, header: bytes) -> SourceGrid | None:
    """What `source_to_json` described, with the header's bytes."""
    if data is None:
        return None
    return SourceGrid(
        format=data["format"],
        header=header,
        affine=np.array(data["affine"], dtype=np.float64),
        axis_order=tuple(data["axis_order"]),
        axis_flip=tuple(data["axis_flip"]),
        had_time_axis=data["had_time_axis"],
    )


def transform_to_json(transform: TemplateTransform | None) -> dict[str, Any] | None:
    """All but the header's bytes of the native grid."""
    if transform is None:
        return None
    native = transform.native
    return {
        "template": transform.template,
        "affine": transform.affine.astype(np.float64).tolist(),
        "native": {
            "shape": list(native.shape),
            "affine": native.affine.astype(np.float64).tolist(),
            "source": source_to_json(native.source),
        },
    }


def transform_from_json(data: dict[str, Any], header: bytes) -> TemplateTransform:
    """What `transform_to_json` described, with the header's bytes."""
    native = data["native"]
    x, y, z = native["shape"]
    grid = NativeGrid(
        shape=(x, y, z),
        affine=np.array(native["affine"], dtype=np.float64),
        source=source_from_json(native["source"], header),
    )
    return TemplateTransform(template=data["template"], affine=np.array(data["affine"], np.float64), native=grid)


def _tell(made_with: dict[str, str]) -> str:
    return ", ".join(f"{name} {value[:12]}" for name, value in made_with.items()) or "no library"

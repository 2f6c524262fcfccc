"""Prepared: a scan on its way through a profile, with what the profile has found out about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from neuroray.storage.profiles.profile import Profile
from neuroray.storage.profiles.statistics import Statistics
from neuroray.storage.profiles.transform import TemplateTransform
from neuroray.storage.scan import Scan, ScanError


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a store keeps of a scan.

    Attributes:
        scan: The voxels, as the steps so far have left them.
        profile: The profile that they belong to.
        mask: The brain, on the scan's grid; None where the profile makes none.
        statistics: Of the values over the mask; None until they are measured, or where no voxel counts.
        to_template: Where the scan was resampled to a template: how to get there and back.
    """

    scan: Scan
    profile: Profile
    mask: Bool[np.ndarray, "x y z"] | None = None
    statistics: Statistics | None = None
    to_template: TemplateTransform | None = None

    def __post_init__(self) -> None:
        if self.mask is not None and (self.mask.shape != self.scan.grid_shape or self.mask.dtype != np.bool_):
            given = f"{self.mask.dtype} of shape {self.mask.shape}"
            raise ScanError("a mask does not fit its scan", given=given, expected=f"bool of {self.scan.grid_shape}")

"""Preprocessing profiles: named, versioned ways from a read scan to what a store keeps of it."""

from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import (
    IN_TEMPLATE,
    PROFILES,
    OnTemplateGrid,
    Profile,
    ProfileError,
    TemplateAligned,
    find_profile,
)
from neuroray.storage.profiles.statistics import Statistics
from neuroray.storage.profiles.steps import Step, prepare, steps
from neuroray.storage.profiles.transform import NativeGrid, TemplateTransform, carry_back, carry_mask, lay_back

__all__ = [
    "IN_TEMPLATE",
    "PROFILES",
    "NativeGrid",
    "OnTemplateGrid",
    "Prepared",
    "Profile",
    "ProfileError",
    "Statistics",
    "Step",
    "TemplateAligned",
    "TemplateTransform",
    "carry_back",
    "carry_mask",
    "find_profile",
    "lay_back",
    "prepare",
    "steps",
]

"""The selective scan of Mamba: one direction or both, channels last, on every device."""

from neuroray.kernels.selective_scan.api import (
    IMPLEMENTATIONS,
    ReverseDirection,
    bidirectional_selective_scan,
    choose_implementation,
    selective_scan,
)
from neuroray.kernels.selective_scan.mamba_signature import selective_scan_fn

__all__ = [
    "IMPLEMENTATIONS",
    "ReverseDirection",
    "bidirectional_selective_scan",
    "choose_implementation",
    "selective_scan",
    "selective_scan_fn",
]

"""The scanners of the cohort: gain, contrast, noise, grid and storage of each site."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One scanner and its habits.

    Attributes:
        gain: Stored number of pure white matter, before the scan's own variation.
        grey: T1 signal of grey matter, white matter = 1; likewise `csf` and `scalp`.
        noise: Standard deviation of each channel's thermal noise, white matter = 1.
        bias: Spread of the log of the bias field.
        thickness: Slice thickness over in-plane voxel size (T1w).
        tilt_deg: Spread of the angles by which operators tilt the grid; 0 for grids along the scanner's axes.
        axis_codes: Towards where the stored axes run.
        slope: Value per stored number (T1w); 1 stores values as they are.
        intercept: Value of a stored zero (T1w).
        repetition_time_s: Between frames of BOLD.
        echo_time_s: Of BOLD.
        field_strength_t: In tesla, for the sidecars.
    """

    name: str
    gain: float
    grey: float
    csf: float
    scalp: float
    noise: float
    bias: float
    thickness: float
    tilt_deg: float
    axis_codes: tuple[str, str, str]
    slope: float
    intercept: float
    repetition_time_s: float
    echo_time_s: float
    field_strength_t: float


SITES = (
    Site(
        name="north",
        gain=900.0,
        grey=0.74,
        csf=0.20,
        scalp=0.80,
        noise=0.020,
        bias=0.04,
        thickness=1.0,
        tilt_deg=0.0,
        axis_codes=("R", "A", "S"),
        slope=1.0,
        intercept=0.0,
        repetition_time_s=2.0,
        echo_time_s=0.030,
        field_strength_t=3.0,
    ),
    Site(
        name="east",
        gain=430.0,
        grey=0.72,
        csf=0.22,
        scalp=0.88,
        noise=0.030,
        bias=0.07,
        thickness=1.0,
        tilt_deg=1.5,
        axis_codes=("P", "S", "R"),
        slope=0.03125,
        intercept=600.0,
        repetition_time_s=2.0,
        echo_time_s=0.030,
        field_strength_t=3.0,
    ),
    Site(
        name="west",
        gain=260.0,
        grey=0.755,
        csf=0.24,
        scalp=0.75,
        noise=0.035,
        bias=0.05,
        thickness=1.2,
        tilt_deg=2.0,
        axis_codes=("L", "A", "S"),
        slope=1.0,
        intercept=0.0,
        repetition_time_s=2.4,
        echo_time_s=0.035,
        field_strength_t=1.5,
    ),
)

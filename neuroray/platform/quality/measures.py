"""What each number of the quality page is called, in which unit, what it means and where its definition comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number per scan.

    Attributes:
        label: In a table.
        better: Which way is good; None where only being unusual says something.
        definition: In one or two sentences, with its source.
        unit: Empty for a ratio.
        digits: After the point.
        is_judged: Whether scans that stand apart in it are told. The others stand in the table alone: of many numbers
            that say nearly the same, one is enough to raise an alarm.
    """

    label: str
    better: Literal["higher", "lower"] | None
    definition: str
    unit: str = ""
    digits: int = 2
    is_judged: bool = True


_MRIQC = "MRIQC, Esteban et al. 2017"
_BOTH: Final = {
    "snr": Measure(
        label="SNR",
        better="higher",
        definition="Median over standard deviation inside the brain mask, where one is stored, else inside the head "
        f"(of a run: of its mean image). The formula is that of {_MRIQC}; contrast between tissues counts as noise.",
    ),
    "snrd": Measure(
        label="SNR against air",
        better="higher",
        definition="Median inside over the noise of the air, corrected for its Rayleigh distribution "
        f"(Dietrich et al. 2007; snrd of {_MRIQC}). Not defined where the background was set to zero.",
        digits=1,
    ),
    "fber": Measure(
        label="Head-air energy ratio",
        better="higher",
        definition=f"FBER: median energy (square) in the head over that in the air ({_MRIQC}, after QAP). Not defined "
        "where the background was set to zero.",
        digits=0,
    ),
    "efc": Measure(
        label="Entropy focus",
        better="lower",
        definition="EFC: Shannon entropy of how the energy spreads over voxels, 0 to 1; ghosts and blur by motion "
        f"raise it (Atkinson et al. 1997, normalised as in {_MRIQC}). All voxels of the image count, so it also "
        "depends on the field of view.",
        digits=3,
    ),
    "fwhm_avg": Measure(
        label="Smoothness",
        better=None,
        definition="Full width at half maximum of the smoothing that would give neighbouring voxels this likeness, "
        f"mean of the three axes, inside (Forman et al. 1995, as AFNI's 3dFWHMx and {_MRIQC}, without detrending).",
        unit="mm",
    ),
    "summary_fg_median": Measure(
        label="Median inside",
        better=None,
        definition="Median value inside the brain mask, where one is stored, else the head. In the file's own units.",
        digits=0,
    ),
    "summary_fg_p95": Measure(
        label="95th percentile inside",
        better=None,
        definition="95th percentile of the same values.",
        digits=0,
    ),
    "summary_bg_median": Measure(
        label="Median of the air",
        better="lower",
        definition="Median value farther than 8 mm from the head.",
        digits=1,
        is_judged=False,
    ),
    "head_cut_top": Measure(
        label="Head cut at the top",
        better="lower",
        definition="Area of the head in the uppermost plane over its largest area; above 0.05 the top of the head lies "
        "outside the image.",
        is_judged=False,
    ),
}
_RUN: Final = {
    "tsnr": Measure(
        label="Temporal SNR",
        better="higher",
        definition="Median over the mask of mean over standard deviation in time (Krüger and Glover 2001). Frames are "
        "taken as stored: MRIQC realigns them first and finds more.",
        digits=1,
    ),
    "dvars_nstd": Measure(
        label="DVARS",
        better="lower",
        definition="Mean over the run of the root mean square change from frame to frame inside the mask, scaled so "
        "that the median of the mean image is 1000: 10 is 1 % (Power et al. 2012).",
        digits=1,
    ),
    "dvars_std": Measure(
        label="DVARS, standardised",
        better="lower",
        definition="The same over what is expected of a run of this spread and autocorrelation (Nichols, arXiv "
        "1704.01469); 1 is usual. Spread and autocorrelation are those of at most 4,000 voxels evenly spread.",
    ),
    "gcor": Measure(
        label="Global correlation",
        better=None,
        definition="Mean correlation in time of all pairs of voxels in the mask (Saad et al. 2013).",
        digits=3,
    ),
    "fd_mean": Measure(
        label="Motion, mean FD",
        better="lower",
        definition="Mean framewise displacement: the changes of three shifts and three turns added up, turns as arcs "
        "on a sphere of 50 mm (Power et al. 2012); motion by rigid realignment to the mean image.",
        unit="mm",
    ),
    "fd_max": Measure(
        label="Motion, largest FD", better="lower", definition="The largest step.", unit="mm", is_judged=False
    ),
    "fd_perc": Measure(
        label="Frames with FD > 0.2 mm",
        better="lower",
        definition=f"Share of steps above 0.2 mm (the threshold of {_MRIQC}).",
        unit="%",
        digits=0,
        is_judged=False,
    ),
    "num_frozen": Measure(
        label="Frozen frames",
        better="lower",
        definition="Frames whose every voxel equals that of the frame before. One is a fault.",
        digits=0,
        is_judged=False,
    ),
}
_FREE: Final = {
    "num_nonfinite": Measure(
        label="Not finite",
        better="lower",
        definition="Values stored as NaN or infinite; they count as 0 in all else.",
        digits=0,
        is_judged=False,
    ),
}

MEASURES: Final[dict[str, Measure]] = {**_RUN, **_BOTH, **_FREE}
"""By name; those of MRIQC have its names."""
RUN_ONLY: Final = frozenset(_RUN)


def tell(name: str, value: float | None) -> str:
    """A value as it stands in a table."""
    measure = MEASURES[name]
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,.{measure.digits}f}" + (f" {measure.unit}" if measure.unit else "")

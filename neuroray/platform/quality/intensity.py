"""Measures of a volume, by names and definitions of MRIQC (Esteban et al., PLoS ONE 2017) where they are the same."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from neuroray.platform.evaluate.faces import touch_fraction
from neuroray.platform.quality.regions import Regions

_MAD_TO_SD = 1.4826
# Of the magnitude of complex Gaussian noise: its standard deviation is this times that of the noise (Dietrich 2007).
_RAYLEIGH = math.sqrt(2 - math.pi / 2)


def measure_volume(
    volume: Float[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float], regions: Regions
) -> dict[str, float | None]:
    """All measures of one volume without NaN; None where one is not defined for it."""
    inside, air = volume[regions.inside], volume[regions.air]
    return {
        "efc": entropy_focus(volume),
        "fber": energy_ratio(volume[regions.head], air),
        "snr": signal_to_noise(inside),
        "snrd": signal_to_air_noise(inside, air),
        **smoothness(volume, spacing_mm, regions.inside),
        **_summarise(inside, "fg"),
        **_summarise(air, "bg"),
        "head_cut_top": touch_fraction(regions.head),
    }


def entropy_focus(volume: Float[np.ndarray, ...]) -> float | None:
    """Entropy of the energy's spread over voxels, as a share of the most there can be (Atkinson et al. 1997).

    0: all energy in one voxel; 1: all voxels alike. Ghosts and blurring by motion raise it. None for an empty image.
    """
    energy = np.sqrt(np.sum(np.square(volume, dtype=np.float64)))
    if energy == 0 or volume.size < 2:
        return None
    share = np.abs(volume.astype(np.float64)) / energy
    most = math.sqrt(volume.size) * math.log(math.sqrt(volume.size))
    return float(-np.sum(share * np.log(share + 1e-16 / energy)) / most)


def energy_ratio(head: Float[np.ndarray, " voxel"], air: Float[np.ndarray, " voxel"]) -> float | None:
    """Median energy in the head over that in the air (QAP's and MRIQC's FBER); None without air, or with silent air."""
    if not len(head) or not len(air):
        return None
    background = float(np.median(np.square(air, dtype=np.float64)))
    return float(np.median(np.square(head, dtype=np.float64))) / background if background > 1e-3 else None


def signal_to_noise(inside: Float[np.ndarray, " voxel"]) -> float | None:
    """Median over standard deviation (n - 1) inside: tissue contrast counts as noise, so it compares only alike."""
    spread = float(np.std(inside, ddof=1, dtype=np.float64)) if len(inside) > 1 else 0.0
    return float(np.median(inside)) / spread if spread > 0 else None


def signal_to_air_noise(inside: Float[np.ndarray, " voxel"], air: Float[np.ndarray, " voxel"]) -> float | None:
    """Median inside over the noise of the air, corrected for its Rayleigh distribution (Dietrich et al. 2007)."""
    if not len(inside) or not len(air):
        return None
    spread = _mad(air) or float(np.std(air, dtype=np.float64))
    return float(np.median(inside)) * _RAYLEIGH / spread if spread > 0 else None


def smoothness(
    volume: Float[np.ndarray, "x y z"], spacing_mm: tuple[float, float, float], inside: Bool[np.ndarray, "x y z"]
) -> dict[str, float | None]:
    """`fwhm_x`, `_y`, `_z`, `_avg` in mm: the smoothing that would give neighbours this likeness (Forman et al. 1995).

    `spacing sqrt(-2 ln 2 / ln(1 - var(difference) / (2 var)))`. None along an axis where neighbours are no more alike
    than by chance.
    """
    spread = float(np.var(volume[inside], dtype=np.float64)) if inside.any() else 0.0
    widths: list[float | None] = []
    for axis, spacing in enumerate(spacing_mm):
        ahead, behind = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(None, -1),)
        pairs = inside[ahead] & inside[behind]
        steps = volume[ahead][pairs].astype(np.float64) - volume[behind][pairs]
        rough = float(np.var(steps)) / (2 * spread) if pairs.any() and spread > 0 else 1.0
        widths.append(spacing * math.sqrt(-2 * math.log(2) / math.log(1 - rough)) if 0 < rough < 1 else None)
    known = [width for width in widths if width is not None]
    mean = sum(known) / 3 if len(known) == 3 else None
    return dict(zip(("fwhm_x", "fwhm_y", "fwhm_z", "fwhm_avg"), (*widths, mean), strict=True))


def _summarise(values: Float[np.ndarray, " voxel"], name: str) -> dict[str, float | None]:
    """MRIQC's `summary_fg_*` and `summary_bg_*`."""
    names = ("mean", "stdv", "median", "mad", "p05", "p95", "k")
    if not len(values):
        return dict.fromkeys((f"summary_{name}_{one}" for one in names), None)
    numbers = values.astype(np.float64)
    mean, deviation = float(numbers.mean()), float(numbers.std())
    kurtosis = float(np.mean(((numbers - mean) / deviation) ** 4) - 3) if deviation > 0 else None
    p05, median, p95 = np.percentile(numbers, [5, 50, 95])
    found = (mean, deviation, float(median), _mad(numbers), float(p05), float(p95), kurtosis)
    return {f"summary_{name}_{one}": value for one, value in zip(names, found, strict=True)}


def _mad(values: Float[np.ndarray, " voxel"]) -> float:
    """Median absolute deviation, scaled to the standard deviation of a normal distribution."""
    return float(_MAD_TO_SD * np.median(np.abs(values - np.median(values))))

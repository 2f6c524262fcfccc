"""Smooth velocity fields that widen ventricles, thin the cortex and shrink the medial temporal lobe.

A field is the gradient of a potential whose Laplacian is the wanted rate of volume change: tissue that is lost has a
negative rate, fluid that takes its place a positive one, and both sum to zero, so that the skull stays where it is.
Planting a volume change and solving for the displacement follows Karacali and Davatzikos 2006; the fields here are
curl-free, so that each needs a single Poisson solve.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from scipy import fft, ndimage

from neuroray.storage.simulate.regions import REGION_SPACING_MM, load_regions
from neuroray.storage.simulate.template import Volume, load_template

_SMOOTHING_MM = 2.5
_MEDIAL_TEMPORAL_REACH_MM = 7.0  # fluid this near to the shrinking tissue takes its place
_CORTEX_REACH_MM = 5.0  # ... and sulcal fluid that of thinning cortex
_VENTRICLE_REACH_MM = 9.0  # tissue this near to the ventricles gives way to them

_SCARCE = 0.05  # where less than this fraction of takers is around, the change goes further

Field = Float32[np.ndarray, "3 x y z"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtrophyFields:
    """Velocities in mm per unit of strength on the grid of the regions, each pointing the way tissue moves.

    Attributes:
        ventricles: Unit strength grows the ventricles' fluid by a rate of 1 (a factor e), less what smoothing takes.
        cortex: Unit strength shrinks cortical grey matter by a rate of 1, of which smoothing over the thin ribbon
            leaves about a seventh.
        medial_temporal: Unit strength shrinks the medial temporal region by a rate of 1, less what smoothing takes.
    """

    ventricles: Field
    cortex: Field
    medial_temporal: Field


@functools.lru_cache(maxsize=1)
def load_atrophy_fields() -> AtrophyFields:
    """The three fields, kept in memory."""
    template, regions = load_template(REGION_SPACING_MM), load_regions()
    fluid = template.csf * (1 - regions.ventricles)
    temporal_fluid = np.maximum(fluid, regions.temporal_horn)
    return AtrophyFields(
        ventricles=_solve(
            gains=regions.ventricles,
            losses=_share_out(regions.ventricles, template.white + 0.5 * template.grey, _VENTRICLE_REACH_MM),
        ),
        cortex=_solve(gains=_share_out(regions.cortex, fluid, _CORTEX_REACH_MM), losses=regions.cortex),
        medial_temporal=_solve(
            gains=_share_out(regions.medial_temporal, temporal_fluid, _MEDIAL_TEMPORAL_REACH_MM),
            losses=regions.medial_temporal,
        ),
    )


def combine(*, ventricles: float, cortex: float, medial_temporal: float) -> Field:
    """The velocity of one person: each field times its strength."""
    fields = load_atrophy_fields()
    velocity = np.float32(ventricles) * fields.ventricles
    velocity += np.float32(cortex) * fields.cortex
    velocity += np.float32(medial_temporal) * fields.medial_temporal
    return velocity


def _share_out(change: Volume, takers: Volume, reach_mm: float) -> Volume:
    """Each voxel's change, given to the takers around it in proportion to what is there of them; the sum stays."""
    there = _blur(takers, reach_mm)
    shared = takers * _blur(change / (there + np.float32(_SCARCE)), reach_mm)
    return shared * np.float32(change.sum() / shared.sum())


def _solve(*, gains: Volume, losses: Volume) -> Field:
    """The gradient field whose divergence is `gains - losses`, which must balance."""
    potential = _solve_poisson(_blur(gains - losses, _SMOOTHING_MM))
    return np.stack([*np.gradient(potential, REGION_SPACING_MM)]).astype(np.float32)


def _solve_poisson(divergence: Volume) -> Volume:
    """Solves laplacian(potential) = divergence with no flow through the box's faces, by cosine transforms."""
    spectrum = np.asarray(fft.dctn(divergence.astype(np.float64), type=2, norm="ortho"))
    eigenvalues = np.zeros(divergence.shape)
    for axis, count in enumerate(divergence.shape):
        along = (2 * np.cos(np.pi * np.arange(count) / count) - 2) / REGION_SPACING_MM**2
        eigenvalues += along.reshape([-1 if axis == other else 1 for other in range(3)])
    eigenvalues[0, 0, 0] = 1
    spectrum /= eigenvalues
    spectrum[0, 0, 0] = 0
    return np.asarray(fft.idctn(spectrum, type=2, norm="ortho"))


def _blur(values: Volume, sigma_mm: float) -> Volume:
    return ndimage.gaussian_filter(values, sigma_mm / REGION_SPACING_MM, mode="nearest")

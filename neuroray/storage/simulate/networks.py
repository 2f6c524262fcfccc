"""Seven functional networks in the template's grey matter, and how strongly a person's networks are coupled."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from neuroray.storage.simulate.anatomy import Affine
from neuroray.storage.simulate.deformation import affine_points
from neuroray.storage.simulate.people import CohortConfig, Person
from neuroray.storage.simulate.regions import REGION_SPACING_MM
from neuroray.storage.simulate.streams import Stream, open_stream
from neuroray.storage.simulate.template import SimulationError, find_data_file, load_template, thin_out

_THINNING = 2  # network maps have half the resolution of the regions'
_SPACING_MM = REGION_SPACING_MM * _THINNING

# Our name: the names of its parts in the ROI table of Seitzman et al. 2020 (https://doi.org/10.1016/j.neuroimage.2019.116290).
_PARTS = {
    "visual": ("Visual",),
    "somatomotor": ("SomatomotorDorsal", "SomatomotorLateral"),
    "auditory": ("Auditory",),
    "dorsal_attention": ("DorsalAttention",),
    "cingulo_opercular": ("CinguloOpercular", "Salience"),
    "frontoparietal": ("FrontoParietal",),
    "default_mode": ("DefaultMode",),
}
NETWORKS = tuple(_PARTS)
_ROI_FILE = "seitzman_2018_ROIs_300inVol_MNI_allInfo.txt"
_ROI_WIDTH_MM = 6.0
_BACKGROUND = 0.05  # what a voxel far from all ROIs belongs to more than to any network

_TYPICAL = {
    ("visual", "somatomotor"): 0.30,
    ("visual", "auditory"): 0.20,
    ("visual", "dorsal_attention"): 0.35,
    ("somatomotor", "auditory"): 0.45,
    ("somatomotor", "dorsal_attention"): 0.30,
    ("somatomotor", "cingulo_opercular"): 0.25,
    ("auditory", "cingulo_opercular"): 0.20,
    ("dorsal_attention", "cingulo_opercular"): 0.20,
    ("dorsal_attention", "frontoparietal"): 0.25,
    ("cingulo_opercular", "frontoparietal"): 0.25,
    ("dorsal_attention", "default_mode"): -0.25,
    ("cingulo_opercular", "default_mode"): -0.10,
    ("frontoparietal", "default_mode"): 0.10,
}
# What is added for a man and taken away for a woman; what one standard deviation of cognition adds.
_SEX = {
    ("visual", "frontoparietal"): 0.22,
    ("somatomotor", "default_mode"): -0.22,
    ("auditory", "cingulo_opercular"): 0.18,
    ("visual", "default_mode"): -0.15,
}
_COGNITION = {
    ("frontoparietal", "default_mode"): 0.20,
    ("dorsal_attention", "frontoparietal"): 0.16,
    ("visual", "auditory"): -0.16,
    ("somatomotor", "frontoparietal"): -0.18,
}
_INDIVIDUAL_SPREAD = 0.07
_MIN_EIGENVALUE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkMaps:
    """How much each grey-matter voxel of the template belongs to each network (0 to 1), left and right apart."""

    left: Float32[np.ndarray, "network x y z"]
    right: Float32[np.ndarray, "network x y z"]
    affine: Affine


@functools.lru_cache(maxsize=1)
def load_network_maps() -> NetworkMaps:
    """Soft parcels around the ROIs of each network, kept in memory."""
    template = load_template(REGION_SPACING_MM)
    grey = thin_out(template.grey, _THINNING)
    affine = template.affine @ np.diag([_THINNING, _THINNING, _THINNING, 1.0])
    x, y, z = affine_points(affine, grey.shape)
    pull = np.zeros((len(NETWORKS), *x.shape), dtype=np.float32)
    for centre, network in _read_rois():
        near = _box_around(centre, affine, x.shape)
        distance2 = (x[near] - centre[0]) ** 2 + (y[near] - centre[1]) ** 2 + (z[near] - centre[2]) ** 2
        pull[network][near] += np.exp(-distance2 / (2 * _ROI_WIDTH_MM**2))
    share = pull**2 / ((pull**2).sum(axis=0) + _BACKGROUND**2) * grey
    rightness = np.clip(0.5 + x / 8, 0, 1)
    return NetworkMaps(left=share * (1 - rightness), right=share * rightness, affine=affine)


def couple_networks(config: CohortConfig, person: Person) -> Float[np.ndarray, "network network"]:
    """The person's true correlations between networks: typical, with what sex, cognition and chance make of them."""
    stream = open_stream(config.seed, Stream.CONNECTIVITY, person.index)
    matrix = _fill(_TYPICAL)
    matrix += config.coupling_effect * (1 if person.sex == "M" else -1) * _fill(_SEX)
    matrix += config.coupling_effect * (person.cognition - 100) / 15 * _fill(_COGNITION)
    noise = stream.normal(0, _INDIVIDUAL_SPREAD, matrix.shape)
    matrix += (np.triu(noise, 1) + np.triu(noise, 1).T) + np.eye(len(NETWORKS))
    return _nearest_correlation(matrix)


def coupling_effects() -> dict[str, list[dict[str, object]]]:
    """The planted effects by pair of networks, for the ground truth."""
    named = {"typical": _TYPICAL, "plus_for_men_minus_for_women": _SEX, "per_15_points_of_cognition": _COGNITION}
    return {
        name: [{"networks": list(pair), "correlation": value} for pair, value in effects.items()]
        for name, effects in named.items()
    }


def _read_rois() -> list[tuple[tuple[float, float, float], int]]:
    owner = {part: index for index, parts in enumerate(_PARTS.values()) for part in parts}
    rois = []
    for line in find_data_file(_ROI_FILE).read_text().splitlines()[1:]:
        x, y, z, _, _, name = line.split()
        if name in owner:
            rois.append(((float(x), float(y), float(z)), owner[name]))
    if {network for _, network in rois} != set(range(len(NETWORKS))):
        raise SimulationError(f"{_ROI_FILE} lacks ROIs of some networks", expected=", ".join(owner))
    return rois


def _box_around(centre: tuple[float, ...], affine: Affine, shape: tuple[int, ...]) -> tuple[slice, ...]:
    reach = 4 * _ROI_WIDTH_MM / _SPACING_MM
    middle = [(centre[axis] - affine[axis, 3]) / _SPACING_MM for axis in range(3)]
    return tuple(
        slice(max(0, int(at - reach)), min(count, int(at + reach) + 2)) for at, count in zip(middle, shape, strict=True)
    )


def _fill(pairs: dict[tuple[str, str], float]) -> Float[np.ndarray, "network network"]:
    matrix = np.zeros((len(NETWORKS), len(NETWORKS)))
    for (first, second), value in pairs.items():
        i, j = NETWORKS.index(first), NETWORKS.index(second)
        matrix[i, j] = matrix[j, i] = value
    return matrix


def _nearest_correlation(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """Lifts eigenvalues that are too small, then scales the diagonal back to one."""
    values, vectors = np.linalg.eigh(matrix)
    lifted = (vectors * np.maximum(values, _MIN_EIGENVALUE)) @ vectors.T
    scale = 1 / np.sqrt(np.diag(lifted))
    return lifted * scale[:, None] * scale

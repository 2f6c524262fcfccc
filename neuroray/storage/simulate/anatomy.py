"""One person's head at one visit: where each point lies in the template, and what tissue is there."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neuroray.storage.simulate import atrophy, deformation
from neuroray.storage.simulate.people import BrainState, CohortConfig, Person, age_brain
from neuroray.storage.simulate.regions import REGION_SPACING_MM, load_regions
from neuroray.storage.simulate.streams import Stream, open_stream
from neuroray.storage.simulate.template import Volume, load_template

_FAMILY_SHARE = 0.5  # of the variance of shape


Affine = Float[np.ndarray, "4 4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The shape of one head at one visit, before it lies down in a scanner.

    Attributes:
        state: What age and disease have done.
        stretch: Undeformed template mm to the head's own mm, a scaling.
        controls: Control points of the random field, the same at every visit.
        displacement: From the undeformed template to the template, what `deformation.deform` gave.
    """

    state: BrainState
    stretch: Affine
    controls: deformation.Controls
    displacement: deformation.Points

    def map_grid(self, affine: Affine, shape: tuple[int, int, int]) -> deformation.Points:
        """Template mm of every voxel of a grid that is given in the head's own mm."""
        return deformation.map_to_template(np.linalg.inv(self.stretch) @ affine, shape, self.displacement)


def grow_head(config: CohortConfig, person: Person, visit_index: int) -> Head:
    """The head of a person at a visit; only what age and disease do differs between visits."""
    state = age_brain(config, person, visit_index)
    controls = draw_shape(config, person)
    velocity = atrophy.combine(ventricles=state.ventricles, cortex=state.cortex, medial_temporal=state.medial_temporal)
    return Head(
        state=state,
        stretch=np.eye(4) if config.registered else np.diag([*person.scales, 1.0]),
        controls=controls,
        displacement=deformation.deform(controls, velocity),
    )


def draw_shape(config: CohortConfig, person: Person) -> deformation.Controls:
    """What makes a head differ from others: one part shared with siblings, one part the person's own."""
    return deformation.draw_controls(
        open_stream(config.seed, Stream.FAMILY_SHAPE, person.family_index),
        open_stream(config.seed, Stream.OWN_SHAPE, person.index),
        shares=(_FAMILY_SHARE, 1 - _FAMILY_SHARE),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissues:
    """The template's fractions, and the parts of them that change hands, on one grid.

    Attributes:
        maps: By name: grey, white, csf, bone, scalp, detail; `sulcal`, `medial_temporal`, `horn_grey`, `horn_white`
            (tissue that can give way to fluid), `periventricular` (white matter that can darken).
        affine: Voxel indices to template mm.
    """

    maps: dict[str, Volume]
    affine: Affine

    def blend(self, weights: dict[str, float]) -> Volume:
        """The sum of maps times weights."""
        total = np.zeros(self.maps["grey"].shape, dtype=np.float32)
        for name, weight in weights.items():
            if weight:
                total += np.float32(weight) * self.maps[name]
        return total

    def warp(self, weights: dict[str, float], points_mm: deformation.Points) -> Volume:
        """A blend at these template mm. Blending first costs one interpolation whatever the number of maps."""
        return deformation.sample(self.blend(weights), deformation.to_index(points_mm, self.affine))


@functools.lru_cache(maxsize=4)
def load_tissues(spacing_mm: float) -> Tissues:
    """All maps on the template's grid of this spacing, kept in memory."""
    template, regions = load_template(spacing_mm), load_regions()
    region_affine = load_template(REGION_SPACING_MM).affine
    points = deformation.affine_points(template.affine, template.grey.shape)
    index = deformation.to_index(points, region_affine)
    maps = {name: getattr(template, name) for name in ("grey", "white", "csf", "bone", "scalp", "detail")}
    for name in ("sulcal", "medial_temporal", "periventricular"):
        maps[name] = deformation.sample(getattr(regions, name), index)
    horn = deformation.sample(regions.temporal_horn, index)
    maps |= {"horn_grey": horn * (maps["grey"] - maps["medial_temporal"]), "horn_white": horn * maps["white"]}
    return Tissues(maps=maps, affine=template.affine)


def load_tissues_for(scan_spacing_mm: float) -> Tissues:
    """Maps for scans of this spacing: somewhat finer, because sampling between voxels blurs once more."""
    return load_tissues(max(1.0, round(0.7 * scan_spacing_mm, 3)))


def tissue_weights(state: BrainState) -> dict[str, dict[str, float]]:
    """Weights for `Tissues.blend` that give this brain's grey matter, white matter and fluid."""
    lost_grey = {
        "sulcal": state.sulcal_loss_fraction,
        "medial_temporal": state.medial_temporal_loss_fraction,
        "horn_grey": state.horn_fraction,
    }
    lost_white = {"horn_white": state.horn_fraction}
    return {
        "grey": {"grey": 1.0, **{name: -fraction for name, fraction in lost_grey.items()}},
        "white": {"white": 1.0, **{name: -fraction for name, fraction in lost_white.items()}},
        "csf": {"csf": 1.0, **lost_grey, **lost_white},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """What a head holds, in mL, and how far its map is from folding (`min_jacobian` > 0: it does not)."""

    grey_ml: float
    white_ml: float
    csf_ml: float
    ventricles_ml: float
    cortex_ml: float
    medial_temporal_ml: float
    min_jacobian: float


def measure_head(head: Head) -> Volumes:
    """Volumes by sampling the head on the displacement's own grid, whatever the spacing of its scans."""
    tissues, regions = load_tissues(REGION_SPACING_MM), load_regions()
    points = deformation.affine_points(deformation.AFFINE, deformation.SHAPE) + head.displacement
    index = deformation.to_index(points, tissues.affine)
    voxel_ml = deformation.SPACING_MM**3 * np.linalg.det(head.stretch) / 1000

    def total_ml(values: Volume) -> float:
        return float(deformation.sample(values, index).sum(dtype=np.float64) * voxel_ml)

    weights = tissue_weights(head.state)
    lost = {name: weights["csf"][name] for name in ("sulcal", "medial_temporal")}
    return Volumes(
        **{f"{name}_ml": total_ml(tissues.blend(weights[name])) for name in ("grey", "white", "csf")},
        ventricles_ml=total_ml(regions.ventricles),
        cortex_ml=total_ml(regions.cortex - lost["sulcal"] * regions.sulcal),
        medial_temporal_ml=total_ml((1 - lost["medial_temporal"]) * regions.medial_temporal),
        min_jacobian=float(deformation.jacobian(points, deformation.AFFINE)[1:-1, 1:-1, 1:-1].min()),
    )

"""Tissue classes in MNI152 space, from the tissue maps that come with nilearn: nothing is downloaded."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int

from neuroray.storage.simulate.regions import REGION_SPACING_MM, load_regions
from neuroray.storage.simulate.template import load_template

TISSUES = (
    "grey matter",
    "medial temporal grey matter",
    "white matter",
    "ventricles",
    "fluid around the brain",
    "outside the brain",
)
"""What `label_tissues` counts from 1. The last one is skull, scalp and air, and all beyond the template."""


def label_tissues(shape: tuple[int, int, int], affine: Float[np.ndarray, "4 4"]) -> Int[np.ndarray, "x y z"]:
    """The tissue of each voxel, counted from 1 in the order of `TISSUES`: what most of its place is in the template.

    Only where the affine leads to MNI152 space, and there as well as people's anatomy is the template's.
    """
    template, template_affine = _label_template()
    to_index = np.linalg.inv(template_affine) @ affine
    labels = np.full(shape, len(TISSUES), dtype=np.int16)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    place = np.rint(index @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
    within = ((place >= 0) & (place < template.shape)).all(axis=-1)
    labels[within] = template[tuple(place[within].T)]
    return labels


@functools.lru_cache(maxsize=1)
def _label_template() -> tuple[Int[np.ndarray, "x y z"], Float[np.ndarray, "4 4"]]:
    template, regions = load_template(REGION_SPACING_MM), load_regions()
    is_temporal = regions.medial_temporal > template.grey / 2
    # In the order of TISSUES; of what is alike in two, the first is taken.
    shares = np.stack(
        [
            template.grey * ~is_temporal,
            template.grey * is_temporal,
            template.white,
            template.csf * (regions.ventricles > 0),
            template.csf * (regions.ventricles <= 0),
            template.bone + template.scalp + (template.grey + template.white + template.csf <= 0),
        ]
    )
    labels = (shares.argmax(axis=0) + 1).astype(np.int16)
    labels.flags.writeable = False
    return labels, template.affine

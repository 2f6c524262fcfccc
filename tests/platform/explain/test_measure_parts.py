"""Parts of a map: totals add up whatever the grid, and a map that lies in one tissue is found there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from neuroray.platform.data.tissues import TISSUES, label_tissues
from neuroray.platform.explain.measure_parts import coarsen, share_parts


@dataclass(frozen=True)
class SomeMap:
    values: np.ndarray

    @property
    def magnitudes(self):
        return np.abs(self.values)


def grid(spacing_mm, shape):
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -np.array(spacing_mm) * (np.array(shape) - 1) / 2
    return affine


@pytest.mark.parametrize("spacing_mm", [(0.7, 1.0, 1.3), (1.0, 1.0, 1.0), (2.0, 3.0, 5.0)])
def test_blocks_keep_sums_and_the_place_in_the_world(spacing_mm):
    values = np.random.default_rng(0).normal(size=(31, 22, 13))
    affine = grid(spacing_mm, values.shape)
    coarse = coarsen(SomeMap(values), affine)
    assert coarse.values.sum() == pytest.approx(values.sum(), abs=1e-9)
    assert coarse.magnitudes.sum() == pytest.approx(np.abs(values).sum(), abs=1e-9)
    spike = np.zeros(values.shape)
    spike[17, 9, 5] = 1
    found = coarsen(SomeMap(spike), affine)
    place = found.affine @ [*np.argwhere(found.values)[0], 1.0]
    true = affine @ [17, 9, 5, 1.0]
    # No further than half a block away.
    assert (np.abs(place - true)[:3] <= 1.5).all()


@pytest.mark.parametrize(
    ("spacing_mm", "field_mm"), [(1.0, (90, 90, 160)), (2.0, (196, 232, 188)), (4.0, (196, 232, 188))]
)
def test_a_map_in_one_tissue_lies_in_that_tissue(spacing_mm, field_mm):
    shape = tuple(int(length / spacing_mm) for length in field_mm)
    affine = grid([spacing_mm] * 3, shape)
    labels = label_tissues(shape, affine)
    for number, name in ((4, "ventricles"), (3, "white matter"), (6, "outside the brain")):
        values = np.where(labels == number, -1.0, 0.0)
        shares = {share.name: share for share in share_parts(SomeMap(values), affine)["tissues"]}
        assert TISSUES[number - 1] == name
        # Blocks of 1 mm voxels reach over borders.
        assert shares[name].magnitude_fraction > (0.999 if spacing_mm > 1 else 0.75)
        assert sum(share.total for share in shares.values()) == pytest.approx(values.sum(), rel=1e-9)


def test_the_template_has_its_tissues_where_anatomists_have_them():
    known = {
        (28, -30, 30): "white matter",
        (26, -20, -16): "medial temporal grey matter",
        (6, 6, 10): "ventricles",
        (-12, -70, -40): "grey matter",  # cerebellum
        (0, 0, 130): "outside the brain",
    }
    for place, name in known.items():
        affine = np.eye(4)
        affine[:3, 3] = place
        assert TISSUES[label_tissues((1, 1, 1), affine)[0, 0, 0] - 1] == name, place

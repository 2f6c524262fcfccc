"""Displacements and the atrophy that drives them."""

from __future__ import annotations

import numpy as np
import pytest

from neuroray.storage.simulate import atrophy, deformation
from neuroray.storage.simulate.regions import REGION_SPACING_MM, load_regions
from neuroray.storage.simulate.template import load_template, thin_out


def test_without_displacement_the_map_is_affine() -> None:
    matrix = np.array([[2.0, 0.1, 0.0, -5.0], [0.0, 1.9, 0.2, 3.0], [0.1, 0.0, 2.2, 1.0], [0.0, 0.0, 0.0, 1.0]])
    still = np.zeros((3, *deformation.SHAPE), dtype=np.float32)
    points = deformation.map_to_template(matrix, (3, 4, 5), still)
    np.testing.assert_allclose(points[:, 2, 3, 4], (matrix @ [2, 3, 4, 1])[:3], rtol=1e-6)  # float32
    assert deformation.jacobian(points, matrix) == pytest.approx(1.0, abs=1e-5)


def test_the_jacobian_is_the_ratio_of_volumes() -> None:
    points = deformation.affine_points(np.diag([3.0, 0.5, 1.2, 1.0]), (4, 4, 4))
    assert deformation.jacobian(points, np.diag([1.0, 1.0, 1.2, 1.0])) == pytest.approx(1.5, rel=1e-5)


def test_random_fields_have_the_stated_spread_and_are_smooth() -> None:
    fields = np.stack([deformation.draw_controls(np.random.default_rng(seed)) for seed in range(6)])
    expected = np.sqrt(sum(amplitude**2 for _, amplitude in deformation._SCALES_MM))
    assert fields.std() == pytest.approx(
        expected, rel=0.2
    )  # a wide bump leaves some tens of independent values a field
    still = deformation.deform(np.zeros_like(fields[0]), atrophy.combine(ventricles=0, cortex=0, medial_temporal=0))
    np.testing.assert_array_equal(still, 0)
    same_everywhere = deformation.deform(
        np.full_like(fields[0], 2.0), atrophy.combine(ventricles=0, cortex=0, medial_temporal=0)
    )
    np.testing.assert_allclose(same_everywhere, 2.0, rtol=1e-5)  # splines sum to one


def test_shares_of_the_variance_add_up() -> None:
    alone = deformation.draw_controls(np.random.default_rng(1))
    parts = deformation.draw_controls(np.random.default_rng(1), np.random.default_rng(2), shares=(0.25, 0.75))
    other = deformation.draw_controls(np.random.default_rng(2))
    np.testing.assert_allclose(parts, 0.5 * alone + np.sqrt(0.75) * other, atol=1e-5)  # float32


@pytest.mark.parametrize(("name", "expected"), [("ventricles", 0.5), ("cortex", -0.14), ("medial_temporal", -0.27)])
def test_each_field_changes_its_region_and_keeps_the_head(name: str, expected: float) -> None:
    field, region = getattr(atrophy.load_atrophy_fields(), name), getattr(load_regions(), name)
    rate = np.sum([np.gradient(part, REGION_SPACING_MM, axis=axis) for axis, part in enumerate(field)], axis=0)
    changed = float((rate * region).sum() / region.sum())
    assert changed == pytest.approx(expected, rel=0.3)  # 1 is planted; smoothing leaves more of it in wide regions
    assert abs(rate.sum()) < 0.02 * np.abs(rate).sum()  # what one loses the other gains
    template = load_template(REGION_SPACING_MM)
    outside = template.grey + template.white + template.csf + template.bone < 0.01
    speed = np.sqrt((field**2).sum(axis=0))
    assert speed[outside].mean() < 0.15 * speed[region > 0.5].mean()  # the skull hardly moves


def test_the_template_is_whole() -> None:
    template = load_template(REGION_SPACING_MM)
    total = template.grey + template.white + template.csf + template.bone + template.scalp
    assert total.max() <= 1 + 1e-5
    head = template.grey + template.white > 0.5
    np.testing.assert_allclose(total[head], 1.0, atol=1e-4)
    np.testing.assert_allclose(template.grey, template.grey[::-1], atol=0.03)  # the template is symmetric


def test_thinning_keeps_means_and_ramps() -> None:
    ramp = np.broadcast_to(np.arange(40, dtype=np.float32)[:, None, None], (40, 9, 9))
    thin = thin_out(np.ascontiguousarray(ramp), 2.5)
    np.testing.assert_allclose(thin[3:-3, 1, 1], 2.5 * np.arange(len(thin))[3:-3], atol=0.05)

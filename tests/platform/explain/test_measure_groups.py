"""Maps of people together: sums stay on grids of other voxels, signs are counted, decades and parts are means."""

from __future__ import annotations

import numpy as np
import pytest

from neuroray.platform.explain.maps import ExplainError
from neuroray.platform.explain.measure_groups import (
    MapMean,
    Member,
    average_decades,
    average_parts,
    name_decade,
    sort_decades,
)
from neuroray.platform.explain.runs import Share


def grid(spacing_mm, shape):
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -spacing_mm * (np.array(shape) - 1) / 2
    return affine


def blob(affine, shape, height=1.0):
    index = np.moveaxis(np.indices(shape), 0, -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return height * np.exp(-(world**2).sum(axis=-1) / (2 * 9.0**2))


def test_the_mean_and_its_signs_are_those_of_a_plain_stack():
    rng = np.random.default_rng(0)
    shape = (5, 6, 7)
    affine = grid(2.0, shape)
    maps = rng.normal(size=(5, *shape)) * (rng.uniform(size=(5, *shape)) > 0.3)
    mean = MapMean(affine, shape, adds_up=True)
    for one in maps:
        mean.add(one, affine)
    found = mean.result()
    expected = maps.mean(axis=0)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)  # float32
    np.testing.assert_allclose(found.magnitudes, np.abs(maps).mean(axis=0), atol=1e-6)
    same = ((np.sign(maps) == np.sign(expected)) & (maps != 0)).sum(axis=0) / np.maximum((maps != 0).sum(axis=0), 1)
    np.testing.assert_allclose(found.agreement, same, atol=1e-6)
    assert found.num_people == 5


@pytest.mark.parametrize(("adds_up", "ratio"), [(True, 1.0), (False, 8.0)])
def test_amounts_keep_their_sum_on_finer_voxels_and_scores_their_height(adds_up, ratio):
    coarse, fine = (4.0, (31, 33, 29)), (2.0, (61, 63, 59))
    there, here = grid(*coarse), grid(*fine)
    mean = MapMean(here, fine[1], adds_up=adds_up)
    given = blob(there, coarse[1])
    mean.add(given, there)
    # Linear between voxels of a smooth blob: a hundredth.
    assert mean.result().values.sum() == pytest.approx(given.sum() * ratio, rel=0.01)


def test_nobody_is_no_group():
    with pytest.raises(ExplainError, match="a group needs people"):
        MapMean(np.eye(4), (2, 2, 2), adds_up=True).result()


@pytest.mark.parametrize(("age", "decade"), [(8.9, "0"), (19.99, "10"), (20.0, "20"), (96.0, "90"), (None, "unknown")])
def test_decades_are_named_by_their_first_year(age, decade):
    assert name_decade(age) == decade


def test_decades_stand_in_order_with_the_unknown_last():
    assert sort_decades({"unknown", "100", "20", "0"}) == ["0", "20", "100", "unknown"]


def member(group, decade, total, density):
    share = Share(name="ventricles", num_voxels=3, total=total, magnitude_fraction=0.5, density=density)
    return Member(group=group, decade=decade, parts={"tissues": [share]})


def test_parts_are_means_over_people_with_intervals_over_families():
    members = [member("a", "20", 1.0, 2.0), member("a", "20", 3.0, 2.0), member("b", "60", -1.0, 5.0)]
    found = average_parts(members, "tissues", seed=0, num_resamples=200)["ventricles"]
    assert found["total"].value == pytest.approx(1.0)
    assert found["density"].value == pytest.approx(3.0)
    # Families are drawn whole: the mean lies between that of either family alone.
    assert (found["density"].low, found["density"].high) == (2.0, 5.0)
    decades = average_decades(members, "tissues")
    assert decades == {
        "20": {"ventricles": {"total": 2.0, "density": 2.0}},
        "60": {"ventricles": {"total": -1.0, "density": 5.0}},
    }

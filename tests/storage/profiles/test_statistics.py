from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from neuroray.storage.profiles.statistics import measure_statistics, statistics_from_json, statistics_to_json


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float32", "float64"])
@pytest.mark.parametrize("shape", [(7, 5, 3), (13, 7, 5, 3), (1, 1, 1, 1)])
def test_they_are_those_of_the_values_that_count(dtype: str, shape: tuple[int, ...]):
    draw = np.random.default_rng(3)
    voxels = (1 + 50 * draw.random(shape)).astype(dtype)
    mask = draw.random(shape[-3:]) < 0.6 if len(shape) > 3 and shape[0] > 1 else np.ones(shape[-3:], bool)
    found = measure_statistics(voxels, mask)
    values = voxels[..., mask].astype(np.float64)
    assert found is not None
    assert (found.over, found.num_voxels, found.num_frames) == ("mask", mask.sum(), shape[0] if len(shape) == 4 else 1)
    assert (found.min, found.max) == (values.min(), values.max())
    # Sums of a few thousand float64 in another order: some last bits.
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-13, atol=1e-13)


def test_a_large_mean_does_not_swallow_the_deviation():
    values = 1e9 + np.random.default_rng(0).normal(size=(5, 20, 20, 20))
    found = measure_statistics(values, None)
    assert found is not None
    # The values themselves are known to 1e-7, a ten-millionth of the deviation.
    np.testing.assert_allclose(found.std, values.std(), rtol=1e-9)


def test_without_a_mask_only_what_is_zero_in_every_frame_is_background():
    voxels = np.zeros((3, 2, 2, 2), np.int16)
    voxels[1, 0, 0, 0] = 6
    found = measure_statistics(voxels, None)
    assert found is not None
    assert (found.over, found.num_voxels, found.mean, found.min, found.max) == ("not background", 1, 2.0, 0.0, 6.0)
    assert measure_statistics(np.zeros((3, 2, 2, 2)), None) is None


def test_values_that_are_not_finite_do_not_count():
    voxels = np.array([[[1.0, np.nan, 3.0, np.inf]]], np.float32)
    found = measure_statistics(voxels, None)
    assert found is not None
    assert (found.mean, found.std, found.max) == (2.0, 1.0, 3.0)


def test_memory_order_changes_no_bit():
    voxels = np.random.default_rng(1).normal(size=(4, 7, 6, 5)).astype(np.float32)
    reversed_order = np.asfortranarray(voxels)
    assert measure_statistics(voxels, None) == measure_statistics(reversed_order, None)


def test_they_survive_json():
    found = measure_statistics(np.random.default_rng(1).normal(size=(4, 7, 6)), None)
    assert statistics_from_json(statistics_to_json(found)) == found


@pytest.mark.parametrize("shape", [(7, 9, 5), (3, 65, 31, 17)])
@pytest.mark.parametrize(
    ("dtype", "lowest", "highest"),
    [
        ("uint8", 0, 255),
        ("uint16", 0, 65535),
        ("int8", -128, 127),
        ("int16", -32768, 32767),
        ("int16", -32768, 0),
        ("int16", 5, 900),
    ],
)
def test_small_integers_are_measured_exactly_whichever_sign_they_have(dtype: str, lowest: int, highest: int, shape):
    generator = np.random.default_rng(3)
    voxels = generator.integers(lowest, highest, shape, dtype=np.dtype(dtype), endpoint=True)
    is_counted = generator.random(shape[-3:]) < 0.4
    voxels *= is_counted
    found = measure_statistics(voxels, None)
    assert found is not None
    counted = (voxels != 0).reshape(-1, *shape[-3:]).any(axis=0)
    values = [Fraction(int(value)) for value in voxels[..., counted].ravel()]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    assert (found.mean, found.min, found.max) == (float(mean), min(values), max(values))
    assert found.std == pytest.approx(math.sqrt(variance), rel=1e-15)

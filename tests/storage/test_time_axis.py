import numpy as np
import pytest

from neuroray.storage.time_axis import find_frozen_frames, find_time_among_space, interpret_repetition_time


@pytest.mark.parametrize(
    ("value", "unit", "seconds", "flagged"),
    [
        (2.52, "s", 2.52, False),
        (2520, "ms", 2.52, False),
        (2_520_000, "us", 2.52, False),
        (2.52, None, 2.52, False),
        (0.72, "s", 0.72, False),
        (2520, "s", 2.52, True),
        (2520, None, 2.52, True),
        (2.52, "ms", 2.52, True),
        (2.52, "us", 2.52, True),
        (720, "us", 0.72, True),
        (2_520_000, "s", 2.52, True),
        (1.0, None, 1.0, True),
        (1.0, "s", 1.0, False),
        (40.0, "s", None, True),
        (1e9, "s", None, True),
        (1e-4, "s", None, True),
        (0.0, "s", None, True),
        (-2.0, "s", None, True),
        (float("nan"), "s", None, True),
        (float("inf"), None, None, True),
    ],
)
def test_milliseconds_are_caught(value: float, unit: str | None, seconds: float | None, flagged: bool) -> None:
    found, flags = interpret_repetition_time(value, unit)
    assert found == seconds
    assert bool(flags) == flagged


def test_a_number_from_a_float32_header_loses_its_noise() -> None:
    assert interpret_repetition_time(float(np.float32(2.52)), "s") == (2.52, ())


def test_runs_of_equal_frames_are_found() -> None:
    frames = np.array([1, 1, 2, 3, 3, 3, 4, 5, 5])
    voxels = frames[:, None, None, None] + np.arange(27).reshape(3, 3, 3)
    assert find_frozen_frames(voxels) == [(0, 1), (3, 5), (7, 8)]


def test_one_changed_voxel_is_no_frozen_frame() -> None:
    voxels = np.ones((2, 3, 3, 3))
    voxels[1, 2, 2, 2] = 2
    assert find_frozen_frames(voxels) == []


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_time_on_a_spatial_axis_is_found(axis: int) -> None:
    generator = np.random.default_rng(0)
    head = generator.normal(size=(1, 9, 10, 11))
    series = 100 * head + generator.normal(size=(12, 9, 10, 11))
    assert find_time_among_space(series) is None
    mixed = np.swapaxes(series, 0, axis)
    assert find_time_among_space(mixed) == axis - 1


def test_noise_and_flat_images_are_no_mixed_axes() -> None:
    assert find_time_among_space(np.random.default_rng(0).normal(size=(8, 8, 8, 8))) is None
    assert find_time_among_space(np.ones((8, 8, 8, 8))) is None

"""PSNR, SSIM and L1 against numbers of MONAI 1.5 and scikit-image on closed-form volumes."""

from __future__ import annotations

import numpy as np
import pytest

from neuroray.platform.evaluate.image_quality import compare_volumes, map_ssim, tell_psnr
from neuroray.platform.evaluate.metrics import EvaluationError

Z, Y, X = np.meshgrid(*(np.arange(length, dtype=np.float64) for length in (16, 18, 20)), indexing="ij")
ONE = 0.5 + 0.5 * np.sin(0.31 * Z + 0.17 * Y + 0.23 * X)
OTHER = 0.5 + 0.45 * np.sin(0.31 * Z + 0.17 * Y + 0.23 * X + 0.2) + 0.03 * np.cos(1.7 * Z - 0.9 * Y + 2.1 * X)


def compare(brain: np.ndarray) -> dict[str, float]:
    return compare_volumes(2 * ONE - 1, 2 * OTHER - 1, brain)


def test_the_whole_volume_has_monais_numbers() -> None:
    found = compare(np.ones(ONE.shape, bool))
    # MONAI's SSIMMetric (3D, gaussian, 11, 1.5, range 1) in float32, and closed formulas.
    assert found["ssim_whole"] == pytest.approx(0.93014258, abs=1e-5)
    assert found["psnr_whole"] == pytest.approx(22.082394, abs=1e-5)
    assert found["l1_whole"] == pytest.approx(0.06966705, abs=1e-7)
    for name in ("psnr", "l1"):
        assert found[f"{name}_brain"] == pytest.approx(found[f"{name}_whole"], rel=1e-12)
    assert found["ssim_brain"] == pytest.approx(found["ssim_whole"], rel=1e-12)


def test_the_brain_is_measured_alone() -> None:
    brain = np.zeros(ONE.shape, bool)
    brain[7:9, 8:10, 6:14] = True
    found = compare(brain)
    error = np.abs(ONE - OTHER)[brain]
    assert found["l1_brain"] == pytest.approx(error.mean(), rel=1e-12)
    assert found["psnr_brain"] == pytest.approx(-10 * np.log10(np.square(error).mean()), rel=1e-12)
    # The map begins five voxels within the volume.
    assert found["ssim_brain"] == pytest.approx(map_ssim(ONE, OTHER)[2:4, 3:5, 1:9].mean(), rel=1e-12)
    assert found["ssim_brain"] != pytest.approx(found["ssim_whole"], abs=1e-3)


def test_a_window_of_the_map_is_its_weighted_moments() -> None:
    place = (slice(3, 14), slice(2, 13), slice(7, 18))
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    weights = taps[:, None, None] * taps[:, None] * taps
    weights /= weights.sum()
    one, other = ONE[place], OTHER[place]
    mean_one, mean_other = (weights * one).sum(), (weights * other).sum()
    variance_one, variance_other = (weights * (one - mean_one) ** 2).sum(), (weights * (other - mean_other) ** 2).sum()
    shared = (weights * (one - mean_one) * (other - mean_other)).sum()
    expected = (2 * mean_one * mean_other + 1e-4) * (2 * shared + 9e-4)
    expected /= (mean_one**2 + mean_other**2 + 1e-4) * (variance_one + variance_other + 9e-4)
    assert map_ssim(ONE, OTHER)[3, 2, 7] == pytest.approx(expected, rel=1e-9)


def test_equal_volumes_are_as_near_as_can_be() -> None:
    found = compare_volumes(2 * ONE - 1, 2 * ONE - 1, np.ones(ONE.shape, bool))
    assert found["psnr_whole"] == tell_psnr(0.0) == 100.0
    assert found["ssim_whole"] == pytest.approx(1.0, abs=1e-12)
    assert found["l1_whole"] == 0


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(EvaluationError, match="cannot be compared"):
        compare_volumes(ONE, OTHER[:-1], np.ones(ONE.shape, bool))
    with pytest.raises(EvaluationError, match="cannot be compared"):
        compare_volumes(ONE, OTHER, np.zeros(ONE.shape, bool))
    with pytest.raises(EvaluationError, match="too small for SSIM"):
        map_ssim(ONE[:10], OTHER[:10])

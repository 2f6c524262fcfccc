import numpy as np
import pytest
from contracts.planted_runs import AFFINE, GRID, NUM_FRAMES, block_labels

from neuroray.platform.baselines.errors import BaselineError
from neuroray.platform.baselines.series import CleaningConfig, clean_series, drift_basis, read_region_series
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore

# Sums of at most a few hundred float64 numbers.
ROUNDING = 1e-9


@pytest.mark.parametrize("num_frames", [7, 63, 130])
@pytest.mark.parametrize("high_pass_hz", [0.0, 0.004, 0.01])
def test_drifts_are_orthonormal_and_hold_the_line_and_every_slower_cosine(num_frames, high_pass_hz):
    basis = drift_basis(num_frames, 2.0, CleaningConfig(high_pass_hz=high_pass_hz))
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=ROUNDING)
    time_s = 2.0 * (np.arange(num_frames) + 0.5)
    slow = [
        np.cos(2 * np.pi * k / (4.0 * num_frames) * time_s) for k in range(1, int(4 * num_frames * high_pass_hz) + 1)
    ]
    for drift in (np.ones(num_frames), time_s, *slow):
        np.testing.assert_allclose(basis @ (basis.T @ drift), drift, atol=1e-8)


def test_what_is_faster_than_the_high_pass_stays():
    time = (np.arange(200) + 0.5) / 200
    # Of 400 s: 0.005 Hz, and 0.05 Hz that is symmetric about the middle, so that no line has a part of it.
    slow, fast = 3 * np.cos(4 * np.pi * time), np.cos(40 * np.pi * time)
    cleaned = clean_series((7 + slow + 9 * time + fast)[:, None], 2.0, CleaningConfig())[:, 0]
    np.testing.assert_allclose(cleaned, fast, atol=ROUNDING)


def test_the_mean_of_all_regions_is_taken_out_on_request():
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((65, 1)), rng.standard_normal((65, 7))
    cleaned = clean_series(3 * common + own, 2.0, CleaningConfig(global_signal=True))
    np.testing.assert_allclose(cleaned.mean(axis=1), 0, atol=ROUNDING)
    kept = clean_series(3 * common + own, 2.0, CleaningConfig())
    assert np.abs(kept.mean(axis=1)).max() > 1


def test_a_frequency_needs_a_repetition_time_and_a_line_does_not():
    series = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(BaselineError, match=r"no repetition time.*high-pass-hz 0"):
        clean_series(series, None, CleaningConfig())
    assert clean_series(series, None, CleaningConfig(high_pass_hz=0)).shape == (20, 3)


def test_a_run_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(BaselineError, match=r"too short.*3 frames"):
        drift_basis(3, 2.0, CleaningConfig())


def _store(tmp_path, voxels):
    store = ScanStore.create(tmp_path / "store")
    scan = Scan(voxels=voxels, affine=AFFINE, repetition_time_s=2.0)
    store.write(scan, scan_id="run", subject="p", modality="bold")
    return store


def test_a_regions_series_is_the_mean_of_its_voxels_over_all_chunks(planted):
    labels = block_labels()
    voxels = planted.read("p003_bold").voxels.astype(np.float64)
    found = read_region_series(planted, "p003_bold", labels, 5)
    assert found.shape == (NUM_FRAMES, 5)
    for number in range(1, 5):
        # Stored in float32 at a level of 500.
        np.testing.assert_allclose(found[:, number - 1], voxels[:, labels == number].mean(axis=1), atol=1e-4)
    assert (found[:, 4] == 0).all(), "a region without voxels"


def test_voxels_that_are_no_numbers_do_not_count(tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.uniform(1, 2, (19, *GRID)).astype(np.float32)
    labels = block_labels()
    one, other = np.argwhere(labels == 2)[:2]
    voxels[4][tuple(one)], voxels[17][tuple(other)] = np.nan, np.inf
    expected = np.where(np.isfinite(voxels), voxels, np.nan)
    found = read_region_series(_store(tmp_path, voxels), "run", labels, 4)
    for number in range(1, 5):
        np.testing.assert_allclose(found[:, number - 1], np.nanmean(expected[:, labels == number], axis=1), atol=1e-5)


def test_a_region_without_any_number_in_a_frame_is_an_error(tmp_path):
    voxels = np.ones((5, *GRID), dtype=np.float32)
    voxels[3][block_labels() == 1] = np.nan
    with pytest.raises(BaselineError, match="a whole region is not a number"):
        read_region_series(_store(tmp_path, voxels), "run", block_labels(), 4)


def test_a_run_on_another_grid_is_refused(tmp_path):
    store = _store(tmp_path, np.ones((5, 4, 4, 4), dtype=np.float32))
    with pytest.raises(BaselineError, match=r"grid of the regions.*--parcels"):
        read_region_series(store, "run", block_labels(), 4)

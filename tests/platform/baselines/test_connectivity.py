import numpy as np
import pytest
from contracts.planted_runs import block_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroray.platform.baselines.connectivity import connect, measure_run, to_matrix
from neuroray.platform.baselines.parcels import ParcelConfig, Parcels
from neuroray.platform.baselines.series import CleaningConfig


@given(seed=st.integers(0, 2**32 - 1), num_frames=st.integers(5, 130), num_regions=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_edges_are_fisher_z_of_numpys_correlations_row_by_row(seed, num_frames, num_regions):
    series = np.random.default_rng(seed).normal(500, 3, size=(num_frames, num_regions))
    matrix = np.corrcoef(series.T)
    expected = np.arctanh([matrix[i, j] for i in range(num_regions) for j in range(i + 1, num_regions)])
    # A spread of 3 at a level of 500 leaves some 12 digits of r, arctanh stretches what is near 1.
    np.testing.assert_allclose(connect(series), expected, rtol=1e-6, atol=1e-9)


def test_connectivity_knows_neither_gain_nor_level():
    series = np.random.default_rng(0).standard_normal((63, 5))
    np.testing.assert_allclose(connect(series * [1, 2, 0.1, 40, 1e3] + [0, 1e3, -5, 7, 1]), connect(series), rtol=1e-6)


def test_a_region_that_does_not_change_correlates_with_none():
    series = np.random.default_rng(0).standard_normal((65, 3)) + 500
    series[:, 1] = 0.1 * 5000  # in binary its sums round
    edges = to_matrix(connect(series), 3)
    assert edges[1].tolist() == [0, 0, 0]
    assert edges[0, 2] != 0


def test_regions_that_are_one_have_a_finite_edge():
    series = np.random.default_rng(0).standard_normal((65, 1))
    edges = connect(np.concatenate([series, series, -series], axis=1))
    assert np.isfinite(edges).all()
    assert edges[0] > 7
    assert edges[1] < -7


@pytest.mark.parametrize("num_regions", [2, 7])
def test_matrices_are_symmetric_and_hold_every_edge_once(num_regions):
    edges = np.arange(1.0, 3 * num_regions * (num_regions - 1) // 2 + 1).reshape(3, -1)
    matrix = to_matrix(edges, num_regions)
    np.testing.assert_array_equal(matrix, matrix.swapaxes(1, 2))
    assert (matrix[:, range(num_regions), range(num_regions)] == 0).all()
    np.testing.assert_array_equal(matrix[:, *np.triu_indices(num_regions, k=1)], edges)


def test_a_run_shows_what_was_planted_in_it(planted):
    parcels = Parcels(config=ParcelConfig(), num_regions=4, labels=block_labels())
    records = {record.scan_id: record for record in planted.records()}
    found = {scan_id: measure_run(planted, scan_id, parcels, CleaningConfig()) for scan_id in records}
    first = {sex: [f.edges[0] for scan_id, f in found.items() if records[scan_id].sex == sex] for sex in "MF"}
    # arctanh(0.6) is 0.69; the mean of 30 people's z from 50 frames errs by 0.03.
    assert np.mean(first["M"]) == pytest.approx(0.69, abs=0.1)
    assert np.mean(first["F"]) == pytest.approx(-0.69, abs=0.1)
    minds = [records[scan_id].cognition for scan_id in found]
    assert np.corrcoef(minds, [f.edges[5] for f in found.values()])[0, 1] > 0.8
    # Levels tell of anatomy: the same order of blocks in everybody.
    assert all(np.argsort(f.levels).tolist() == [0, 1, 2, 3] for f in found.values())

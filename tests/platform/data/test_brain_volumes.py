"""Brains between -1 and 1 on a fixed grid, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts.brain_cohort import write_brain_cohort

from neuroray.platform.data.brain_volumes import BrainVolumeReader, choose_grid, fit_grid, restore_grid, scale_brain
from neuroray.platform.data.plan import PlanError, ReadItem


def test_percentiles_of_the_brain_become_minus_one_and_one_and_the_rest_minus_one() -> None:
    voxels = np.zeros((10, 10, 12))
    voxels[:, :, 1:-1] = np.linspace(100, 300, 1000).reshape(10, 10, 10)
    volume, brain = scale_brain(voxels, None)
    assert brain.sum() == 1000
    assert (volume[~brain] == -1).all()
    # Linear between the percentiles 0.5 and 99.5 of values that are evenly spread from 100 to 300.
    assert volume[5, 0, 1] == pytest.approx((voxels[5, 0, 1] - 101) / 99 - 1, abs=1e-3)
    assert (volume[brain] == -1).sum() == (volume[brain] == 1).sum() == 5


def test_a_mask_says_what_is_brain_and_what_is_no_number_is_none() -> None:
    voxels = np.random.default_rng(0).normal(500, 50, (6, 6, 6)).astype(np.float32)
    mask = np.zeros((6, 6, 6), bool)
    mask[1:5, 1:5, 1:5] = True
    voxels[2, 2, 2], voxels[0, 0, 0] = np.nan, 1e9
    volume, brain = scale_brain(voxels, mask)
    assert not brain[2, 2, 2]
    assert brain.sum() == 63
    assert volume[2, 2, 2] == volume[0, 0, 0] == -1
    assert np.isfinite(volume).all()


@pytest.mark.parametrize("voxels", [np.zeros((3, 3, 3)), np.full((3, 3, 3), 7.0), np.full((3, 3, 3), np.nan)])
def test_a_volume_without_spread_is_refused(voxels: np.ndarray) -> None:
    with pytest.raises(PlanError, match="the same everywhere"):
        scale_brain(voxels, None)


@pytest.mark.parametrize(("shape", "grid"), [((5, 8, 3), (8, 8, 4)), ((9, 4, 7), (8, 4, 8)), ((6, 5, 4), (4, 8, 4))])
def test_to_the_grid_and_back_only_what_was_cut_is_lost(
    shape: tuple[int, int, int], grid: tuple[int, int, int]
) -> None:
    values = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    fitted = fit_grid(values, grid)
    assert fitted.shape == grid
    back = restore_grid(fitted, shape)
    inside = back != -1
    assert inside.sum() == np.prod(np.minimum(shape, grid))
    assert np.array_equal(back[inside], values[inside])


def test_a_grid_that_cuts_the_brain_is_refused_and_one_that_cuts_background_is_not() -> None:
    brain = np.zeros((8, 8, 8), bool)
    brain[2:6, 2:6, 2:6] = True
    assert fit_grid(brain, (4, 4, 4), brain=brain).all()
    with pytest.raises(PlanError, match="25% would be cut off"):
        fit_grid(brain, (3, 8, 8), brain=brain)


def test_the_smallest_grid_of_multiples_holds_all() -> None:
    assert choose_grid([(160, 190, 10), (161, 3, 16)], 16) == (176, 192, 16)


def test_the_reader_gives_volume_and_brain_on_the_grid(tmp_path: Path) -> None:
    store = write_brain_cohort(tmp_path / "store", num_people=2)
    reader = BrainVolumeReader(store.uri, store.version, (20, 20, 20))
    item = ReadItem(scan_id="sub-001_ses-02_T1w")
    row = reader(item)
    voxels = store.read(item.scan_id).voxels
    assert row["brain"].sum() == (voxels != 0).sum()
    assert sum(values.nbytes for values in row.values()) == reader.size_bytes(item)
    assert np.array_equal(restore_grid(row["volume"], voxels.shape), scale_brain(voxels, None)[0])
    with pytest.raises(PlanError, match="no frames"):
        reader(ReadItem(scan_id=item.scan_id, start=0, stop=1))

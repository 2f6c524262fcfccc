import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroray.storage.orientation import Orientation

SIZES = st.sampled_from([1, 2, 3, 7])
# World positions are sums of four products below 1e3 in float64: 1e3 * 2**-52 * 8 = 2e-12, with room for the rotation.
POSITION_TOLERANCE_MM = 1e-9


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Permuted, flipped, turned by up to 40 degrees about three axes, with unequal voxel sizes and some shear."""
    turn = np.eye(3)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        angle = np.deg2rad(draw(st.floats(-40, 40)))
        plane = np.eye(3)
        plane[[first, second], [first, second]] = np.cos(angle)
        plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ plane
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    zooms = draw(st.tuples(*[st.floats(0.3, 6.0)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.diag(signs))[:, order] @ np.diag(zooms)
    affine[0, 1] += draw(st.floats(-0.05, 0.05))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    return affine


@given(affine=affines(), shape=st.tuples(SIZES, SIZES, SIZES))
@settings(deadline=None, max_examples=150)
def test_every_voxel_keeps_its_value_at_its_place_in_the_world(affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    voxels = np.arange(np.prod(shape)).reshape(shape)
    orientation = Orientation.from_affine(affine)
    canonical = orientation.to_canonical(voxels)
    canonical_affine = orientation.canonical_affine(affine, shape)
    for index in itertools.product(*map(range, canonical.shape)):
        place = canonical_affine @ [*index, 1]
        file_index = np.linalg.solve(affine, place)[:3]
        i, j, k = np.rint(file_index).astype(int)
        assert np.abs(affine @ [i, j, k, 1] - place).max() < POSITION_TOLERANCE_MM
        assert voxels[i, j, k] == canonical[index]


@given(affine=affines(), shape=st.tuples(SIZES, SIZES, SIZES))
@settings(deadline=None, max_examples=150)
def test_the_grid_is_the_one_that_nibabel_finds_closest_to_ras(affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    orientation = Orientation.from_affine(affine)
    expected = nib.as_closest_canonical(nib.Nifti1Image(voxels, affine))
    assert np.array_equal(orientation.to_canonical(voxels), np.asarray(expected.dataobj))
    assert np.abs(orientation.canonical_affine(affine, shape) - expected.affine).max() < POSITION_TOLERANCE_MM
    assert orientation.canonical_shape(shape) == expected.shape


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=3)))
def test_there_and_back_is_the_same_memory(order: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> None:
    orientation = Orientation(axis_order=order, axis_flip=flips)
    voxels = np.arange(4 * 2 * 3 * 5).reshape(4, 2, 3, 5)
    canonical = orientation.to_canonical(voxels)
    again = orientation.to_file(canonical)
    assert np.array_equal(again, voxels)
    assert np.shares_memory(again, voxels)
    assert orientation.file_shape(orientation.canonical_shape((2, 3, 5))) == (2, 3, 5)
    assert canonical.shape == (4, *orientation.canonical_shape((2, 3, 5)))

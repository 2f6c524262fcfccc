import numpy as np
import pytest

from neuroray.platform.data.atlas import ATLASES, RoiAtlas, label_networks, label_spheres, load_roi_atlas

# A turned and stretched grid, so that no axis is a world axis.
_TURN = 0.3
AFFINE = np.array(
    [
        [4.0 * np.cos(_TURN), -5.0 * np.sin(_TURN), 0.0, -40.0],
        [4.0 * np.sin(_TURN), 5.0 * np.cos(_TURN), 0.0, -45.0],
        [0.0, 0.0, 6.0, -30.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
SHAPE = (17, 19, 11)


def _atlas(centres, radius):
    centres = np.array(centres, dtype=float)
    return RoiAtlas(
        name="seitzman", centres_mm=centres, radius_mm=np.full(len(centres), radius), networks=(), source="made up"
    )


def _world(index):
    return AFFINE[:3, :3] @ np.array(index) + AFFINE[:3, 3]


@pytest.mark.parametrize("name", ATLASES)
def test_a_published_set_lies_in_the_brain_and_needs_no_network(name):
    atlas = load_roi_atlas(name)
    assert len(atlas.centres_mm) == {"seitzman": 300, "power": 264, "dosenbach": 160}[name]
    # MNI152's brain ends at about 73 mm to the sides, 105 mm behind, 74 mm in front, 84 mm above, 72 mm below.
    low, high = atlas.centres_mm.min(axis=0), atlas.centres_mm.max(axis=0)
    assert (low > [-76, -110, -75]).all()
    assert (high < [76, 78, 86]).all()
    assert len(atlas.networks) in (0, len(atlas.centres_mm))


def test_a_sphere_holds_the_voxels_within_its_radius():
    centre, radius = _world([8.3, 9.1, 5.4]), 13.0
    found = label_spheres(_atlas([centre], radius), SHAPE, AFFINE)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    distance = np.linalg.norm(index @ AFFINE[:3, :3].T + AFFINE[:3, 3] - centre, axis=-1)
    np.testing.assert_array_equal(found == 1, distance <= radius)
    assert (found == 1).sum() > 40


def test_where_spheres_meet_the_nearer_centre_has_the_voxel():
    centres = [_world([6, 9, 5]), _world([9, 9, 5])]
    found = label_spheres(_atlas(centres, 10.0), SHAPE, AFFINE)
    assert found[6, 9, 5] == found[7, 9, 5] == 1
    assert found[9, 9, 5] == found[8, 9, 5] == 2


def test_a_sphere_between_voxels_gets_the_one_its_centre_lies_in():
    found = label_spheres(_atlas([_world([3.4, 4.4, 5.4])], 0.5), SHAPE, AFFINE)
    assert np.argwhere(found).tolist() == [[3, 4, 5]]


def test_a_sphere_beyond_the_grid_or_in_anothers_only_voxel_stays_empty():
    centres = [_world([-9, 3, 3]), _world([3, 4, 5]), _world([3.2, 4.2, 5.2])]
    found = label_spheres(_atlas(centres, 0.5), SHAPE, AFFINE)
    assert sorted(np.unique(found).tolist()) == [0, 2]


def test_networks_are_where_their_regions_are():
    shape, affine = (46, 55, 46), np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = (-90, -126, -72)
    labels, names = label_networks(shape, affine)
    atlas = load_roi_atlas("seitzman")
    assert {"DefaultMode", "FrontoParietal", "Visual"} <= set(names)
    assert "unassigned" not in names
    hits = []
    for centre, network in zip(atlas.centres_mm, atlas.networks, strict=True):
        place = tuple(np.rint((np.linalg.inv(affine) @ [*centre, 1.0])[:3]).astype(int))
        if network != "unassigned":
            hits.append(names[labels[place] - 1] == network)
    # A voxel of 4 mm may lie nearer to a neighbouring region of another network than to its own.
    assert np.mean(hits) > 0.95
    assert labels[0, 0, 0] == 0
    posterior_cingulate = np.rint((np.linalg.inv(affine) @ [-7, -52, 29, 1])[:3]).astype(int)
    assert names[labels[tuple(posterior_cingulate)] - 1] == "DefaultMode"

"""What may be shown: of a whole head neither eyes nor nose nor a profile, of a masked one only what the mask holds."""

from __future__ import annotations

import numpy as np
import pytest
from contracts.faced_head import CENTRE_MM, FACE, SHAPE, SPACING_MM, make_head

from neuroray.platform.evaluate.faces import find_head, find_visible
from neuroray.platform.quality.tiles import Tile, cut_tiles


def show(volume: np.ndarray, brain: np.ndarray | None = None) -> list[Tile]:
    visible = find_visible(find_head(volume), SPACING_MM, brain)
    assert visible is not None
    return cut_tiles(volume, SPACING_MM, visible, (0.0, 1.0), brain)


@pytest.mark.parametrize("pitch", [-0.4, -0.2, 0.0, 0.2, 0.3])
def test_no_slice_shows_eyes_or_nose(pitch: float):
    tiles = show(make_head(pitch))
    assert len(tiles) == 14
    # The skull has the tone 77; a face would have 255, half of it where it is interpolated.
    assert max(tile.tones.max() for tile in tiles) <= 80
    assert all((tile.tones > 70).mean() > 0.1 for tile in tiles), "each shows something"


def test_no_slice_is_the_midline():
    distances = [tile.position_mm for tile in show(make_head()) if tile.plane == "sagittal"]
    assert distances
    assert min(abs(distance) for distance in distances) >= 10


def test_where_the_top_is_cut_off_all_of_the_front_is_hidden():
    volume = make_head()[:, :, :98]  # 40 mm of the skull are missing: the eyes lie 60 mm under the image's top
    visible = find_visible(find_head(volume), SPACING_MM)
    assert visible is not None
    assert not visible.is_depth_known
    assert max(tile.tones.max() for tile in show(volume)) <= 80
    y_mm = np.arange(SHAPE[1]) * SPACING_MM[1]
    assert not visible.allowed[:, y_mm > CENTRE_MM[1] + 30].any()


def test_a_head_without_its_back_is_hidden_from_its_front():
    volume = make_head()[:, 35:]
    assert max(tile.tones.max() for tile in show(volume)) <= 80


def test_a_masked_head_is_shown_inside_its_mask_alone_and_outlined():
    volume = make_head()
    points = np.indices(SHAPE).reshape(3, -1).T * SPACING_MM - CENTRE_MM
    brain = (((points / [65, 80, 75]) ** 2).sum(axis=1) < 1).reshape(SHAPE) & (volume < FACE)
    tiles = show(volume, brain)
    assert max(tile.tones.max() for tile in tiles) <= 80
    front = [tile for tile in tiles if tile.plane == "axial"][3]
    whole = [tile for tile in show(volume) if tile.plane == "axial"][3]
    assert all(tile.outline.any() for tile in tiles)
    assert not whole.outline.size
    rows = np.flatnonzero((front.tones > 70).any(axis=1))
    assert rows.size > 145, "nothing is cut from a brain: 160 mm long, a little less at this depth"


def test_slices_stand_at_their_depth_whatever_the_grid():
    """A marker 52 mm under the top is on the slice of that depth, with the grid shifted and the voxels flat."""
    spacing_mm = (2.0, 2.0, 4.0)
    head = make_head()[:, :, ::2]
    top_mm = (np.flatnonzero(head.any(axis=(0, 1)))[-1] + 0.5) * 4.0
    plane = round((top_mm - 52) / 4.0)
    head[40:50, 30:40, plane] = FACE
    visible = find_visible(find_head(head), spacing_mm)
    assert visible is not None
    bright = [
        tile.position_mm
        for tile in cut_tiles(head, spacing_mm, visible, (0.0, 1.0))
        if tile.plane == "axial" and tile.tones.max() > 200
    ]
    assert bright == [52.0]


def test_the_persons_left_is_on_the_left_and_the_front_on_top():
    head = make_head()
    head[:30] *= 2  # x runs to the right: the low indices are the person's left
    tile = next(tile for tile in show(head) if tile.plane == "axial")
    middle = tile.tones.shape[1] // 2
    assert tile.tones[:, :middle].sum() > 1.2 * tile.tones[:, middle:].sum()
    front = make_head()
    front[:, :50] *= 2
    tile = next(tile for tile in show(front) if tile.plane == "axial")
    assert tile.tones[140:].max() > tile.tones[:40].max()


def test_nothing_is_shown_where_there_is_no_head():
    assert find_visible(np.zeros((5, 5, 5), bool), SPACING_MM) is None

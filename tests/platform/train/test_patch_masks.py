"""Which patches are hidden: by value, by key alone, as many as asked for; and nothing of them is left in the voxels."""

from __future__ import annotations

import pytest
import torch

from neuroray.config import ConfigError
from neuroray.platform.train.patch_masks import FILL, MaskConfig, draw_mask, find_places, hide, make_key

ALL = torch.ones(6, dtype=torch.bool)


def lengths_of_runs(row: torch.Tensor) -> list[int]:
    """How long each stretch of hidden frames is that touches neither end."""
    text = "".join("x" if hidden else "." for hidden in row.tolist())
    inner = text.strip("x")
    return [len(run) for run in inner.split(".") if run]


def test_a_tube_hides_a_place_in_all_frames_or_in_none():
    mask = draw_mask(ALL, 7, MaskConfig(shape="tube", ratio=0.5), key=3)
    assert mask.shape == (6, 7)
    assert mask.all(1).sum() == 3
    assert (~mask).all(1).sum() == 3


def test_frames_are_hidden_at_all_places_at_once():
    mask = draw_mask(ALL, 30, MaskConfig(shape="frames", ratio=0.5, block_frames=5), key=3)
    assert (mask == mask[0]).all()
    assert 0 < mask[0].sum() < 30
    assert all(length % 5 == 0 for length in lengths_of_runs(mask[0]))


def test_blocks_last_as_long_as_asked_and_differ_between_places():
    mask = draw_mask(ALL, 63, MaskConfig(ratio=0.5, block_frames=7), key=1)
    assert len({tuple(row.tolist()) for row in mask}) == 6
    inner = [length for row in mask for length in lengths_of_runs(row)]
    assert inner
    assert all(length % 7 == 0 for length in inner)


@pytest.mark.parametrize("ratio", [0.25, 0.6, 0.9])
def test_the_share_of_blocks_that_is_hidden_is_the_ratio(ratio: float):
    # 65 frames of blocks of 1: there is no block that is cut by an end, so the share is exact to half a patch.
    mask = draw_mask(ALL, 65, MaskConfig(ratio=ratio, block_frames=1), key=5)
    assert int(mask.sum()) == round(ratio * 6 * 65)


@pytest.mark.parametrize("ratio", [0.001, 0.999])
def test_something_is_hidden_and_something_is_seen_at_any_ratio(ratio: float):
    mask = draw_mask(ALL, 4, MaskConfig(shape="tube", ratio=ratio), key=5)
    assert int(mask.all(1).sum()) == (1 if ratio < 0.5 else 5)


def test_only_places_with_brain_are_hidden():
    places = torch.tensor([True, False, True, False, False, True])
    masks = [draw_mask(places, 9, MaskConfig(ratio=0.9, block_frames=2), key=key) for key in range(5)]
    assert not any(mask[~places].any() for mask in masks)
    assert torch.stack(masks).any(0)[places].all()


def test_the_key_decides_the_mask_and_torchs_generator_has_no_part():
    config = MaskConfig(ratio=0.5, block_frames=3)
    torch.manual_seed(1)
    first = draw_mask(ALL, 40, config, key=make_key("mask", 0, "sub-1", 8))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    again = draw_mask(ALL, 40, config, key=make_key("mask", 0, "sub-1", 8))
    assert torch.equal(first, again)
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())
    for other in (("mask", 1, "sub-1", 8), ("mask", 0, "sub-2", 8), ("mask", 0, "sub-1", 9)):
        assert not torch.equal(first, draw_mask(ALL, 40, config, key=make_key(*other)))


def test_blocks_do_not_always_begin_at_the_same_frame():
    config = MaskConfig(ratio=0.5, block_frames=8)
    starts = {
        int(mask[place, 1:].ne(mask[place, :-1]).nonzero()[0]) % 8
        for key in range(20)
        for mask in [draw_mask(ALL, 64, config, key=key)]
        for place in [0]
        if 0 < mask[place].sum() < 64
    }
    assert len(starts) > 4


def test_hiding_everything_is_refused():
    one = torch.tensor([True])
    with pytest.raises(ConfigError, match=r"hide all of it; given 1 places, 9 frames, tube.*--mask\.block-frames"):
        draw_mask(one, 9, MaskConfig(shape="tube"), key=0)


@pytest.mark.parametrize("changes", [{"ratio": 0.0}, {"ratio": 1.0}, {"block_frames": 0}])
def test_masks_that_make_no_sense_are_refused(changes: dict[str, float]):
    with pytest.raises(ConfigError):
        MaskConfig(**changes)  # pyright: ignore[reportArgumentType]


def test_places_are_those_of_tokens_in_the_order_y_x_z():
    brain = torch.zeros(17, 33, 16, dtype=torch.bool)
    brain[16, 15, 3] = True  # second along x, first along y
    brain[0, 32, 15] = True  # first along x, third along y
    found = find_places(brain).view(3, 2, 1)  # y x z
    assert found.nonzero().tolist() == [[0, 1, 0], [2, 0, 0]]


@pytest.mark.parametrize("by", ["scan", "voxel"])
def test_what_is_hidden_leaves_no_trace_and_all_else_is_kept(by: str):
    scores = torch.randn(11, 17, 20, 18)
    mask = torch.zeros(8, 11, dtype=torch.bool)
    mask[5, 3:7] = True  # y 1, x 0, z 1
    held = torch.ones(11, dtype=torch.bool)
    held[10] = False
    cube = (slice(3, 7), slice(0, 16), slice(16, 20), slice(16, 18))
    changed = scores.clone()
    changed[cube] = 1e3 * torch.randn(4, 16, 4, 2)
    first, second = scores.clone(), changed.clone()
    for window in (first, second):
        hide(window, mask, held, by=by)  # pyright: ignore[reportArgumentType]
    assert torch.equal(first, second)
    assert (first[cube] == FILL).all()
    if by == "scan":
        rest = torch.ones_like(scores, dtype=torch.bool)
        rest[cube] = False
        assert torch.equal(first[rest], scores[rest])


def test_by_voxel_the_frames_that_are_seen_have_mean_0_and_spread_1():
    scores = 5 + 3 * torch.randn(12, 16, 16, 16)
    scores[:, 4, 5, 6] = -2.0
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, :5] = True
    held = torch.ones(12, dtype=torch.bool)
    held[11] = False
    hide(scores, mask, held, by="voxel")
    seen = scores[5:11]
    still = torch.zeros(16, 16, 16, dtype=torch.bool)
    still[4, 5, 6] = True
    # float32 sums over 6 numbers of size 5.
    torch.testing.assert_close(seen.mean(0), torch.zeros(16, 16, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), (~still).float(), atol=1e-5, rtol=0)
    assert (scores[:, 4, 5, 6] == 0).all()
    assert (scores[11] == 0).all()
    never = torch.randn(4, 16, 16, 16)
    hide(never, torch.ones(1, 4, dtype=torch.bool), torch.ones(4, dtype=torch.bool), by="voxel")
    assert (never == 0).all()

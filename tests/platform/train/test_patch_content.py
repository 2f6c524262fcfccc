"""What patches hold and what is told of it without a model, by hand-made values."""

from __future__ import annotations

import pytest
import torch

from neuroray.platform.train.patch_content import (
    Content,
    hidden_error,
    pool_cells,
    say_cell_mean,
    say_frame_mean,
    say_neighbours,
    standardise_cells,
)


def content_of(series: list[list[float]], weights: list[float] | None = None) -> Content:
    """One window; a place of one cell for each series."""
    values = torch.tensor(series)[None, :, :, None]
    return Content(values, torch.tensor(weights or [1.0] * len(series))[None, :, None])


def seen_of(*rows: str) -> torch.Tensor:
    return torch.tensor([[letter == "o" for letter in row] for row in rows])[None]


def test_a_cell_is_the_mean_of_its_brain_voxels():
    grid = (17, 33, 20)
    scores = torch.randn(1, 9, *grid)
    brain = torch.rand(1, *grid) < 0.5
    brain[0, 8:12, 4:8, 0:4] = False
    found = pool_cells(scores, brain, 4)
    assert found.values.shape == (1, 3 * 2 * 2, 9, 64)
    for x, y, z in ((0, 0, 0), (13, 7, 2), (16, 32, 19), (3, 31, 16)):
        place = ((y // 16) * 2 + x // 16) * 2 + z // 16
        cell = ((x % 16 // 4) * 4 + y % 16 // 4) * 4 + z % 16 // 4
        box = tuple(slice(at // 4 * 4, at // 4 * 4 + 4) for at in (x, y, z))
        inside = brain[(0, *box)]
        assert found.weights[0, place, cell] == inside.sum()
        expected = scores[(0, slice(None), *box)][:, inside].mean(1)
        # A mean over at most 64 numbers of size 1, in another order.
        torch.testing.assert_close(found.values[0, place, :, cell], expected, atol=1e-6, rtol=1e-5)
    assert found.weights.sum() == brain.sum()
    empty = (8 // 4 * 4 + 4 // 4) * 4
    assert found.weights[0, 0, empty] == 0
    assert (found.values[0, 0, :, empty] == 0).all()


@pytest.mark.parametrize("cell_voxels", [1, 2, 8, 16])
def test_cells_of_any_size_hold_the_same_sum(cell_voxels: int):
    scores, brain = torch.randn(2, 3, 17, 20, 18), torch.rand(2, 17, 20, 18) < 0.4
    found = pool_cells(scores, brain, cell_voxels)
    total = (found.values * found.weights[:, :, None]).sum((1, 3))
    expected = (scores * brain[:, None]).sum((2, 3, 4))
    # float32 sums over 2,448 numbers of size 1.
    torch.testing.assert_close(total, expected, atol=1e-3, rtol=0)


def test_a_fluctuation_has_no_mean_and_spread_1_over_held_frames_and_ignores_scale():
    series = torch.tensor([3.0, 5.0, 9.0, 7.0, 99.0])
    content = Content(torch.stack([series, -2 * series, torch.full((5,), 4.0)])[None, :, :, None], torch.ones(1, 3, 1))
    held = torch.tensor([[True, True, True, True, False]])
    found = standardise_cells(content, held)
    expected = (series[:4] - 6.0) / 5.0**0.5
    torch.testing.assert_close(found.values[0, 0, :4, 0], expected)
    torch.testing.assert_close(found.values[0, 1, :4, 0], -expected)
    assert found.weights[0, :, 0].tolist() == [1, 1, 0]


def test_the_error_counts_hidden_patches_alone_by_their_brain_voxels():
    content = content_of([[0, 0, 0], [0, 0, 0]], weights=[3.0, 1.0])
    said = torch.tensor([[2.0, 7.0, 0.0], [0.0, 4.0, 9.0]])[None, :, :, None].requires_grad_()
    hidden = torch.tensor([[True, False, False], [False, True, False]])[None]
    error = hidden_error(said, content, hidden)
    assert error.tolist() == [(3 * 4 + 1 * 16) / 4]
    error.sum().backward()
    assert said.grad is not None
    assert (said.grad[0, :, :, 0] != 0).tolist() == hidden[0].tolist()


def test_a_cell_mean_is_over_what_is_seen():
    found = say_cell_mean(content_of([[1, 2, 6, 50], [7, 7, 7, 7]]), seen_of("oox.", "xxxx"))
    assert found[0, 0, :, 0].tolist() == [1.5] * 4
    assert found[0, 1, :, 0].tolist() == [0] * 4


def test_neighbours_are_joined_by_a_line_and_kept_at_the_ends():
    series = [[9.0, 1, 9, 9, 4, 9], [9, 9, 9, 9, 9, 9], [9, 9, 5, 9, 9, 9]]
    found = say_neighbours(content_of(series), seen_of("xoxxox", "xxxxxx", "xxoxxx"))
    assert found[0, 0, :, 0].tolist() == pytest.approx([1, 1, 2, 3, 4, 4])
    assert found[0, 1, :, 0].tolist() == [0] * 6
    assert found[0, 2, :, 0].tolist() == [5] * 6


def test_a_frame_mean_is_over_what_is_seen_of_that_frame_by_brain_voxels():
    found = say_frame_mean(content_of([[1, 8], [5, 8], [3, 8]], weights=[3, 1, 4]), seen_of("ox", "ox", "xx"))
    assert found[0, :, 0, 0].tolist() == [2.0] * 3
    assert found[0, :, 1, 0].tolist() == [0.0] * 3

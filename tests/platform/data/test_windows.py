"""Windows: pure in seed, epoch and scan; covering ones leave no frame out; evaluation takes each exactly once."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroray.platform.data.plan import Plan, PlanConfig, PlanError, ReadItem, item_at, plan_reads, steps
from neuroray.platform.data.windows import WindowConfig, choose_windows, cover_run


def frames_of(*counts: int) -> dict[str, int]:
    return {f"run-{index}": count for index, count in enumerate(counts)}


def choose(counts: dict[str, int], seed: int = 0, **config: Any) -> Any:
    return choose_windows(tuple(counts), counts, WindowConfig(**config), seed=seed)


def windows_of(items: Any, epoch: int) -> list[ReadItem]:
    return [item_at(items, index, epoch) for index in range(len(items))]


def test_random_windows_change_with_epoch_seed_scan_and_number_and_with_nothing_else() -> None:
    counts = frames_of(1200, 1200)
    items = choose(counts, sampler="random", num_frames=200, per_scan=2)
    starts = [tuple(item.start for item in windows_of(items, epoch)) for epoch in range(3)]
    other_seed = windows_of(choose(counts, seed=1, sampler="random", num_frames=200, per_scan=2), 0)
    drawn = list(chain.from_iterable(starts)) + [item.start for item in other_seed]
    assert len(set(drawn)) == 16, "1001 starts are possible; these 16 draws are fixed, and differ"
    again = pickle.loads(pickle.dumps(choose(counts, sampler="random", num_frames=200, per_scan=2)))
    assert [tuple(item.start for item in windows_of(again, epoch)) for epoch in range(3)] == starts
    # A scan that comes or goes changes nothing for the others: what is drawn depends on the scan's name.
    alone = choose({"run-1": 1200}, sampler="random", num_frames=200, per_scan=2)
    assert windows_of(alone, 1) == windows_of(items, 1)[2:]


def test_every_start_of_a_random_window_is_about_equally_likely() -> None:
    items = choose(frames_of(14), sampler="random", num_frames=5)
    counts = Counter(item_at(items, 0, epoch).start for epoch in range(2000))
    assert sorted(counts) == list(range(10))
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 47  # 9 degrees of freedom: passed by chance once in four million


@given(
    num_frames=st.integers(1, 90),
    length=st.integers(1, 40),
    stride=st.none() | st.integers(1, 40),
    tail=st.sampled_from(["align", "pad"]),
    short=st.sampled_from(["pad", "whole"]),
)
@settings(max_examples=200, deadline=None)
def test_covering_windows_leave_no_frame_out(
    num_frames: int, length: int, stride: int | None, tail: Any, short: Any
) -> None:
    stride = None if stride is None else min(stride, length)
    config = WindowConfig(sampler="cover", num_frames=length, stride=stride, tail=tail, short=short)
    windows = cover_run("run", num_frames, config)
    spans = [(window.start or 0, window.stop or 0) for window in windows]
    assert set().union(*(range(*span) for span in spans)) == set(range(num_frames))
    assert len(set(spans)) == len(spans)
    assert [start for start, _ in spans] == sorted(start for start, _ in spans)
    if num_frames >= length or short == "pad":
        assert {window.num_frames for window in windows} == {length}
    if num_frames >= length and tail == "align":
        assert all(window.padding == 0 for window in windows)
    # No window is there for nothing: without the last one, frames would be missing.
    assert len(spans) == 1 or spans[-2][1] < num_frames


@pytest.mark.parametrize(
    ("tail", "expected"),
    [("align", [(0, 4, 0), (4, 8, 0), (7, 11, 0)]), ("pad", [(0, 4, 0), (4, 8, 0), (8, 11, 1)])],
)
def test_the_last_window_is_moved_back_or_filled_up(tail: Any, expected: list[tuple[int, int, int]]) -> None:
    config = WindowConfig(sampler="cover", num_frames=4, tail=tail)
    assert [(item.start, item.stop, item.padding) for item in cover_run("run", 11, config)] == expected


@pytest.mark.parametrize("sampler", ["random", "cover"])
def test_a_short_run_is_refused_padded_or_kept(sampler: Any) -> None:
    counts = frames_of(30, 7)
    with pytest.raises(PlanError, match=r"run-1 is shorter than a window.*given 7 frames.*expected 10 or more"):
        choose(counts, sampler=sampler, num_frames=10)
    padded = windows_of(choose(counts, sampler=sampler, num_frames=10, short="pad"), 0)[-1]
    assert padded == ReadItem(scan_id="run-1", start=0, stop=7, padding=3)
    kept = windows_of(choose(counts, sampler=sampler, num_frames=10, short="whole"), 0)[-1]
    assert (kept, kept.num_frames) == (ReadItem(scan_id="run-1", start=0, stop=7), 7)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=9),
    length=st.integers(1, 25),
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 9),
    tail=st.sampled_from(["align", "pad"]),
)
@settings(max_examples=100, deadline=None)
def test_evaluation_takes_every_window_once_whatever_the_number_of_ranks(
    counts: list[int], length: int, batch_size: int, world_size: int, tail: Any
) -> None:
    runs = frames_of(*counts)
    config = WindowConfig(sampler="cover", num_frames=length, tail=tail, short="pad")
    items = choose_windows(tuple(runs), runs, config)
    plan = Plan(items=items, config=PlanConfig(batch_size=batch_size, sampling="in_order"))
    by_step: dict[int, list[ReadItem]] = {step: [] for step in range(plan.num_steps)}
    for rank in range(world_size):
        for read in plan_reads(plan, rank, world_size):
            by_step[read.step] += read.items
    taken = list(chain.from_iterable(by_step.values()))
    assert taken == [window for name, count in runs.items() for window in cover_run(name, count, config)]


@given(
    counts=st.lists(st.integers(20, 60), min_size=1, max_size=9),
    batch_size=st.integers(1, 8),
    world_sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_a_restart_with_another_number_of_ranks_reads_exactly_the_windows_that_are_left(
    counts: list[int], batch_size: int, world_sizes: tuple[int, int], data: st.DataObject
) -> None:
    items = choose(frames_of(*counts), seed=3, sampler="random", num_frames=20, per_scan=2)
    plan = Plan(items=items, config=PlanConfig(batch_size=batch_size, seed=3), num_epochs=3)
    restart = data.draw(st.integers(0, plan.num_steps))
    taken: dict[int, list[ReadItem]] = {step: [] for step in range(plan.num_steps)}
    for world_size, start, stop in ((world_sizes[0], 0, restart), (world_sizes[1], restart, None)):
        for rank in range(world_size):
            for read in plan_reads(plan, rank, world_size, start, stop):
                taken[read.step] += read.items
    expected = [plan.item(index, batch.epoch) for _, batch in steps(plan) for index in batch.indices]
    assert list(chain.from_iterable(taken.values())) == expected
    assert expected == list(chain.from_iterable(plan.reads(epoch) for epoch in range(3)))
    assert all(
        Counter(item.scan_id for item in plan.reads(epoch)) == dict.fromkeys(frames_of(*counts), 2)
        for epoch in range(3)
    )


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"sampler": "random"}, "num_frames for `random`"),
        ({"num_frames": 5}, "none for `whole`"),
        ({"sampler": "cover", "num_frames": 5, "stride": 6}, "stride 6; expected 1 to num_frames"),
        ({"sampler": "random", "num_frames": 0}, "1 or more"),
        ({"sampler": "random", "num_frames": 5, "per_scan": 0}, "1 or more"),
    ],
)
def test_windows_that_make_no_sense_are_refused(config: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        WindowConfig(**config)


def test_a_scan_without_frames_has_no_windows() -> None:
    with pytest.raises(PlanError, match="given head without frames"):
        choose_windows(("run-0", "head"), {"run-0": 9}, WindowConfig(sampler="cover", num_frames=3))


def test_an_evaluation_covers_what_training_draws_from() -> None:
    drawn = WindowConfig(sampler="random", num_frames=6, per_scan=3, short="pad")
    assert drawn.covering() == WindowConfig(sampler="cover", num_frames=6, per_scan=3, short="pad")
    assert WindowConfig().covering() == WindowConfig()

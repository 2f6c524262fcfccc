from __future__ import annotations

from collections import Counter
from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuroray.platform.data.plan import (
    KeyedPermutation,
    Plan,
    PlanConfig,
    PlanError,
    ReadItem,
    _mix,
    epoch_batches,
    rank_slice,
    steps,
)

SAMPLINGS = ("shuffled", "balanced", "in_order")


def make_items(count: int) -> tuple[ReadItem, ...]:
    return tuple(ReadItem(scan_id=f"scan-{index}") for index in range(count))


@st.composite
def plans(draw: st.DrawFn, samplings: tuple[str, ...] = SAMPLINGS) -> Plan:
    labels = draw(st.lists(st.integers(0, 3), min_size=1, max_size=70))
    config = PlanConfig(
        batch_size=draw(st.integers(1, 20)), seed=draw(st.integers(0, 5)), sampling=draw(st.sampled_from(samplings))
    )
    return Plan(items=make_items(len(labels)), labels=tuple(labels), config=config, num_epochs=draw(st.integers(1, 4)))


@given(size=st.integers(1, 700), seed=st.integers())
@settings(max_examples=60, deadline=None)
def test_a_keyed_permutation_hits_every_number_once(size: int, seed: int) -> None:
    assert sorted(KeyedPermutation(size, seed)) == list(range(size))


def test_a_position_of_a_huge_permutation_is_found_without_building_it() -> None:
    size = 10**15 + 37
    order = KeyedPermutation(size, "huge")
    found = [order[position] for position in range(200)]
    assert len(set(found)) == 200
    assert all(0 <= value < size for value in found)
    # 200 uniform draws: their mean lies within 6 standard errors (6 * size / sqrt(12 * 200)) of the middle.
    assert abs(sum(found) / 200 - size / 2) < 6 * size / (12 * 200) ** 0.5


def test_all_orders_of_five_items_are_about_equally_likely() -> None:
    per_order = 40
    counts = Counter(tuple(KeyedPermutation(5, seed)) for seed in range(120 * per_order))
    chi_square = sum((counts[order] - per_order) ** 2 / per_order for order in counts)
    assert len(counts) == 120
    assert chi_square < 207  # 119 degrees of freedom: 207 is passed by chance once in a million


def test_the_round_function_is_splitmix64() -> None:
    # The first numbers of splitmix64 for the seed 1234567, as published with the algorithm's reference implementations.
    gamma = 0x9E3779B97F4A7C15
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [_mix(1234567 + (index + 1) * gamma) for index in range(3)] == expected


def test_neighbouring_keys_give_unrelated_orders() -> None:
    orders = [list(KeyedPermutation(100, 7, epoch)) for epoch in range(50)]
    fixed = sum(a == b for first, second in pairwise(orders) for a, b in zip(first, second, strict=True))
    assert fixed < 90  # 49 pairs agree in one place each on average; 90 is nearly 6 standard deviations (of 7) above


@given(plan=plans(samplings=("shuffled", "in_order")))
@settings(max_examples=60, deadline=None)
def test_every_item_is_read_once_per_epoch_and_only_the_last_batch_is_short(plan: Plan) -> None:
    for epoch in range(plan.num_epochs):
        batches = [batch.indices for _, batch in steps(plan) if batch.epoch == epoch]
        assert sorted(chain.from_iterable(batches)) == list(range(len(plan.items)))
        assert all(len(batch) == plan.config.batch_size for batch in batches[:-1])


@given(plan=plans(samplings=("balanced",)))
@settings(max_examples=60, deadline=None)
def test_balanced_batches_hold_equal_shares_and_use_items_of_a_class_evenly(plan: Plan) -> None:
    labels = plan.labels
    assert labels is not None
    classes = set(labels)
    batch_size = plan.config.batch_size
    for epoch in range(plan.num_epochs):
        batches = [batch.indices for _, batch in steps(plan) if batch.epoch == epoch]
        assert len(batches) == -(-len(labels) // batch_size)
        for batch in batches:
            shares = Counter(labels[index] for index in batch)
            assert len(batch) == batch_size
            assert max(shares.values()) - min(shares.get(name, 0) for name in classes) <= 1
            assert batch_size < 2 * len(classes) or min(shares[name] for name in classes) >= 2
        uses = Counter(chain.from_iterable(batches))
        for name in classes:
            of_class = [uses.get(index, 0) for index, label in enumerate(labels) if label == name]
            assert max(of_class) - min(of_class) <= 1


def test_each_rank_of_a_balanced_batch_sees_every_class() -> None:
    config = PlanConfig(batch_size=16, sampling="balanced")
    labels = ["patient"] * 5 + ["control"] * 40
    for batch in epoch_batches(make_items(45), labels, config, epoch=3):
        for rank in range(4):
            shares = Counter(labels[index] for index in rank_slice(batch, rank, 4))
            assert shares == {"patient": 2, "control": 2}


@given(plan=plans(), world_sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_ranks_together_read_the_batch_whatever_their_number(plan: Plan, world_sizes: list[int]) -> None:
    for step, batch in steps(plan):
        for world_size in world_sizes:
            parts = [plan.rank_batch(step, rank, world_size) for rank in range(world_size)]
            assert list(chain.from_iterable(parts)) == batch.indices
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(plan=plans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_resumed_run_reads_the_rest_of_an_uninterrupted_one(plan: Plan, data: st.DataObject) -> None:
    whole = list(steps(plan))
    start = data.draw(st.integers(0, plan.num_steps))
    again = Plan(items=plan.items, labels=plan.labels, config=plan.config, num_epochs=plan.num_epochs)
    assert list(steps(again, start)) == whole[start:]


@given(plan=plans())
@settings(max_examples=30, deadline=None)
def test_epoch_batches_are_the_steps_of_that_epoch(plan: Plan) -> None:
    epoch = plan.num_epochs - 1
    expected = [batch.indices for _, batch in steps(plan) if batch.epoch == epoch]
    assert epoch_batches(plan.items, plan.labels, plan.config, epoch) == expected


def test_epochs_and_seeds_differ_in_order() -> None:
    items = make_items(50)
    orders = {
        tuple(chain.from_iterable(epoch_batches(items, None, PlanConfig(batch_size=7, seed=seed), epoch)))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize(
    ("labels", "told"),
    [(None, "no labels"), (("a", "b"), "2 labels for 3 items"), (("a", None, "b"), "1 items without one")],
)
def test_balancing_without_a_label_for_every_item_is_refused(labels: tuple[str | None, ...] | None, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        Plan(items=make_items(3), labels=labels, config=PlanConfig(batch_size=2, sampling="balanced"))


@pytest.mark.parametrize("step", [-1, 6])
def test_a_step_outside_the_plan_is_refused(step: int) -> None:
    plan = Plan(items=make_items(5), config=PlanConfig(batch_size=2), num_epochs=2)
    with pytest.raises(PlanError, match="0 to 5"):
        plan.batch(step)


@pytest.mark.parametrize(("start", "stop"), [(0, None), (None, 4), (4, 4), (-1, 3)])
def test_a_window_without_frames_is_refused(start: int | None, stop: int | None) -> None:
    with pytest.raises(PlanError, match="window"):
        ReadItem(scan_id="scan", start=start, stop=stop)


def test_a_plan_over_nothing_is_refused() -> None:
    with pytest.raises(PlanError, match="nothing"):
        Plan(items=(), config=PlanConfig(batch_size=2))

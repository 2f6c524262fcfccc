from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuroray.platform.data.collate import RowError
from neuroray.platform.data.dataset import _fit_buffer, _Reading, batch_stream
from neuroray.platform.data.plan import Plan, PlanConfig, PlanError, ReadItem
from neuroray.storage.faults import StoreError

MakeReader = Callable[..., Any]
MIB = 2**20


def make_plan(count: int = 21, batch_size: int = 4, num_epochs: int = 2, **config: Any) -> Plan:
    return Plan(
        items=tuple(ReadItem(scan_id=f"scan-{index}") for index in range(count)),
        config=PlanConfig(batch_size=batch_size, **config),
        num_epochs=num_epochs,
        labels=tuple(index % 2 for index in range(count)),
    )


def read_all(plan: Plan, reader: Any, **options: Any) -> list[tuple[int, dict[str, torch.Tensor]]]:
    return list(batch_stream(plan, reader, **options))


def items_of(stream: list[tuple[int, dict[str, torch.Tensor]]]) -> list[tuple[int, list[int]]]:
    return [(step, batch["item"].tolist()) for step, batch in stream]


def assert_same(
    first: list[tuple[int, dict[str, torch.Tensor]]], second: list[tuple[int, dict[str, torch.Tensor]]]
) -> None:
    assert [step for step, _ in first] == [step for step, _ in second]
    for (_, one), (_, other) in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_batches_read_in_process_follow_the_plan(make_reader: MakeReader, prefetch: int) -> None:
    plan, reader = make_plan(), make_reader()
    stream = read_all(plan, reader, feed="direct", prefetch=prefetch)
    assert items_of(stream) == [(step, plan.batch(step).indices) for step in range(12)]
    for _, batch in stream:
        rows = [reader(plan.items[index]) for index in batch["item"]]
        assert torch.equal(batch["features"], torch.stack([torch.from_numpy(row["features"]) for row in rows]))
        assert batch["label"].tolist() == [index % 2 for index in batch["item"].tolist()]
        assert (batch["mask"].dtype, batch["label"].dtype) == (torch.bool, torch.int64)


@pytest.mark.parametrize("sampling", ["shuffled", "balanced", "in_order"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_together_get_the_plan_and_step_together(make_reader: MakeReader, sampling: str, world_size: int) -> None:
    plan = make_plan(sampling=sampling)
    streams = [
        items_of(read_all(plan, make_reader(), rank=rank, world_size=world_size, feed="direct", prefetch=0))
        for rank in range(world_size)
    ]
    for step, parts in enumerate(zip(*streams, strict=True)):
        assert [at for at, _ in parts] == [step] * world_size
        assert [index for _, part in parts for index in part] == plan.batch(step).indices


def test_a_rank_without_rows_gets_an_empty_batch_of_the_right_shape(make_reader: MakeReader) -> None:
    plan = make_plan(count=5, batch_size=4, num_epochs=1)  # the second batch holds one row, which is the second rank's
    (_, batch) = read_all(plan, make_reader(), rank=0, world_size=2, feed="direct")[1]
    assert batch["features"].shape == (0, 5, 7)
    assert (batch["label"].shape, batch["item"].dtype, batch["mask"].dtype) == ((0,), torch.int64, torch.bool)


def test_a_stream_resumed_with_another_world_size_reads_exactly_the_rest(make_reader: MakeReader) -> None:
    plan = make_plan()
    before = [
        items_of(read_all(plan, make_reader(), rank=rank, world_size=2, stop_step=7, feed="direct"))
        for rank in range(2)
    ]
    after = [
        items_of(read_all(plan, make_reader(), rank=rank, world_size=3, start_step=7, feed="direct"))
        for rank in range(3)
    ]
    joined = [
        [index for _, part in parts for index in part]
        for parts in [*zip(*before, strict=True), *zip(*after, strict=True)]
    ]
    assert joined == [plan.batch(step).indices for step in range(plan.num_steps)]


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 13)])
def test_steps_outside_the_plan_are_refused_before_anything_is_read(
    make_reader: MakeReader, start: int, stop: int
) -> None:
    with pytest.raises(PlanError, match="within 0 to 12"):
        batch_stream(make_plan(), make_reader(), start_step=start, stop_step=stop)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_rows_that_do_not_fit_are_told_by_name_and_shape(make_reader: MakeReader, prefetch: int) -> None:
    plan = make_plan(sampling="in_order")
    with pytest.raises(RowError, match=r"features of scan-6 does not fit scan-4.*given float32 \(6, 7\).*\(5, 7\)"):
        read_all(plan, make_reader(ragged=("scan-6",)), feed="direct", prefetch=prefetch)


def test_a_stream_that_is_closed_early_reads_no_further(make_reader: MakeReader) -> None:
    reader = make_reader()
    stream = batch_stream(make_plan(num_epochs=50), reader, feed="direct", prefetch=2)
    next(stream)
    stream.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    time.sleep(0.05)  # a read under way may end
    seen = reader.num_reads
    time.sleep(0.2)
    assert reader.num_reads == seen <= 4 * 6


@pytest.mark.ray
def test_ray_gives_the_same_bytes_as_reading_in_process(ray_session: Any, make_reader: MakeReader) -> None:
    plan = make_plan(sampling="balanced")
    for rank, world_size, start in [(0, 1, 0), (1, 3, 5)]:
        part = {"rank": rank, "world_size": world_size, "start_step": start}
        direct = read_all(plan, make_reader(), feed="direct", **part)
        assert_same(read_all(plan, make_reader(), feed="ray", **part), direct)


@pytest.mark.ray
def test_executions_of_ray_follow_one_another_without_a_seam(
    ray_session: Any, make_reader: MakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuroray.platform.data.dataset._STEPS_PER_EXECUTION", 5)
    plan = make_plan(count=5, num_epochs=6)
    part = {"rank": 0, "world_size": 2, "start_step": 1}  # rank 0 of 2 reads nothing of every second batch
    assert_same(read_all(plan, make_reader(), **part), read_all(plan, make_reader(), feed="direct", **part))


@pytest.mark.ray
def test_workers_that_hold_every_cpu_are_still_fed(ray_session: Any, make_reader: MakeReader) -> None:
    @ray_session.remote(num_cpus=ray_session.cluster_resources()["CPU"] / 2)
    class Worker:
        def read(self, plan: Plan, reader: Any, rank: int) -> list[list[int]]:
            from neuroray.platform.data.dataset import batch_stream

            stream = batch_stream(plan, reader, rank=rank, world_size=2)
            return [batch["item"].tolist() for _, batch in stream]

    plan, workers = make_plan(), [Worker.remote() for _ in range(2)]
    try:
        parts = ray_session.get([worker.read.remote(plan, make_reader(), rank) for rank, worker in enumerate(workers)])
    finally:
        for worker in workers:
            ray_session.kill(worker)
    joined = [first + second for first, second in zip(*parts, strict=True)]
    assert joined == [plan.batch(step).indices for step in range(plan.num_steps)]


@pytest.mark.ray
@pytest.mark.parametrize("num_batches", [4, 8])
def test_a_stream_whose_taker_waits_reads_no_further_than_its_buffer(
    ray_session: Any, tmp_path: Path, num_batches: int
) -> None:
    size_bytes, notes = 4 * MIB, tmp_path / "reads"

    class NotingReader:
        def __call__(self, item: ReadItem) -> dict[str, np.ndarray]:
            with notes.open("a") as file:
                file.write(".")
            return {"voxels": np.ones(size_bytes, np.uint8)}

        def size_bytes(self, item: ReadItem) -> int:
            return size_bytes

    plan = make_plan(count=30, batch_size=1, num_epochs=1)
    # A block is a batch, its index and its step.
    stream = batch_stream(plan, NotingReader(), read_concurrency=1, buffer_bytes=num_batches * (size_bytes + 16))
    ahead = []
    for number, _ in enumerate(stream, start=1):
        time.sleep(0.1)  # enough to read everything
        ahead.append(notes.stat().st_size - number)
    # Beside them in the store: the batch in use, and the one before it. One more the reader may hold in its own memory.
    assert 1 <= max(ahead) <= num_batches - 2 + 1


@pytest.mark.ray
@pytest.mark.parametrize("num_values", [101, 200_003])  # what Ray keeps in line, and what it keeps in its object store
def test_memory_that_readers_use_again_overwrites_no_batch_under_way(ray_session: Any, num_values: int) -> None:
    class FillingReader:
        def __call__(self, item: ReadItem) -> dict[str, Any]:
            raise NotImplementedError

        def size_bytes(self, item: ReadItem) -> int:
            return 2 * num_values

        def read_batch(self, items: Any, buffers: Any = None) -> dict[str, Any]:
            voxels = buffers.take("voxels", (len(items), num_values), np.dtype(np.int16))
            for row, one in zip(voxels, items, strict=True):
                row[:] = int(one.scan_id.split("-")[-1])
            return {"voxels": voxels}

    plan = make_plan(count=60, batch_size=2, num_epochs=1)
    # Kept to the end, in Ray's own memory: whatever were written late would be seen in them.
    kept = list(batch_stream(plan, FillingReader(), share=True, read_concurrency=2))
    assert len(kept) == 30
    for _, batch in kept:
        assert torch.equal(batch["voxels"], batch["item"].to(torch.int16)[:, None].expand(-1, num_values))


@pytest.mark.ray
def test_an_error_in_a_read_task_arrives_as_itself(ray_session: Any, make_reader: MakeReader) -> None:
    plan = make_plan(sampling="in_order")
    fault = StoreError("chunk c/0 of scan-6 is damaged", fix="restore it")
    with pytest.raises(StoreError, match="chunk c/0 of scan-6 is damaged; likely fix: restore it"):
        read_all(plan, make_reader(faults={"scan-6": fault}))
    with pytest.raises(RowError, match="features of scan-6 does not fit scan-4"):
        read_all(plan, make_reader(ragged=("scan-6",)))


@pytest.mark.parametrize(
    ("buffer_mib", "expected"),
    [
        (None, (4, 2, 320)),  # four tasks at a time, twice over and twice more
        (200, (4, 2, 120)),  # one batch in use and the one before, two ahead, the rest for tasks
        (140, (2, 2, 60)),
        (100, (1, 1, 40)),
        (50, (1, 0, 20)),
        (1, (1, 0, 20)),  # a batch at a time always flows
    ],
)
def test_tasks_and_batches_ahead_are_fitted_into_the_buffer(
    buffer_mib: int | None, expected: tuple[int, int, int]
) -> None:
    source: Any = SimpleNamespace(largest_task_bytes=20 * MIB, largest_block_bytes=20 * MIB, num_tasks=9)
    buffer_bytes = None if buffer_mib is None else buffer_mib * MIB
    concurrency, ahead, held = _fit_buffer(source, 2, _Reading(4, 0.0, buffer_bytes))
    assert (concurrency, ahead, held // MIB) == expected

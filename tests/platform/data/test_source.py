from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from neuroray.platform.data.plan import Plan, PlanConfig, ReadItem

pytestmark = pytest.mark.ray


@pytest.fixture
def plan() -> Plan:
    items = tuple(ReadItem(scan_id=f"secret-{index}") for index in range(10))
    return Plan(items=items, config=PlanConfig(batch_size=4), num_epochs=3)


def read_blocks(source: Any) -> list[Any]:
    return [block for task in source.get_read_tasks(1) for block in task()]


def test_a_block_is_a_step_and_tasks_follow_the_plan(
    ray_session: Any, plan: Plan, make_reader: Callable[..., Any]
) -> None:
    from neuroray.platform.data.source import PlanSource

    source = PlanSource(plan, make_reader(), start_step=2, task_bytes=1640)
    blocks = read_blocks(source)
    assert [block["step"].to_pylist() for block in blocks] == [[step] for step in range(2, 9)]
    assert [block["item"].to_numpy()[0].tolist() for block in blocks] == [
        plan.batch(step).indices for step in range(2, 9)
    ]
    # A row takes 161 bytes, a batch 652, the short one at an epoch's end 330: 330 + 652 + 652 fit into a task.
    assert [task.metadata.num_rows for task in source.get_read_tasks(1)] == [3, 3, 1]


def test_sizes_are_exact(ray_session: Any, plan: Plan, make_reader: Callable[..., Any]) -> None:
    from neuroray.platform.data.source import PlanSource

    source = PlanSource(plan, make_reader(), rank=1, world_size=2, task_bytes=500)
    for task in source.get_read_tasks(1):
        arrays = [block[name].to_numpy() for block in task() for name in block.column_names]
        assert task.metadata.size_bytes == sum(values[0].nbytes for values in arrays)
    assert source.estimate_inmemory_data_size() == sum(task.metadata.size_bytes for task in source.get_read_tasks(1))


def test_neither_names_nor_metadata_tell_who_is_read(
    ray_session: Any, plan: Plan, make_reader: Callable[..., Any]
) -> None:
    from neuroray.platform.data.source import PlanSource

    source = PlanSource(plan, make_reader())
    told = [source.get_name(), *(str(task.metadata) for task in source.get_read_tasks(1))]
    assert not any("secret" in text for text in told)
    assert all(task.metadata.input_files is None for task in source.get_read_tasks(1))


def test_a_limit_of_rows_is_honoured(ray_session: Any, plan: Plan, make_reader: Callable[..., Any]) -> None:
    import ray.data

    from neuroray.platform.data.source import PlanSource

    steps = ray.data.read_datasource(PlanSource(plan, make_reader()), num_cpus=0).limit(4).take_all()
    assert sorted(row["step"] for row in steps) == [0, 1, 2, 3]

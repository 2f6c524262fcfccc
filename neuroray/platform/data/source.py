"""Sources for Ray Data: the remaining steps of a plan, one block each, in order; and whole scans, one row each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import ray
from ray.data import Datasource
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import ReadTask

from neuroray.platform.data.collate import STEP
from neuroray.platform.data.plan import Plan, ReadItem, StepRead, plan_reads
from neuroray.platform.data.readers import Buffers, Reader, read_step

if TYPE_CHECKING:
    from ray.data import DataContext

_TASK_BYTES = 16 * 2**20
_LONGEST_TASK_STEPS = 64
_READERS_KEPT = 4
_readers: OrderedDict[str, Any] = OrderedDict()
_buffers = Buffers()  # a process works off one task at a time


class _Task(NamedTuple):
    read: Callable[[], Iterator[Block]]
    num_rows: int
    size_bytes: int


class _TaskSource(Datasource):
    """A source whose read tasks, and their exact sizes, are known from the start."""

    def __init__(self, name: str, tasks: Sequence[_Task]) -> None:
        super().__init__()
        self._name = name
        self._tasks = tasks

    @property
    def num_tasks(self) -> int:
        """Read tasks, each a run of consecutive blocks."""
        return len(self._tasks)

    @property
    def largest_task_bytes(self) -> int:
        """Bytes of the blocks of the largest task."""
        return max((task.size_bytes for task in self._tasks), default=0)

    def get_name(self) -> str:
        """Shown in logs and on the dashboard: the kind of source, nothing of what it reads."""
        return self._name

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks: exact, for shapes and types are known."""
        return sum(task.size_bytes for task in self._tasks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The tasks in order; their number does not follow `parallelism`, for one of them is a run of blocks."""
        del parallelism, data_context
        return [
            ReadTask(
                task.read,
                BlockMetadata(num_rows=task.num_rows, size_bytes=task.size_bytes, input_files=None, exec_stats=None),
                per_task_row_limit=per_task_row_limit,
            )
            for task in self._tasks
        ]


class PlanSource(_TaskSource):
    """What one rank reads from `start_step` on: a block per step, in the order of the plan.

    A block has one row, in which every column holds the whole batch (`features` is batch slice channel): Ray Data cuts
    and joins blocks between rows to sizes it likes, and a row stays whole. Steps that leave this rank nothing give no
    block.

    Args:
        plan: The whole run.
        reader: Pickled once, and kept (with its opened store and its rows) by the processes that read.
        rank: Whose part of each batch.
        world_size: How many parts.
        start_step: The first step to read.
        stop_step: The end (exclusive); None: of the plan.
        task_bytes: About how much a task reads before the next task, on another worker, takes over.
    """

    def __init__(
        self,
        plan: Plan,
        reader: Reader,
        *,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        stop_step: int | None = None,
        task_bytes: int = _TASK_BYTES,
    ) -> None:
        reads = plan_reads(plan, rank, world_size, start_step, stop_step)
        sized = [(read, _block_bytes(read, reader)) for read in reads]
        reference = ray.put(reader)
        tasks = [
            _Task(_block_reader(reference, [read for read, _ in run]), len(run), sum(size for _, size in run))
            for run in _in_runs(sized, task_bytes)
        ]
        super().__init__("Plan", tasks)
        self.largest_block_bytes = max((size for _, size in sized), default=0)


class ScanSource(_TaskSource):
    """Whole scans, one row each, with what the catalogue knows of them.

    Args:
        items: The scans.
        read_row: From an item to arrays and scalars by name.
        sizes_bytes: Of the rows, in the same order.
    """

    def __init__(
        self, items: Sequence[ReadItem], read_row: Callable[[ReadItem], Mapping[str, Any]], sizes_bytes: Sequence[int]
    ) -> None:
        reference = ray.put(read_row)
        tasks = [_Task(_row_reader(reference, item), 1, size) for item, size in zip(items, sizes_bytes, strict=True)]
        super().__init__("Scans", tasks)


def _in_runs(sized: Iterable[tuple[StepRead, int]], task_bytes: int) -> list[list[tuple[StepRead, int]]]:
    """Consecutive reads, with their bytes, that one task does."""
    runs: list[list[tuple[StepRead, int]]] = []
    room = 0
    for read, size in sized:
        if not runs or size > room or len(runs[-1]) == _LONGEST_TASK_STEPS:
            runs.append([])
            room = task_bytes
        runs[-1].append((read, size))
        room -= size
    return runs


def _block_bytes(read: StepRead, reader: Reader) -> int:
    """All rows, an index for each, and the step."""
    return sum(reader.size_bytes(item) + 8 for item in read.items) + 8


def _block_reader(reference: ray.ObjectRef, run: Sequence[StepRead]) -> Callable[[], Iterator[Block]]:
    def read_blocks() -> Iterator[Block]:
        reader = _fetch_reader(reference)
        for read in run:
            # Ray has copied a block into its object store before it asks for the next one.
            batch = {**read_step(reader, read, _buffers), STEP: np.asarray(read.step)}
            yield BlockAccessor.batch_to_arrow_block({name: values[None] for name, values in batch.items()})

    return read_blocks


def _row_reader(reference: ray.ObjectRef, item: ReadItem) -> Callable[[], Iterator[Block]]:
    def read_row() -> Iterator[Block]:
        row = _fetch_reader(reference)(item)
        columns = {name: value[None] if isinstance(value, np.ndarray) else [value] for name, value in row.items()}
        yield BlockAccessor.batch_to_arrow_block(columns)

    return read_row


def _fetch_reader(reference: ray.ObjectRef) -> Any:
    """The reader of a source, kept between the tasks of a process with all that it has opened."""
    key = reference.hex()
    if key not in _readers:
        _readers[key] = ray.get(reference)
        while len(_readers) > _READERS_KEPT:
            _readers.popitem(last=False)
    return _readers[key]

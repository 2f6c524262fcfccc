"""From a plan to training batches, by Ray Data or in process, the same bytes either way; and scans as a dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from neuroray.errors import NeurorayError
from neuroray.platform.data.collate import STEP, empty_batch, to_torch
from neuroray.platform.data.plan import Plan, PlanError, ReadItem, plan_reads
from neuroray.platform.data.readers import Reader, ScanReader, read_step

if TYPE_CHECKING:
    import ray.data
    from torch import Tensor

    from neuroray.platform.data.source import PlanSource

Feed = Literal["ray", "direct"]

_STEPS_PER_EXECUTION = 2048
_LEAST_BUFFER_BYTES = 256 * 2**20
_READ_THREADS = 2


def batch_stream(
    plan: Plan,
    reader: Reader,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    stop_step: int | None = None,
    feed: Feed = "ray",
    prefetch: int = 2,
    pin_memory: bool = False,
    share: bool = False,
    read_concurrency: int = 2,
    read_cpus: float = 0.0,
    buffer_bytes: int | None = None,
) -> Generator[tuple[int, dict[str, Tensor]]]:
    """One rank's part of every step of a plan, in order, each step exactly once.

    Every rank makes its own stream, so no rank waits for another, none loses a row to equal splits, and a run may go on
    from any step with any number of ranks. A rank to which a short batch leaves nothing gets a batch of no rows, so
    that all ranks take the same steps. Close the iterator (or use it up) to stop reading.

    Args:
        plan: The whole run.
        reader: Reads one item.
        rank: Of this process.
        world_size: How many processes share each batch.
        start_step: The first step wanted.
        stop_step: The end (exclusive); None: of the plan.
        feed: "ray": read by Ray Data's tasks, on any machine of the cluster. "direct": read here.
        prefetch: Batches made ready ahead; 0 with "direct" reads when asked.
        pin_memory: Puts batches into page-locked memory, from which a GPU copies faster.
        share: Leaves arrays of integers in Ray's memory, which may not be written to; see `to_torch`.
        read_concurrency: Read tasks at a time, for this rank; "ray" only.
        read_cpus: Logical CPUs that a read task holds; "ray" only. Zero by default, because training workers may hold
            all there are: reading would wait for them, and they for it. `read_concurrency` bounds the load instead.
        buffer_bytes: What may lie in Ray's object store for this rank. Fewer tasks read at a time, and fewer batches
            are made ready, where they would not fit; less than four batches it cannot be. None: enough for all that
            `read_concurrency` and `prefetch` ask for. "ray" only. Ray frees what was taken once in
            `RAY_free_objects_period_milliseconds`: a cluster that keeps to Ray's second holds a second's batches more.

    Yields:
        The step and its batch: what the reader gives by name, stacked, and `item`, the index into the plan's items.

    Raises:
        PlanError: no such rank or steps.
        RowError: rows of a batch that do not fit together.
        StoreError: an item that cannot be read.
    """
    stop = plan.num_steps if stop_step is None else stop_step
    if not 0 <= start_step <= stop <= plan.num_steps:
        raise PlanError(
            "no such steps in the plan", given=f"{start_step} to {stop}", expected=f"within 0 to {plan.num_steps}"
        )
    part = _Part(plan, reader, rank, world_size, start_step, stop)
    if feed == "direct":
        batches = _read_here(part, prefetch)
    else:
        batches = _read_by_ray(part, prefetch, _Reading(read_concurrency, read_cpus, buffer_bytes))
    return _in_step(part, batches, pin_memory=pin_memory, share=share)


def scan_dataset(
    store_uri: str, version: int | None, scan_ids: Sequence[str], *, read_concurrency: int = 4
) -> ray.data.Dataset:
    """A dataset with one row per scan, in the order given, at one version of the catalogue.

    Columns: `scan_id`, `voxels` ([time] x y z, float32, RAS+), `affine` (4, 4), `spacing_mm` (3), and the labels
    `subject`, `session`, `modality`, `age_years`, `sex`, `diagnosis`, `cognition`, `site`, null where unknown.

    Args:
        store_uri: The store.
        version: Of its catalogue; None: the newest now, which stays the one read however long reading takes.
        scan_ids: Which scans.
        read_concurrency: Scans read at a time; reading holds no logical CPU, so it never waits for those who use it.

    Raises:
        StoreError: there is no such store, version or scan.
    """
    import ray.data

    from neuroray.platform.data.source import ScanSource
    from neuroray.storage.store import ScanStore

    pinned = ScanStore(store_uri, version=version).version
    reader = ScanReader(store_uri, pinned)
    items = [ReadItem(scan_id=scan_id) for scan_id in scan_ids]
    sizes_bytes = [reader.size_bytes(item) for item in items]
    source = ScanSource(items, lambda item: _scan_row(reader, item), sizes_bytes)
    dataset = ray.data.read_datasource(
        source,
        num_cpus=0,
        concurrency=max(1, min(read_concurrency, source.num_tasks)),
        override_num_blocks=max(1, source.num_tasks),
    )
    dataset.context.execution_options.preserve_order = True
    return dataset


_LABELS = ("subject", "session", "modality", "age_years", "sex", "diagnosis", "cognition", "site")


def _scan_row(reader: ScanReader, item: ReadItem) -> dict[str, Any]:
    record = reader.record(item)
    return {"scan_id": item.scan_id, **reader(item), **{name: getattr(record, name) for name in _LABELS}}


class _Part:
    """One rank's steps `start` to `stop` of a plan."""

    def __init__(self, plan: Plan, reader: Reader, rank: int, world_size: int, start: int, stop: int) -> None:
        self.plan, self.reader = plan, reader
        self.rank, self.world_size = rank, world_size
        self.steps = range(start, stop)
        self._empty: dict[str, np.ndarray] | None = None

    def indices(self, step: int) -> list[int]:
        return self.plan.rank_batch(step, self.rank, self.world_size)

    def empty(self) -> dict[str, np.ndarray]:
        if self._empty is None:
            self._empty = empty_batch(self.reader(self.plan.item(0, 0)))
        return self._empty


def _in_step(
    part: _Part, batches: Generator[tuple[int, Mapping[str, np.ndarray]]], *, pin_memory: bool, share: bool
) -> Generator[tuple[int, dict[str, Tensor]]]:
    """The batches with those of no rows set between them, as tensors."""
    with closing(batches):
        for step in part.steps:
            if not part.indices(step):
                yield step, to_torch(part.empty(), pin_memory=pin_memory)
                continue
            found, batch = next(batches)
            if found != step:
                raise RuntimeError(f"the stream is out of step: it gave {found} where {step} was due")
            yield step, to_torch(batch, pin_memory=pin_memory, share=share)


def _read_here(part: _Part, prefetch: int) -> Generator[tuple[int, Mapping[str, np.ndarray]]]:
    reads = plan_reads(part.plan, part.rank, part.world_size, part.steps.start, part.steps.stop)
    if prefetch == 0:
        for read in reads:
            yield read.step, read_step(part.reader, read)
        return
    pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="read")
    waiting: deque[tuple[int, Future[dict[str, np.ndarray]]]] = deque()
    try:
        for read in reads:
            waiting.append((read.step, pool.submit(read_step, part.reader, read)))
            if len(waiting) > prefetch:
                step, batch = waiting.popleft()
                yield step, batch.result()
        while waiting:
            step, batch = waiting.popleft()
            yield step, batch.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _Reading(NamedTuple):
    """How much Ray Data may take of the machine."""

    concurrency: int
    cpus: float
    buffer_bytes: int | None


def _read_by_ray(part: _Part, prefetch: int, reading: _Reading) -> Generator[tuple[int, Mapping[str, np.ndarray]]]:
    """One execution of Ray Data after the other, each over so many steps that planning stays short."""
    for start in range(part.steps.start, part.steps.stop, _STEPS_PER_EXECUTION):
        stop = min(start + _STEPS_PER_EXECUTION, part.steps.stop)
        source = _plan_source(part, range(start, stop))
        if source.num_tasks == 0:
            continue
        dataset, ahead = _plan_dataset(source, prefetch, reading)
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=ahead):
                columns = {str(name): np.asarray(values[0]) for name, values in block.items()}
                yield int(columns.pop(STEP)), columns
        except Exception as error:
            raise unwrap_error(error) from error


def _plan_source(part: _Part, steps: range) -> PlanSource:
    from neuroray.platform.data.source import PlanSource

    return PlanSource(
        part.plan,
        part.reader,
        rank=part.rank,
        world_size=part.world_size,
        start_step=steps.start,
        stop_step=steps.stop,
    )


def _plan_dataset(source: PlanSource, prefetch: int, reading: _Reading) -> tuple[ray.data.Dataset, int]:
    """The dataset, and how many of its blocks may be fetched ahead."""
    import ray.data

    concurrency, ahead, held = _fit_buffer(source, prefetch, reading)
    dataset = ray.data.read_datasource(
        source, num_cpus=reading.cpus, concurrency=concurrency, override_num_blocks=source.num_tasks
    )
    context = dataset.context
    context.target_max_block_size = (
        1  # every row is larger: each is a block of its own, given out as soon as it is read
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=held)
    return dataset, ahead


def _fit_buffer(source: PlanSource, prefetch: int, reading: _Reading) -> tuple[int, int, int]:
    """Tasks at a time, batches ahead, and the bytes that Ray Data is told to keep to."""
    task, block = source.largest_task_bytes, source.largest_block_bytes
    concurrency = min(reading.concurrency, source.num_tasks)
    if reading.buffer_bytes is None:
        return concurrency, prefetch, max(_LEAST_BUFFER_BYTES, 4 * reading.concurrency * task)
    # In the store at once: the batch in use and the one before, which Ray frees a moment later; those ahead; and what
    # tasks may put there before they are held back, which is never less than two blocks.
    room = reading.buffer_bytes - 2 * block
    concurrency = max(1, min(concurrency, room // (2 * task)))
    ahead = max(0, min(prefetch, (room - max(2 * block, concurrency * task)) // block))
    return concurrency, ahead, max(block, room - ahead * block)


def unwrap_error(error: BaseException) -> BaseException:
    """The error of ours that Ray has wrapped, where there is one; else the error itself."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, NeurorayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error

"""Windows through Ray Data into training batches, against processes that read the same windows by themselves."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from neuroray.platform.data.benchmark.rounds import Row, take_quantile
from neuroray.platform.data.benchmark.workplace import RUN, Workplace, open_reader
from neuroray.platform.data.collate import to_torch
from neuroray.platform.data.dataset import batch_stream
from neuroray.platform.data.plan import Plan, PlanConfig, plan_reads
from neuroray.platform.data.readers import read_step
from neuroray.platform.data.windows import WindowConfig, choose_windows

# Until Ray has written once to all of the memory that it will use: the first write of a page costs more than a copy.
WARM_UP_STEPS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTask:
    """So many windows in random order, one per batch.

    Attributes:
        num_frames: Of a window.
        num_windows: That are timed; `WARM_UP_STEPS` come before them.
        num_processes: That read.
        buffer_bytes: What Ray Data may hold.
    """

    num_frames: int
    num_windows: int
    num_processes: int
    buffer_bytes: int

    def plan(self, place: Workplace) -> Plan:
        """The windows of both sides."""
        config = WindowConfig(sampler="random", num_frames=self.num_frames, per_scan=self.num_windows + WARM_UP_STEPS)
        items = choose_windows((RUN,), {RUN: place.shape[0]}, config)
        return Plan(items=items, config=PlanConfig(batch_size=1))


def compare_streams(place: Workplace, task: StreamTask, rounds: int) -> list[Row]:
    """Both ways in turns; needs a Ray that this process is connected to."""
    times: dict[str, list[float]] = {"ray": [], "direct": []}
    ways: dict[str, Any] = {"ray": time_ray, "direct": time_direct}
    for turn in range(rounds):
        for name in ("direct", "ray") if turn % 2 == 0 else ("ray", "direct"):
            times[name].append(ways[name](place, task))
    window_bytes = task.num_frames * place.frame_bytes
    case = f"{task.num_frames}-frame windows to batches, {task.num_processes} reading processes"
    names = {"ray": "ours, through Ray Data", "direct": "the same reader in processes of its own, no Ray"}
    return [
        Row(
            case=case,
            cache="warm",
            name=names[name],
            median_s=statistics.median(times[name]),
            p20_s=take_quantile(times[name], 0.2),
            p80_s=take_quantile(times[name], 0.8),
            rounds=rounds,
            rate_mb_per_s=window_bytes / statistics.median(times[name]) / 1e6,
            ratio=statistics.median(one / ray for one, ray in zip(times[name], times["ray"], strict=True)),
            remark=f"seconds per window, over {task.num_windows} after {WARM_UP_STEPS} untimed",
        )
        for name in ("ray", "direct")
    ]


def time_ray(place: Workplace, task: StreamTask) -> float:
    """Seconds per window of the stream that training takes, once it flows."""
    plan = task.plan(place)
    start = 0.0
    # As the training loop takes it on a CPU.
    stream = batch_stream(
        plan,
        open_reader(place),
        share=True,
        read_concurrency=task.num_processes,
        buffer_bytes=task.buffer_bytes,
    )
    with closing(stream):
        for number, (_, batch) in enumerate(stream, start=1):
            del batch
            if number == WARM_UP_STEPS:
                start = time.perf_counter()
    return (time.perf_counter() - start) / task.num_windows


def time_direct(place: Workplace, task: StreamTask) -> float:
    """Seconds per window of so many processes, each with every n-th window, from a common start."""
    context = multiprocessing.get_context("spawn")  # Zarr and object stores have threads: a fork would hang
    barrier = context.Barrier(task.num_processes + 1)
    done: Any = context.Queue()
    workers = [
        context.Process(target=_read_share, args=(place, task, rank, barrier, done))
        for rank in range(task.num_processes)
    ]
    for worker in workers:
        worker.start()
    barrier.wait(timeout=300)
    start = time.perf_counter()
    for _ in workers:
        done.get(timeout=600)
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return seconds / task.num_windows


def _read_share(place: Workplace, task: StreamTask, rank: int, barrier: Any, done: Any) -> None:
    reader = open_reader(place)
    reads = list(plan_reads(task.plan(place)))
    for read in reads[:WARM_UP_STEPS]:
        to_torch(read_step(reader, read))
    barrier.wait(timeout=300)
    for read in reads[WARM_UP_STEPS:][rank :: task.num_processes]:
        to_torch(read_step(reader, read))
    done.put(rank)


@contextmanager
def local_ray(object_store_bytes: int, num_cpus: int) -> Iterator[Any]:
    """A Ray of this machine's own, stopped at the end."""
    import logging

    # As our jobs start it: freed at once, not once a second.
    os.environ.setdefault("RAY_free_objects_period_milliseconds", "100")
    import ray

    ray.init(
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=object_store_bytes,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield ray
    finally:
        ray.shutdown()

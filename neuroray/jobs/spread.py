"""One function over many things at once: in this process, in its threads, or as tasks of Ray."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait


def is_on_cluster() -> bool:
    """Whether this process is connected to a Ray, or its environment names one (`RAY_ADDRESS`)."""
    if os.environ.get("RAY_ADDRESS"):
        return True
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def spread_over_threads[T, R](work: Callable[[T], R], items: Iterable[T], *, num_threads: int) -> Iterator[R]:
    """What `work` gives for each item, as they get ready; no more items are taken up than there are threads."""
    if num_threads <= 1:
        yield from map(work, items)
        return
    waiting = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        pending = {pool.submit(work, item) for item in itertools.islice(waiting, num_threads)}
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(work, item) for item in itertools.islice(waiting, len(done))}
                yield from (future.result() for future in done)
        finally:
            for future in pending:  # somebody stopped listening, or an item failed
                future.cancel()


def spread_over_ray[T, R](
    work: Callable[[T], R], items: Sequence[T], *, num_tasks: int, num_cpus: float = 1.0, memory_bytes: int = 0
) -> Iterator[R]:
    """What `work` gives for each item, as they get ready; Ray must be running.

    Args:
        work: A function of a module, or a `functools.partial` of one: it travels to the workers.
        items: Small things: an id, a record.
        num_tasks: How many are under way at once.
        num_cpus: Logical CPUs of a task.
        memory_bytes: What a task reserves, so that Ray puts no more on a node than fit; 0: nothing.
    """
    import ray

    task = ray.remote(work if hasattr(work, "__name__") else lambda item: work(item))
    task = task.options(num_cpus=num_cpus, memory=memory_bytes or None)
    waiting = iter(items)
    pending = [task.remote(item) for item in itertools.islice(waiting, num_tasks)]
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=1)
            pending += [task.remote(item) for item in itertools.islice(waiting, len(done))]
            yield from ray.get(done)
    finally:
        for reference in pending:
            ray.cancel(reference)

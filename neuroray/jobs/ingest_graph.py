"""The Dask graph of one scan, and who works it off: this process, some threads of it, or the workers of a Ray cluster.

The steps of one scan follow each other, so that Dask fuses them into one task: its voxels never leave the worker that
decoded them, and only the outcome, a small record, travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Literal, cast

from dask import _task_spec as task_spec
from dask.local import get_sync

from neuroray.jobs.ingest_steps import Order, Outcome, convert, fetch, profile_step, read, write
from neuroray.jobs.spread import is_on_cluster, spread_over_threads
from neuroray.storage.profiles import steps as profile_steps

Scheduler = Literal["auto", "local", "ray"]

_AHEAD: Final = 2  # scans under way or waiting per worker: enough that none waits for the driver
_TRIES_AFTER_A_LOST_WORKER: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanGraph:
    """What is to be done for one scan: a Dask graph, and the key of its outcome."""

    order: Order
    tasks: Mapping[str, Any]
    key: str


def build_graph(order: Order) -> ScanGraph:
    """fetch -> (convert ->) read -> the steps of the profile -> write, a node each."""
    steps: list[tuple[str, Callable[[Any], Any]]] = [("fetch", fetch)]
    steps += [("convert", convert)] if order.file.is_dicom else []
    steps.append(("read", read))
    steps += [(one.name.replace(" ", "-"), profile_step(one.apply)) for one in profile_steps(order.profile)]
    steps.append(("write", write))
    tasks: dict[str, Any] = {}
    given: Any = order
    key = ""
    for name, run in steps:
        key = f"{name}-{order.file.scan_id}"
        tasks[key] = task_spec.Task(key, run, given)
        given = task_spec.TaskRef(key)
    return ScanGraph(order=order, tasks=tasks, key=key)


def fuse(graph: ScanGraph) -> ScanGraph:
    """The same graph with all steps in one task."""
    tasks = task_spec.fuse_linear_task_spec(dict(graph.tasks), {graph.key})
    return ScanGraph(order=graph.order, tasks=tasks, key=graph.key)


def choose_scheduler(asked: Scheduler, num_workers: int | None) -> Literal["local", "ray"]:
    """Ray where it is connected already, where `RAY_ADDRESS` names a cluster, or for several workers; else here."""
    if asked != "auto":
        return asked
    return "ray" if is_on_cluster() or (num_workers or 1) > 1 else "local"


def run_here(graphs: Iterable[ScanGraph], num_threads: int = 1) -> Iterator[Outcome]:
    """Works graphs off in this process, one after the other, or some at once; outcomes come as they are ready."""
    return spread_over_threads(_work_off, graphs, num_threads=num_threads)


def run_on_ray(
    graphs: Iterable[ScanGraph], *, num_workers: int | None = None, memory_bytes: int | None = None
) -> Iterator[Outcome]:
    """Works graphs off on the cluster that is connected; outcomes come as they are ready.

    A task that loses its worker is given to another one, twice; after that its file is refused.

    Args:
        graphs: One per scan; taken only as fast as they are worked off.
        num_workers: The most scans at once; as many as the cluster has CPUs, also those that join later, when None.
        memory_bytes: What Ray sets aside for each scan, so that fewer are placed on a machine with little memory.
    """
    import ray

    submit = _ray_scheduler()
    options = {"num_cpus": 1, "max_retries": _TRIES_AFTER_A_LOST_WORKER}
    options |= {} if memory_bytes is None else {"memory": memory_bytes}
    waiting = iter(graphs)
    running: dict[Any, ScanGraph] = {}
    while True:
        room = (num_workers or _AHEAD * _count_cpus(ray)) - len(running)
        for graph in islice(waiting, max(0, room)):
            fused = fuse(graph)
            [reference] = submit(fused.tasks, [fused.key], ray_persist=True, ray_remote_args=options)
            running[reference] = graph
        if not running:
            return
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            yield _take(ray, reference, running.pop(reference))


def _work_off(graph: ScanGraph) -> Outcome:
    return cast(Outcome, get_sync(graph.tasks, graph.key))


def _take(ray: Any, reference: Any, graph: ScanGraph) -> Outcome:
    """The outcome of a task; of one whose worker died again and again, a refusal."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        file = graph.order.file
        refusal = {
            "error": type(error).__name__,
            "fault": f"{file.name}: the worker that read it died, {1 + _TRIES_AFTER_A_LOST_WORKER} times",
            "given": None,
            "expected": None,
            "fix": "the machine may be short of memory: set --reserve-gib, or refuse large scans with --max-gib",
        }
        return Outcome(file=file.name, scan_id=file.scan_id, refusal=refusal)


def _count_cpus(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _ray_scheduler() -> Callable[..., Any]:
    """Ray's Dask scheduler; what importing it changes in Dask for everyone else is put back."""
    import dask
    from dask.base import DaskMethodsMixin

    module: Any = dask
    persist, method = module.persist, DaskMethodsMixin.persist
    try:
        from ray.util.dask import ray_dask_get
    finally:
        module.persist, DaskMethodsMixin.persist = persist, method
    return ray_dask_get

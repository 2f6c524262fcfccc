"""Times that can be compared: contestants take turns on the same task, with the page cache warm or emptied of it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One way to do a task.

    Attributes:
        name: As the tables show it.
        run: Does the task that a number stands for; gives what was read.
        files: All that it reads from disk.
        remark: What a reader of the table has to know.
        obstacle: Why it takes no part; None where it does.
    """

    name: str
    run: Callable[[int], Any]
    files: tuple[Path, ...] = ()
    remark: str = ""
    obstacle: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of a contestant; None: not measured, and `remark` says why.

    Attributes:
        case: The task.
        cache: Whether the files lay in memory before.
        name: The contestant.
        median_s: Of one task.
        p20_s: The time below which a fifth of the rounds lie.
        p80_s: Four fifths.
        rounds: How often it was timed.
        rate_mb_per_s: Voxels in int16 over the median.
        ratio: Its time over ours, median of the rounds' own ratios.
    """

    case: str
    cache: str
    name: str
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    rounds: int = 0
    rate_mb_per_s: float | None = None
    ratio: float | None = None
    remark: str = ""


def compete(
    case: str, contestants: Sequence[Contestant], tasks: Sequence[int], *, size_bytes: int, cold: bool
) -> list[Row]:
    """Every contestant on every task, another one first each round; the first contestant is the one to compare with.

    Args:
        case: Name of the task.
        contestants: Ours first.
        tasks: One per round; before them, the first is done once by everybody, untimed.
        size_bytes: Of what a task reads, unpacked.
        cold: Empty the page cache of a contestant's files before each of its turns.
    """
    ready = [one for one in contestants if one.obstacle is None]
    times: dict[str, list[float]] = {one.name: [] for one in ready}
    for one in ready:
        one.run(tasks[0])
    for turn, task in enumerate(tasks):
        shift = turn % len(ready)
        for one in ready[shift:] + ready[:shift]:
            if cold:
                forget(one.files)
            times[one.name].append(time_call(lambda one=one, task=task: one.run(task)))
    return [
        _make_row(case, "cold" if cold else "warm", one, times, contestants[0].name, size_bytes) for one in contestants
    ]


def forget(files: Iterable[Path]) -> None:
    """Drops files from the page cache, so that the next read comes from the disk."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not yet on disk cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def time_call(run: Callable[[], Any]) -> float:
    """Seconds that a call takes; what it gives is let go outside of them."""
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result
    return seconds


def take_quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lie."""
    return float(np.quantile(values, share))


def list_files(folder: Path) -> tuple[Path, ...]:
    """All files below a folder."""
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file()))


def _make_row(
    case: str, cache: str, one: Contestant, times: dict[str, list[float]], rival: str, size_bytes: int
) -> Row:
    if one.obstacle is not None:
        return Row(case=case, cache=cache, name=one.name, remark=f"left out: {one.obstacle}")
    own = times[one.name]
    median = statistics.median(own)
    return Row(
        case=case,
        cache=cache,
        name=one.name,
        median_s=median,
        p20_s=take_quantile(own, 0.2),
        p80_s=take_quantile(own, 0.8),
        rounds=len(own),
        rate_mb_per_s=size_bytes / median / 1e6,
        ratio=statistics.median(mine / ours for mine, ours in zip(own, times[rival], strict=True)),
        remark=one.remark,
    )

"""Memory: the peak of one reader in a process of its own, and of a stream over many windows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuroray.platform.data.benchmark.process_memory import forget_peak, read_status
from neuroray.platform.data.benchmark.streams import StreamTask
from neuroray.platform.data.benchmark.workplace import RUN, Workplace, open_reader
from neuroray.platform.data.dataset import batch_stream
from neuroray.platform.data.plan import ReadItem

_WINDOWS_PER_SAMPLE = 4  # besides those by the clock: a stream may be over before it ticks

_READER = """
import json, sys
from neuroray.platform.data.benchmark.memory import measure_here
print(json.dumps(measure_here(json.loads(sys.argv[1]))))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderPeak:
    """What reading windows one after the other adds to a fresh process at most.

    Attributes:
        window_bytes: Of the stored numbers of one window.
        peak_bytes: Growth of the resident set, at its highest.
        num_windows: Read.
    """

    window_bytes: int
    peak_bytes: int
    num_windows: int

    @property
    def ratio(self) -> float:
        """Peak over window."""
        return self.peak_bytes / self.window_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMemory:
    """Memory while windows stream, sampled.

    Attributes:
        num_windows: In all.
        passed_bytes: Of all windows together.
        buffer_bytes: The setting.
        store_peak_bytes: Most that lay in Ray's object store.
        process_peak_bytes: Most that this process and the readers held beside it, above the start.
        first_half_bytes: Median of the same over the first half of the samples after the start.
        second_half_bytes: And over the second: growth would show.
    """

    num_windows: int
    passed_bytes: int
    buffer_bytes: int
    store_peak_bytes: int
    process_peak_bytes: int
    first_half_bytes: int
    second_half_bytes: int


def measure_reader(place: Workplace, num_frames: int, num_windows: int = 4) -> ReaderPeak:
    """Peak of our reader, from a process that has read nothing but a frame before."""
    task = {
        "place": asdict(place) | {"folder": str(place.folder)},
        "num_frames": num_frames,
        "num_windows": num_windows,
    }
    answer = subprocess.run(
        [sys.executable, "-c", _READER, json.dumps(task)], capture_output=True, text=True, check=True, timeout=600
    )
    peak_bytes = json.loads(answer.stdout.splitlines()[-1])
    return ReaderPeak(window_bytes=num_frames * place.frame_bytes, peak_bytes=peak_bytes, num_windows=num_windows)


def measure_here(task: dict[str, Any]) -> int:
    """What `num_windows` windows, each let go before the next, add at most to what this process holds."""
    place = Workplace(
        **task["place"] | {"folder": Path(task["place"]["folder"]), "shape": tuple(task["place"]["shape"])}
    )
    reader, num_frames = open_reader(place), task["num_frames"]
    reader.read_batch([ReadItem(scan_id=RUN, start=0, stop=1)])
    forget_peak()
    before_bytes = read_status("VmRSS")
    step = max(1, (place.shape[0] - num_frames) // task["num_windows"])
    for start in range(0, step * task["num_windows"], step):
        reader.read_batch([ReadItem(scan_id=RUN, start=start, stop=start + num_frames)])
    return read_status("VmHWM") - before_bytes


def watch_stream(place: Workplace, task: StreamTask, interval_s: float = 0.2) -> StreamMemory:
    """Streams all windows of a task and samples; needs a Ray that this process is connected to."""
    samples: list[tuple[int, int]] = []
    stopped = threading.Event()
    base = _held_bytes()

    def take() -> None:
        samples.append((_store_bytes(), _held_bytes() - base))

    def sample() -> None:
        while not stopped.wait(interval_s):
            take()

    watcher = threading.Thread(target=sample, daemon=True)
    watcher.start()
    num_windows = 0
    stream = batch_stream(
        task.plan(place),
        open_reader(place),
        share=True,
        read_concurrency=task.num_processes,
        buffer_bytes=task.buffer_bytes,
    )
    with closing(stream):
        for _, batch in stream:
            del batch
            num_windows += 1
            if num_windows % _WINDOWS_PER_SAMPLE == 0:
                take()
    stopped.set()
    watcher.join()
    held = [one for _, one in samples]
    settled = held[len(held) // 10 :]  # the readers start in the first tenth
    half = len(settled) // 2
    return StreamMemory(
        num_windows=num_windows,
        passed_bytes=num_windows * task.num_frames * place.frame_bytes,
        buffer_bytes=task.buffer_bytes,
        store_peak_bytes=max(one for one, _ in samples),
        process_peak_bytes=max(held),
        first_half_bytes=sorted(settled[:half])[half // 2],
        second_half_bytes=sorted(settled[half:])[half // 2],
    )


def _store_bytes() -> int:
    """What lies in the object store of the Ray that this process is connected to."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply: Any = get_memory_info_reply(get_state_from_address(None))
    return reply.store_stats.object_store_bytes_used


def _held_bytes() -> int:
    """Memory of this process and of all that it has started (Ray and its workers) that nobody shares."""
    return sum(read_status("RssAnon", pid) for pid in _find_descendants(os.getpid()))


def _find_descendants(root: int) -> set[int]:
    pids = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    parents = {pid: read_status("PPid", pid) for pid in pids}
    found, grows = {root}, True
    while grows:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found, grows = found | more, bool(more)
    return found

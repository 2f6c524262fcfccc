"""How much is measured: the real thing, and so little that a test can run it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes and rounds of a run of the benchmark.

    Attributes:
        window_frames: Of a long window.
        clip_frames: Of a short one.
        short_frames: Of the run that is read in full.
        warm_rounds: Per contestant, files in memory.
        cold_rounds: Files on disk.
        stream_windows: Timed per round of a stream.
        stream_rounds: Of each way.
        long_windows: While memory is watched.
        num_processes: That read, one comparison each.
        buffer_bytes: What the stream may hold in the object store.
        object_store_bytes: Size of that.
    """

    window_frames: int
    clip_frames: int
    short_frames: int
    warm_rounds: int
    cold_rounds: int
    stream_windows: int
    stream_rounds: int
    long_windows: int
    num_processes: tuple[int, ...]
    buffer_bytes: int
    object_store_bytes: int


WHOLE = Sizes(
    window_frames=200,
    clip_frames=20,
    short_frames=300,
    warm_rounds=7,
    cold_rounds=9,
    stream_windows=12,
    stream_rounds=7,
    long_windows=100,
    num_processes=(1, 2),
    buffer_bytes=3 * 2**30,
    object_store_bytes=4 * 2**30,
)

QUICK = Sizes(
    window_frames=9,
    clip_frames=3,
    short_frames=11,
    warm_rounds=2,
    cold_rounds=2,
    stream_windows=3,
    stream_rounds=1,
    long_windows=12,
    num_processes=(2,),
    buffer_bytes=64 * 2**20,
    object_store_bytes=200 * 2**20,
)

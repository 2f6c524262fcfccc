"""`python -m neuroray.platform.data.benchmark.layouts`: chunk sizes, shards and codecs against ways to read.

Every layout holds the same run. It is read with the reader of rows that the store uses: from a folder, its files in
memory and dropped from it, and through the S3 client from a server on loopback that answers after a latency.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from neuroray.platform.data.benchmark.made_run import make_run
from neuroray.platform.data.benchmark.packings import Packed, format_packings, measure_packings
from neuroray.platform.data.benchmark.report import describe
from neuroray.platform.data.benchmark.rounds import forget, list_files
from neuroray.storage.locations import Location
from neuroray.storage.shard_reading import RowLayout, RowReader

SHAPE = (240, 91, 109, 91)
QUICK_SHAPE = (24, 13, 15, 11)
CHUNK_FRAMES = (1, 4, 8, 16, 40)
PACKINGS: dict[str, list[Any]] = {
    "blosc zstd-1 bitshuffle": [BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle", blocksize=2**20)],
    "blosc lz4 bitshuffle": [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", blocksize=2**20)],
    "blosc lz4 shuffle": [BloscCodec(cname="lz4", clevel=5, shuffle="shuffle", blocksize=2**20)],
    "zstd-1": [ZstdCodec(level=1)],
    "none": [],
}
REMOTE_PACKINGS = ("blosc zstd-1 bitshuffle", "blosc lz4 shuffle")
READS = ("full", "200 frames", "20 frames", "slice stack")
METHOD = """\
Seconds, the median of the rounds, each by a reader of rows (`neuroray.storage.shard_reading`) that has to ask for a
shard's index first. Chunks are whole frames; every chunk carries a crc32c. `full`: the whole run. The windows begin
inside a chunk. `slice stack`: one z in every frame, which needs every chunk of such layouts. `warm`: files in the page
cache. `cold`: dropped from it before each read. `s3`: through the S3 client from a server on loopback in a process of
its own, which answers each request after the latency given; it has no limit of bandwidth, and shares the cores. `write
s`: encoding and writing to a folder, by zarr-python. What is read is compared with what was written."""
COLUMNS = ("chunk frames", "shard", "packing", "objects", "MB", "write s", *READS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One layout in one place.

    Attributes:
        place: `warm`, `cold` or `s3`: through the S3 client, with latency.
        chunk_frames: Frames of a chunk.
        shard: `run`, or `none` where chunks are objects.
        packing: What compresses chunks.
        num_objects: That hold them.
        size_bytes: Of all of them.
        write_s: Encoding and writing the run to a folder.
        seconds: Of each of `READS`.
    """

    place: str
    chunk_frames: int
    shard: str
    packing: str
    num_objects: int
    size_bytes: int
    write_s: float
    seconds: dict[str, float]


def main(arguments: list[str] | None = None) -> int:
    """Writes the report and prints its tables."""
    given = sys.argv[1:] if arguments is None else arguments
    options = _parse(given)
    command = shlex.join(["python", "-m", "neuroray.platform.data.benchmark.layouts", *given])
    header = describe(command, f"{datetime.now(UTC):%Y-%m-%d}")
    voxels = make_run(options.source, QUICK_SHAPE if options.quick else SHAPE).voxels
    rows: list[Measured] = []
    real = measure_packings(options.source, options.repeats)
    with (
        tempfile.TemporaryDirectory(prefix="neuroray-layouts-", dir=options.work) as work,
        serve_bucket(Path(work), options.latency_s),
    ):
        for chunk_frames, shard, packing in list_layouts(len(voxels)):
            print(f"{chunk_frames} frames, shard {shard}, {packing}", file=sys.stderr, flush=True)
            rows += measure_layout(Path(work), voxels, chunk_frames, shard, packing, options)
            write_table(options.out, header, voxels.shape, rows, real)
    print("\n".join([*format_table(rows), *format_packings(real)]))
    return 0


@contextmanager
def serve_bucket(folder: Path, latency_s: float) -> Iterator[None]:
    """A server in a process of its own, and the environment that leads the S3 client to it."""
    command = [sys.executable, "-m", "neuroray.platform.data.benchmark.range_server", str(folder)]
    server = subprocess.Popen(
        [*command, "--latency-s", str(latency_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    names = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
    names |= {"AWS_ENDPOINT_URL": server.stdout.readline().strip(), "NO_PROXY": "127.0.0.1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.stdin.close()
        server.wait(timeout=30)


def list_layouts(num_frames: int) -> Iterator[tuple[int, str, str]]:
    """Chunk frames, shard and packing of every layout."""
    for chunk_frames in CHUNK_FRAMES:
        for shard in ("none", "run"):
            for packing in PACKINGS:
                yield min(chunk_frames, num_frames), shard, packing


def measure_layout(
    work: Path, voxels: np.ndarray, chunk_frames: int, shard: str, packing: str, options: argparse.Namespace
) -> list[Measured]:
    """The rows of one layout."""
    folder = work / "bench" / "array"
    start = time.perf_counter()
    _write(folder, voxels, chunk_frames, shard, packing)
    write_s = time.perf_counter() - start
    files = [path for path in list_files(folder) if path.name != "zarr.json"]
    known: dict[str, Any] = {
        "chunk_frames": chunk_frames,
        "shard": shard,
        "packing": packing,
        "num_objects": len(files),
        "size_bytes": sum(path.stat().st_size for path in files),
        "write_s": write_s,
    }
    try:
        found = []
        for place in ("warm", "cold"):
            seconds = _time_reads(
                _open(Location(folder), folder), voxels, options.repeats, files if place == "cold" else None
            )
            found.append(Measured(place=place, seconds=seconds, **known))
        if packing in REMOTE_PACKINGS:
            remote = _open(Location("s3://bench/array"), folder)
            found.append(Measured(place="s3", seconds=_time_reads(remote, voxels, 1, None), **known))
        return found
    finally:
        shutil.rmtree(folder)


def write_table(
    folder: Path, header: dict[str, str], shape: tuple[int, ...], rows: list[Measured], real: list[Packed]
) -> None:
    """`storage.md` and `storage.json`, after each layout anew."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "header": header,
        "shape": list(shape),
        "rows": [asdict(row) for row in rows],
        "real": [asdict(row) for row in real],
    }
    (folder / "storage.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [f"# Layouts of a run on {header['machine']}", "", *(f"- {key}: {value}" for key, value in header.items())]
    lines += [
        f"- run: {' x '.join(map(str, shape))} int16 (time x y z), masked",
        "",
        METHOD,
        *format_table(rows),
        *format_packings(real),
    ]
    (folder / "storage.md").write_text("\n".join(lines) + "\n")


def format_table(rows: list[Measured]) -> list[str]:
    """Markdown, a table per place."""
    lines = []
    for place in dict.fromkeys(row.place for row in rows):
        lines += ["", f"## {place}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        for row in rows:
            if row.place == place:
                cells = [str(row.chunk_frames), row.shard, row.packing, str(row.num_objects)]
                cells += [f"{row.size_bytes / 1e6:.0f}", f"{row.write_s:.2f}"]
                cells += [f"{row.seconds[read]:.3f}" for read in READS]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _write(folder: Path, voxels: np.ndarray, chunk_frames: int, shard: str, packing: str) -> None:
    frames = len(voxels)
    whole = -(-frames // chunk_frames) * chunk_frames
    array = zarr.create_array(
        folder,
        shape=voxels.shape,
        dtype=voxels.dtype,
        chunks=(chunk_frames, *voxels.shape[1:]),
        shards=(whole, *voxels.shape[1:]) if shard == "run" else None,
        compressors=[*PACKINGS[packing], Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    array[...] = voxels


def _open(place: Location, folder: Path) -> Callable[[], RowReader]:
    layout = RowLayout.find(json.loads((folder / "zarr.json").read_text()))
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in list_files(folder)}
    if layout is None:
        raise ValueError("the reader of rows does not know this layout")
    return lambda: RowReader(place, layout, sizes)


def _time_reads(
    open_rows: Callable[[], RowReader], voxels: np.ndarray, repeats: int, cold: list[Path] | None
) -> dict[str, float]:
    """Median seconds of each way to read, each time by a reader that must ask for the index; values compared."""
    frames, middle = len(voxels), voxels.shape[-1] // 2
    spans = {"full": (0, frames), "200 frames": _span(frames, 200), "20 frames": _span(frames, 20)}
    found = {}
    for read in READS:
        start, stop = spans.get(read, (0, frames))
        times = []
        for number in range(repeats + (cold is None)):
            if cold is not None:
                forget(cold)
            reader, began = open_rows(), time.perf_counter()
            rows = reader.read(start, stop)
            if read == "slice stack":
                rows = np.ascontiguousarray(rows[..., middle])
            if number or cold is not None:  # the first time only fills the page cache
                times.append(time.perf_counter() - began)
            expected = voxels[start:stop, ..., middle] if read == "slice stack" else voxels[start:stop]
            if not np.array_equal(rows[:: max(1, len(rows) // 7)], expected[:: max(1, len(rows) // 7)]):
                raise ValueError("other numbers were read than were written")
        found[read] = statistics.median(times)
    return found


def _span(num_frames: int, wanted: int) -> tuple[int, int]:
    """Frames that begin within a chunk, not at its border."""
    length = min(wanted, num_frames * 5 // 6)
    start = min(13, num_frames - length)
    return start, start + length


def _parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m neuroray.platform.data.benchmark.layouts")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether it runs, not how fast")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--latency-s", type=float, default=0.02, metavar="S", help="of the server, for each request")
    parser.add_argument("--work", type=Path, default=None, metavar="DIR", help="where the files are made, and removed")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), metavar="DIR")
    parser.add_argument("--source", type=Path, default=Path("tests/data/pumi"), metavar="DIR", help="a small real run")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())

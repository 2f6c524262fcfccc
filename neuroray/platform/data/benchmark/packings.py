"""What packs chunks, on real scans in memory: how small, and how quickly in and out."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

from neuroray.platform.data.benchmark.rounds import time_call

_BLOCK_BYTES = 2**20
CODECS: dict[str, Callable[[], Any]] = {
    "blosc zstd-1 bitshuffle": partial(Blosc, "zstd", 1, Blosc.BITSHUFFLE, _BLOCK_BYTES),
    "blosc lz4 bitshuffle": partial(Blosc, "lz4", 5, Blosc.BITSHUFFLE, _BLOCK_BYTES),
    "blosc lz4 shuffle": partial(Blosc, "lz4", 5, Blosc.SHUFFLE, _BLOCK_BYTES),
    "zstd-1": partial(Zstd, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A scan in one packing.

    Attributes:
        scan: Name of its file.
        packing: What packs it.
        share: Its size over that of the stored numbers.
        pack_mb_per_s: Of these, median.
        unpack_mb_per_s: Of these, median.
    """

    scan: str
    packing: str
    share: float
    pack_mb_per_s: float
    unpack_mb_per_s: float


def measure_packings(source: Path, repeats: int) -> list[Packed]:
    """The T1 and the BOLD run of a real person through each packing.

    Args:
        source: The folder of a small BIDS dataset.
        repeats: Of each call; one more, untimed, comes first.
    """
    person = source / "sub-001"
    rows = []
    for path in (*person.glob("anat/*_T1w.nii.gz"), *person.glob("func/*task-rest_bold.nii.gz")):
        image: Any = nibabel.load(path)
        stored = np.ascontiguousarray(np.moveaxis(image.dataobj.get_unscaled(), -1, 0))
        for name, make in CODECS.items():
            codec = make()
            packed = codec.encode(stored)
            rows.append(
                Packed(
                    scan=path.name,
                    packing=name,
                    share=len(packed) / stored.nbytes,
                    pack_mb_per_s=_rate(partial(codec.encode, stored), stored.nbytes, repeats),
                    unpack_mb_per_s=_rate(partial(codec.decode, packed), stored.nbytes, repeats),
                )
            )
    return rows


def format_packings(rows: list[Packed]) -> list[str]:
    """A table in Markdown."""
    lines = ["", "## Real scans, in memory", "", "| scan | packing | packed / stored | pack MB/s | unpack MB/s |"]
    lines.append("|" + "---|" * 5)
    return lines + [
        f"| {row.scan} | {row.packing} | {row.share:.3f} | {row.pack_mb_per_s:.0f} | {row.unpack_mb_per_s:.0f} |"
        for row in rows
    ]


def _rate(call: Callable[[], Any], size_bytes: int, repeats: int) -> float:
    call()
    return size_bytes / 1e6 / statistics.median(time_call(call) for _ in range(repeats))

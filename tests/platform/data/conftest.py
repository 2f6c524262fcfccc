"""A reader of made-up rows and a small store, which the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore


@pytest.fixture
def make_reader() -> Callable[..., Any]:
    """Makes readers of rows that can be told apart; made in here, so that Ray pickles them whole."""

    class MadeUpReader:
        def __init__(self, faults: dict[str, Exception] | None = None, ragged: tuple[str, ...] = ()) -> None:
            self.faults = faults or {}
            self.ragged = ragged
            self.num_reads = 0

        def __call__(self, item: Any) -> dict[str, np.ndarray]:
            self.num_reads += 1
            if item.scan_id in self.faults:
                raise self.faults[item.scan_id]
            number = int(item.scan_id.split("-")[-1])
            rows = 6 if item.scan_id in self.ragged else 5
            return {
                "features": np.random.default_rng(number).standard_normal((rows, 7), dtype=np.float32),
                "mask": np.arange(5) < number % 6,
                "label": np.array(number % 2),
            }

        def size_bytes(self, item: Any) -> int:
            return 5 * 7 * 4 + 5 + 8

    return MadeUpReader


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    """Four volumes on two grids with oblique affines, and a time series of twelve frames."""
    store = ScanStore.create(tmp_path / "store")
    generator = np.random.default_rng(0)
    affine = np.array([[0.0, 0.0, 3.0, -4.0], [2.0, 0.1, 0.0, 5.0], [0.1, 2.5, 0.0, 6.0], [0.0, 0.0, 0.0, 1.0]])
    shapes = [(12, 14, 10), (12, 14, 10), (9, 14, 13), (12, 14, 10), (12, 5, 6, 7)]
    records = []
    for index, shape in enumerate(shapes):
        scan = Scan(
            voxels=generator.integers(0, 900, shape).astype(np.int16),
            affine=affine,
            repetition_time_s=0.8 if len(shape) == 4 else None,
        )
        modality = "bold" if scan.is_timeseries else "T1w"
        records.append(store.write(scan, scan_id=f"scan-{index}", subject=f"s{index}", modality=modality, commit=False))
    store.commit(records)
    return store

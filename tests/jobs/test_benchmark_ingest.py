"""The benchmark of ingest runs on tiny files, and compares what it says it does."""

from pathlib import Path

import nibabel
import numpy as np

from neuroray.jobs import benchmark_ingest
from neuroray.jobs.benchmark_ingest import make_files, measure_ingest


def test_the_files_are_a_volume_and_a_run_with_noise_in_the_background(tmp_path: Path):
    t1, bold = (np.asanyarray(nibabel.load(path).dataobj) for path in make_files(tmp_path / "files", quick=True))
    assert (t1.shape, t1.dtype) == ((24, 32, 24), np.int16)
    assert (bold.shape, bold.dtype) == ((16, 16, 9, 6), np.int16)
    assert len(np.unique(t1[:3, :3, :3])) > 5
    assert np.percentile(t1, 95) > 5 * np.percentile(t1, 5)


def test_every_file_meets_every_peer_and_ratios_are_those_of_the_times(tmp_path: Path, monkeypatch):
    files = make_files(tmp_path / "files", quick=True)
    times = iter([9.0, 9.0, 2.0, 3.0, 2.0, 1.0, 2.0, 4.0] * 4)

    def take_time(call) -> float:
        call()
        return next(times)

    monkeypatch.setattr(benchmark_ingest, "time_call", take_time)
    rows = measure_ingest(files, tmp_path, rounds=3)
    assert len(rows) == 4
    assert {(row.ratio, row.rounds) for row in rows} == {(1.5, 3)}
    assert rows[0].ours == 2 * 24 * 32 * 24 / 1e6 / 2

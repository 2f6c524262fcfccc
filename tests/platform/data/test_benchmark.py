"""The benchmark of the data path, on tiny shapes: its values are compared, its tables are whole; no speed is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroray.platform.data.benchmark import layouts, report, workplace
from neuroray.platform.data.benchmark.__main__ import main
from neuroray.platform.data.benchmark.made_run import QUICK_SHAPE, make_run
from neuroray.platform.data.benchmark.memory import measure_reader
from neuroray.platform.data.benchmark.rounds import Contestant, Row, compete

PUMI = Path(__file__).parents[2] / "data" / "pumi"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> workplace.Workplace:
    return workplace.prepare(tmp_path_factory.mktemp("place"), make_run(PUMI, QUICK_SHAPE), short_frames=11)


def test_the_made_run_is_a_masked_brain_that_fluctuates() -> None:
    scan = make_run(PUMI, (20, 31, 37, 31), seed=1)
    inside = (scan.voxels != 0).all(axis=0)
    assert np.array_equal(inside, (scan.voxels != 0).any(axis=0)), "the same mask in every frame"
    assert 0.15 < inside.mean() < 0.35, "a brain fills about a quarter of its template's grid"
    assert not inside[0].any()
    assert not inside[:, :, -1].any()
    assert np.array_equal(scan.voxels, make_run(PUMI, (20, 31, 37, 31), seed=1).voxels)
    assert not np.array_equal(scan.voxels, make_run(PUMI, (20, 31, 37, 31), seed=2).voxels)


def test_contestants_that_give_other_numbers_are_refused(
    place: workplace.Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace.check_windows(place, 9)
    listed = workplace.list_window_readers

    def list_with_a_wrong_one(*args: Any) -> list[Contestant]:
        wrong = torch.zeros((9, *QUICK_SHAPE[1:]), dtype=torch.int16)
        return [*listed(*args), Contestant(name="hasty", run=lambda start: wrong)]

    monkeypatch.setattr(workplace, "list_window_readers", list_with_a_wrong_one)
    with pytest.raises(ValueError, match="hasty gives other numbers"):
        workplace.check_windows(place, 9)


def test_every_contestant_does_every_task_and_another_one_begins_each_round() -> None:
    done: list[tuple[str, int]] = []
    names = ("ours", "peer", "other")
    contestants = [
        Contestant(name=name, run=lambda task, name=name: done.append((name, task)), remark=name) for name in names
    ]
    absent = Contestant(name="absent", run=lambda task: None, obstacle="not installed")
    rows = compete("a task", [*contestants, absent], [5, 6], size_bytes=10**6, cold=False)
    warm_up = [(name, 5) for name in names]
    first, second = [("ours", 5), ("peer", 5), ("other", 5)], [("peer", 6), ("other", 6), ("ours", 6)]
    assert done == warm_up + first + second
    assert [row.rounds for row in rows] == [2, 2, 2, 0]
    assert rows[0].ratio == 1
    assert (rows[3].median_s, rows[3].remark) == (None, "left out: not installed")


def test_targets_are_judged_by_the_ratios() -> None:
    row = {"case": "windows", "median_s": 1.0, "p20_s": 1.0, "p80_s": 1.0, "rounds": 1, "rate_mb_per_s": 1.0}
    findings = report.Findings(header={})
    findings.rows = [
        Row(cache="warm", name="BrainMT's way: x", ratio=6.5, **row),
        Row(cache="cold", name="BrainMT's way: x", ratio=9.5, **row),
        Row(cache="warm", name="the same reader in processes of its own, no Ray", ratio=0.71, **row),
    ]
    found = {one.name: one.passed for one in report.judge(findings, "windows", "full")}
    assert found["window, warm: against BrainMT's way"] is True
    assert found["window, cold: against BrainMT's way"] is False
    assert found["window, warm: against SwiFT's way"] is None
    assert found["Ray Data: rate over that of the same reader alone; windows"] is True


def test_a_reader_holds_little_more_than_its_window(tmp_path: Path) -> None:
    """Windows of 20 MiB: large against what a process is uncertain by."""
    place = workplace.prepare(tmp_path, make_run(PUMI, (64, 48, 64, 53)), short_frames=2)
    peak = measure_reader(place, num_frames=64, num_windows=1)
    assert peak.window_bytes == 64 * 48 * 64 * 53 * 2
    assert 0.9 < peak.ratio < 3


def test_windows_and_full_reads_fill_a_report(tmp_path: Path) -> None:
    main(["--quick", "--parts", "windows", "--source", str(PUMI), "--out", str(tmp_path)])
    (page,) = tmp_path.glob("data-*.md")
    content = json.loads(page.with_suffix(".json").read_text())
    assert {"machine", "command", "date", "threads", "zarr", "torch"} <= content["header"].keys()
    text = page.read_text()
    assert "| " + " | ".join(report.COLUMNS) + " |" in text
    cases = {(row["case"], row["cache"]) for row in content["rows"]}
    names = ("9-frame windows", "3-frame windows", "full read of 11 frames")
    assert cases == {(case, cache) for case in names for cache in ("warm", "cold")}
    for row in content["rows"]:
        assert row["name"] in text
        if row["median_s"] is None:
            assert row["remark"].startswith("left out: ")
        else:
            assert row["p20_s"] <= row["median_s"] <= row["p80_s"]
            assert row["rounds"] == 2
    ours = [row for row in content["rows"] if row["name"] == "ours"]
    assert [row["ratio"] for row in ours] == [1.0] * 6


def test_layouts_are_read_back_and_tabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "CHUNK_FRAMES", (1, 8))
    assert (
        layouts.main(
            ["--quick", "--repeats", "1", "--latency-s", "0.001", "--source", str(PUMI), "--out", str(tmp_path)]
        )
        == 0
    )
    content = json.loads((tmp_path / "storage.json").read_text())
    rows = content["rows"]
    assert len(rows) == 2 * 2 * (5 * 2 + 2)
    assert {row["num_objects"] for row in rows if row["shard"] == "run"} == {1}
    assert {row["num_objects"] for row in rows if row["shard"] == "none"} == {24, 3}
    assert all(row["seconds"].keys() == set(layouts.READS) for row in rows)
    page = (tmp_path / "storage.md").read_text()
    assert page.count("| blosc lz4 shuffle |") == 2 * 2 * 3 + 2
    shares = {(row["scan"][8:11], row["packing"]): row["share"] for row in content["real"]}
    assert len(shares) == 2 * 4
    assert all(
        shares[scan, "blosc zstd-1 bitshuffle"] < 0.8 * shares[scan, "blosc lz4 shuffle"] for scan in ("T1w", "tas")
    )
    assert all(f"## {place}" in page for place in ("warm", "cold", "s3"))

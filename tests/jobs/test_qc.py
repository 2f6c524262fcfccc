"""`qc`: who stands apart is told, nothing is read twice, a scan that cannot be read stops no other."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from neuroray.jobs import qc
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import NATIVE, find_profile
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore
from neuroray.storage.withdrawal import withdraw

NUM_SCANS = 7
BRIGHT, THICK, CUT = "head-2", "head-4", "head-5"


def make_head(seed: int, shape: tuple[int, int, int] = (41, 49, 45)) -> np.ndarray:
    draw = np.random.default_rng(seed)
    grid = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) / 2
    inside = ((grid / np.array([15, 19, 17]).reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1
    folds = ndimage.gaussian_filter(draw.normal(size=shape), 1.2)
    values = inside * (800 + 100 * folds / folds.std()) + np.abs(draw.normal(0, 6, shape))
    return values.astype(np.int16)


def add(store: ScanStore, scan_id: str, voxels: np.ndarray, **options: Any) -> None:
    affine = np.diag([4.0, 4.0, options.pop("thickness_mm", 4.0), 1.0])
    modality = "bold" if voxels.ndim == 4 else "T1w"
    scan = Scan(voxels=voxels, affine=affine, **options)
    store.write(scan, scan_id=scan_id, subject=scan_id, modality=modality)


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    store = ScanStore.create(tmp_path / "store")
    for index in range(NUM_SCANS):
        scan_id, head = f"head-{index}", make_head(index)
        if scan_id == BRIGHT:
            head = 3 * head
        if scan_id == CUT:
            head = head[:, :, :26]
        add(store, scan_id, head, thickness_mm=5.0 if scan_id == THICK else 4.0)
    run = np.stack([make_head(50)] * 9) + np.random.default_rng(0).integers(0, 20, (9, 41, 49, 45)).astype(np.int16)
    run[4] = run[3]
    add(store, "run", run, repetition_time_s=2.0, flags=("TR was given in ms",))
    return store


def look(store: ScanStore, out: Path, **options: Any) -> qc.Answer:
    return qc.run(qc.Args(store=store.uri, out=str(out), **{"skip_motion": True, **options}))


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    ids: list[str] = []
    real = qc.examine_scan

    def note(store: ScanStore, record: Any, **options: Any) -> Any:
        ids.append(record.scan_id)
        return real(store, record, **options)

    monkeypatch.setattr(qc, "examine_scan", note)
    return ids


def test_who_stands_apart_is_told_with_the_reason(store: ScanStore, tmp_path: Path):
    answer = look(store, tmp_path / "qc")
    assert set(list(answer.apart)[:2]) == {"run", CUT}, "faults come first"
    assert any("Median inside" in text and "higher" in text for text in answer.apart[BRIGHT])
    assert any(text.startswith("voxel size 4.00 x 4.00 x 5.00 mm; most have") for text in answer.apart[THICK])
    assert "the top of the head lies outside the image" in answer.apart[CUT]
    assert "1 of 9 frames repeat the one before: 4" in answer.apart["run"]
    assert (answer.exit_code, answer.num_scans, answer.num_examined) == (0, NUM_SCANS + 1, NUM_SCANS + 1)


def test_table_and_json_hold_every_number(store: ScanStore, tmp_path: Path):
    look(store, tmp_path / "qc")
    with (tmp_path / "qc/qc.csv").open() as stream:
        rows = {row["scan_id"]: row for row in csv.DictReader(stream)}
    report = json.loads((tmp_path / "qc/qc.json").read_text())
    scans = {scan["scan_id"]: scan for scan in report["scans"]}
    assert set(rows) == set(scans) == {record.scan_id for record in store.records()}
    assert float(rows[THICK]["spacing_z"]) == 5.0
    assert float(rows["head-0"]["fov_y_mm"]) == 4 * 49
    assert float(rows["run"]["size_t"]) == 9
    assert float(rows["run"]["tsnr"]) == pytest.approx(scans["run"]["measures"]["tsnr"], rel=1e-8)
    assert rows["run"]["fd_mean"] == "", "what was not estimated is empty, not 0"
    assert scans["run"]["measures"]["fd_mean"] is None
    assert scans["run"]["dvars"][3] == 0
    assert min(step for index, step in enumerate(scans["run"]["dvars"]) if index != 3) > 0
    assert scans["run"]["frozen_frames"] == [4]
    assert "TR was given in ms" in rows["run"]["findings"]


def test_the_next_run_examines_only_what_is_new(store: ScanStore, tmp_path: Path, examined: list[str]):
    first = look(store, tmp_path / "qc")
    examined.clear()
    again = look(store, tmp_path / "qc")
    assert (examined, again.num_examined, again.apart) == ([], 0, first.apart)
    add(store, "new", make_head(99))
    add(store, "head-0", make_head(98))
    look(store, tmp_path / "qc")
    assert sorted(examined) == ["head-0", "new"]


def test_a_killed_run_keeps_what_it_has_done(
    store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examined: list[str]
):
    real = qc.save_quality

    def die_after_three(*args: Any) -> None:
        if len(examined) > 3:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(qc, "save_quality", die_after_three)
        with pytest.raises(KeyboardInterrupt):
            look(store, tmp_path / "qc")
    done = examined[:3]
    examined.clear()
    look(store, tmp_path / "qc")
    assert not set(done) & set(examined)
    assert len(examined) == NUM_SCANS + 1 - 3


def test_pictures_of_people_who_left_go_with_the_next_run(store: ScanStore, tmp_path: Path):
    look(store, tmp_path / "qc")
    withdraw(store, ["head-3"])
    look(store, tmp_path / "qc")
    assert len(list((tmp_path / "qc/scans").glob("*.npz"))) == NUM_SCANS
    assert not any("head-3" in path.read_text() for path in (tmp_path / "qc").glob("qc.*"))


def test_a_scan_that_cannot_be_read_stops_no_other(store: ScanStore, tmp_path: Path):
    chunk = next(Path(store.uri, store.record("head-1").path, "voxels").rglob("c/*/*/*"))
    chunk.write_bytes(chunk.read_bytes()[:-20])
    answer = look(store, tmp_path / "qc")
    assert answer.exit_code == 1
    assert [one["scan_id"] for one in answer.failed] == ["head-1"]
    assert answer.num_examined == NUM_SCANS
    page = (tmp_path / "qc/qc.html").read_text()
    assert "Could not be examined" in page
    assert "head-1" in page


def test_the_page_needs_nothing_but_itself_and_says_what_was_not_done(store: ScanStore, tmp_path: Path):
    look(store, tmp_path / "qc", skip_motion=False)
    page = (tmp_path / "qc/qc.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {address.partition(":")[0] for address in addresses if not address.startswith("#")} == {"data"}
    assert "@import" not in page
    assert all(f'id="scan-{record.scan_id}"' in page for record in store.records())


def test_motion_of_a_run_with_an_empty_frame_is_that_of_the_others(store: ScanStore, tmp_path: Path):
    """The head moves by a voxel of 4 mm after the third frame; the sixth is empty."""
    head = make_head(50)
    run = np.stack([head] * 3 + [np.roll(head, 1, axis=0)] * 5)
    run[5] = 0
    run += np.random.default_rng(0).integers(0, 20, run.shape).astype(np.int16)
    add(store, "moved", run, repetition_time_s=2.0)
    look(store, tmp_path / "qc", skip_motion=False, scans=("moved",))
    scan = json.loads((tmp_path / "qc/qc.json").read_text())["scans"][0]
    displacement = scan["framewise_displacement_mm"]
    assert [step is None for step in displacement] == [False] * 4 + [True] * 2 + [False]
    assert displacement[2] == pytest.approx(4.0, abs=0.1)
    assert scan["measures"]["fd_max"] == pytest.approx(4.0, abs=0.1)
    assert scan["measures"]["fd_perc"] == pytest.approx(100 / 5)
    page = (tmp_path / "qc/qc.html").read_text()
    assert "the head was not found in all of its frames" in page


def test_another_mask_for_the_same_voxels_is_another_examination(store: ScanStore, tmp_path: Path, examined: list[str]):
    scan = store.read("head-0")
    ball = make_head(0) > 400
    look(store, tmp_path / "qc", scans=("head-0",))
    examined.clear()
    store.write(
        Prepared(scan=scan, profile=find_profile(NATIVE), mask=ball), scan_id="head-0", subject="head-0", modality="T1w"
    )
    look(store, tmp_path / "qc", scans=("head-0",))
    found = json.loads((tmp_path / "qc/qc.json").read_text())["scans"][0]
    assert examined == ["head-0"]
    assert found["group"].endswith("measured in the brain")
    assert found["measures"]["summary_fg_p05"] > 400, "the mask holds nothing darker"


def test_of_a_scan_without_orientation_nothing_is_shown(store: ScanStore, tmp_path: Path):
    flag = "no orientation in the header: the first axis was taken to run to the left, which may be wrong"
    add(store, "lost", make_head(77), flags=(flag,))
    look(store, tmp_path / "qc", scans=("lost",))
    page = (tmp_path / "qc/qc.html").read_text()
    assert "a face could not be kept out" in page
    assert "data:image/webp" not in page


def test_copies_of_one_head_under_two_names_are_told(store: ScanStore, tmp_path: Path):
    add(store, "copy", make_head(0))
    answer = look(store, tmp_path / "qc")
    assert "holds the same voxels as head-0" in answer.apart["copy"]
    assert "holds the same voxels as copy" in answer.apart["head-0"]


@pytest.mark.ray
def test_a_connected_ray_finds_the_same(
    ray_session: Any, store: ScanStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    by_ray = look(store, tmp_path / "ray", workers=2)
    assert by_ray.num_examined == NUM_SCANS + 1
    monkeypatch.setattr(qc, "is_on_cluster", lambda: False)
    monkeypatch.setattr(qc, "spread_over_ray", None)
    look(store, tmp_path / "here")
    here, there = (json.loads((tmp_path / name / "qc.json").read_text())["scans"] for name in ("here", "ray"))
    assert here == there

"""The same graphs give the same outcomes here, in threads and on Ray; a scan is one task; only its record travels."""

import itertools
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import dask
import nibabel
import numpy as np
import pytest

from neuroray.jobs import ingest, ingest_graph
from neuroray.jobs.ingest_graph import ScanGraph, build_graph, choose_scheduler, fuse, run_here
from neuroray.jobs.ingest_steps import Order
from neuroray.storage.profiles import find_profile
from neuroray.storage.sources import list_source
from neuroray.storage.store import ScanStore


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for seed in range(5):
        voxels = np.random.default_rng(seed).integers(0, 900, (7, 9, 8), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / f"p{seed}_T1w.nii.gz")
    (folder / "page_T1w.nii").write_text("<html>not found</html>")
    return folder


def graphs(source: Path, store: ScanStore) -> list[ScanGraph]:
    profile = find_profile("native")
    return [
        build_graph(
            Order(
                file=scan.file,
                modality=None,
                participant=None,
                known=None,
                profile=profile,
                profile_sha256=profile.fingerprint(),
                store=store,
                max_bytes=2**24,
            )
        )
        for scan in list_source(str(source)).scans
    ]


def test_a_graph_has_a_node_for_each_step_and_fuses_to_one(source: Path, tmp_path: Path):
    graph = graphs(source, ScanStore.create(tmp_path / "store"))[0]
    assert list(graph.tasks) == ["fetch-p0_T1w", "read-p0_T1w", "measure-statistics-p0_T1w", "write-p0_T1w"]
    tasks = [task for task in fuse(graph).tasks.values() if isinstance(task, ingest_graph.task_spec.Task)]
    assert len(tasks) == 1


def test_one_process_and_its_threads_come_to_the_same(source: Path, tmp_path: Path):
    found = []
    for num_threads in (1, 3):
        store = ScanStore.create(tmp_path / f"store{num_threads}")
        outcomes = sorted(run_here(graphs(source, store), num_threads), key=lambda outcome: outcome.scan_id)
        found.append([(outcome.scan_id, outcome.record and outcome.record.voxels_sha256) for outcome in outcomes])
        assert [outcome.scan_id for outcome in outcomes if outcome.refusal] == ["page_T1w"]
    assert found[0] == found[1]


def test_no_more_scans_are_taken_up_than_are_worked_on(monkeypatch: pytest.MonkeyPatch):
    taken, gate = itertools.count(), threading.Event()
    num_taken = 0

    def endless() -> Iterator[ScanGraph]:
        nonlocal num_taken
        for number in taken:
            num_taken += 1
            yield ScanGraph(order=None, tasks={}, key=str(number))  # type: ignore[arg-type]

    def work(tasks, key):
        if key != "0":
            gate.wait(30)
        return key

    monkeypatch.setattr(ingest_graph, "get_sync", work)
    running = run_here(endless(), 3)
    assert next(running) == "0"
    assert num_taken == 4
    gate.set()
    running.close()


@pytest.mark.parametrize(
    ("asked", "workers", "address", "connected", "chosen"),
    [
        ("auto", None, None, False, "local"),
        ("auto", 1, None, False, "local"),
        ("auto", 2, None, False, "ray"),
        ("auto", None, "10.0.0.1:6379", False, "ray"),
        ("auto", None, None, True, "ray"),
        ("local", 4, "10.0.0.1:6379", True, "local"),
        ("ray", None, None, False, "ray"),
    ],
)
def test_ray_is_taken_where_it_is_at_hand_or_several_workers_are_asked_for(
    asked, workers, address, connected, chosen, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(is_initialized=lambda: connected))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert choose_scheduler(asked, workers) == chosen


@pytest.mark.ray
def test_ray_comes_to_the_same_as_one_process_and_leaves_dask_as_it_was(ray_session, source: Path, tmp_path: Path):
    persist, method = dask.persist, dask.base.DaskMethodsMixin.persist
    answers = [
        ingest.run(
            ingest.Args(
                source=str(source),
                store=str(tmp_path / scheduler),
                out=str(tmp_path / f"out-{scheduler}"),
                scheduler=scheduler,
            )
        )
        for scheduler in ("local", "ray")
    ]
    assert [(answer.num_stored, len(answer.refused)) for answer in answers] == [(5, 1), (5, 1)]
    here, there = (ScanStore(tmp_path / name) for name in ("local", "ray"))
    assert [row.manifest_sha256 for row in here.records()] == [row.manifest_sha256 for row in there.records()]
    assert there.verify() == []
    assert (dask.persist, dask.base.DaskMethodsMixin.persist) == (persist, method)
    again = ingest.run(ingest.Args(source=str(source), store=there.uri, out=str(tmp_path / "again"), workers=2))
    assert (again.num_stored, again.num_unchanged) == (0, 5)


@pytest.mark.ray
def test_a_worker_that_dies_each_time_costs_its_own_file_only(
    ray_session, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def die(order):
        import os

        if order.file.scan_id == "p1_T1w":
            os._exit(1)
        return ingest_graph.fetch(order)

    build = build_graph

    def build_deadly(order: Order) -> ScanGraph:
        graph = build(order)
        key = f"fetch-{order.file.scan_id}"
        tasks = {**graph.tasks, key: ingest_graph.task_spec.Task(key, die, order)}
        return ScanGraph(order=order, tasks=tasks, key=graph.key)

    monkeypatch.setattr(ingest, "build_graph", build_deadly)
    answer = ingest.run(ingest.Args(source=str(source), store=str(tmp_path / "store"), scheduler="ray"))
    assert answer.num_stored == 4
    assert {refusal.file for refusal in answer.refused} == {"p1_T1w.nii.gz", "page_T1w.nii"}
    assert any("the worker that read it died" in (refusal.reason["fault"] or "") for refusal in answer.refused)

"""Ingest once more: what is unchanged is not read again, what changed is, and what was cut off is finished."""

import json
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroray.jobs import ingest, ingest_steps
from neuroray.storage.store import ScanStore

NAMES = ("anna", "bert", "cora")


def write_image(folder: Path, name: str, seed: int) -> None:
    voxels = np.random.default_rng(seed).integers(0, 900, (7, 9, 8), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), folder / f"{name}_T1w.nii.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for seed, name in enumerate(NAMES):
        write_image(source, name, seed)
    (source / "people.csv").write_text("id,age\nanna,31\nbert,40\ncora,50\n")
    return source


def run(source: Path, store: Path, **options: object) -> ingest.Answer:
    return ingest.run(ingest.Args(source=str(source), store=str(store), **options))  # type: ignore[arg-type]


def times_of_change(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from here on."""
    names: list[str] = []
    read = ingest_steps.read_scan

    def counted(path, **options):
        names.append(path.name)
        return read(path, **options)

    monkeypatch.setattr(ingest_steps, "read_scan", counted)
    return names


def test_what_is_stored_is_neither_decoded_nor_written_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run(folder, tmp_path / "store")
    objects = times_of_change(tmp_path / "store/scans")
    decoded = count_reads(monkeypatch)
    again = run(folder, tmp_path / "store")
    assert (again.num_stored, again.num_unchanged, again.num_relabelled) == (0, 3, 0)
    assert again.catalogue_version == first.catalogue_version
    assert decoded == []
    assert times_of_change(tmp_path / "store/scans") == objects


def test_new_labels_are_a_new_row_and_nothing_is_decoded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(folder, tmp_path / "store")
    old = ScanStore(tmp_path / "store", version=first.catalogue_version)
    (folder / "people.csv").write_text("id,age,sex\nanna,31,F\nbert,41,n/a\ncora,50,n/a\n")
    decoded = count_reads(monkeypatch)
    again = run(folder, tmp_path / "store")
    assert (again.num_stored, again.num_unchanged, again.num_relabelled) == (0, 3, 2)
    assert decoded == []
    store = ScanStore(tmp_path / "store")
    assert [(row.subject, row.age_years, row.sex) for row in store.records()] == [
        ("anna", 31, "F"),
        ("bert", 41, None),
        ("cora", 50, None),
    ]
    assert [row.age_years for row in old.records()] == [31, 40, 50]
    assert store.record("bert_T1w").path == old.record("bert_T1w").path


def test_a_changed_file_is_a_new_version_and_the_old_one_stays_readable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = run(folder, tmp_path / "store")
    before = ScanStore(tmp_path / "store").read("bert_T1w").voxels
    write_image(folder, "bert", seed=99)
    decoded = count_reads(monkeypatch)
    again = run(folder, tmp_path / "store")
    assert (again.num_stored, again.num_unchanged) == (1, 2)
    assert decoded == ["bert_T1w.nii.gz"]
    new = ScanStore(tmp_path / "store").read("bert_T1w").voxels
    assert not np.array_equal(new, before)
    old = ScanStore(tmp_path / "store", version=first.catalogue_version)
    np.testing.assert_array_equal(old.read("bert_T1w").voxels, before)


def test_a_changed_sidecar_is_read_again(tmp_path: Path):
    func = tmp_path / "bids/sub-1/func"
    func.mkdir(parents=True)
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 9, (6, 5, 4, 7), dtype=np.int16), np.eye(4))
    nibabel.save(image, func / "sub-1_task-rest_bold.nii.gz")
    for repetition_time_s in (2.5, 3.0):
        (func / "sub-1_task-rest_bold.json").write_text(json.dumps({"RepetitionTime": repetition_time_s}))
        assert run(tmp_path / "bids", tmp_path / "store").num_stored == 1
        assert ScanStore(tmp_path / "store").record("sub-1_task-rest_bold").repetition_time_s == repetition_time_s


def test_a_stored_scan_with_a_missing_object_is_written_again(folder: Path, tmp_path: Path):
    run(folder, tmp_path / "store")
    chunk = next(path for path in (tmp_path / "store/scans/bert_T1w").rglob("voxels/c/**/*") if path.is_file())
    content = chunk.read_bytes()
    chunk.unlink()
    run(folder, tmp_path / "store")
    assert chunk.read_bytes() == content
    assert ScanStore(tmp_path / "store").verify() == []


@pytest.mark.parametrize("step", ["fetch_file", "read_scan", "ScanStore.write", "ScanStore.commit"])
@pytest.mark.parametrize("at_call", [1, 2, 3])
def test_killed_at_any_step_the_next_run_finishes(
    step: str, at_call: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ingest, "_SCANS_PER_COMMIT", 1)
    owner, name = (ScanStore, step.partition(".")[2]) if "." in step else (ingest_steps, step)
    original, num_calls = getattr(owner, name), 0

    def killed(*args, **options):
        nonlocal num_calls
        num_calls += 1
        if num_calls == at_call:
            raise KeyboardInterrupt
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "store")
    stored = {row.scan_id for row in ScanStore(tmp_path / "store").records()}
    assert len(stored) == at_call - 1
    answer = run(folder, tmp_path / "store")
    assert (answer.num_stored, answer.num_unchanged) == (3 - len(stored), len(stored))
    store = ScanStore(tmp_path / "store")
    assert store.verify() == []
    assert {row.subject: row.age_years for row in store.records()} == {"anna": 31, "bert": 40, "cora": 50}
    np.testing.assert_array_equal(store.read("cora_T1w").voxels, nibabel.load(folder / "cora_T1w.nii.gz").dataobj)


def test_two_ingests_at_once_leave_each_scan_once(folder: Path, tmp_path: Path):
    ScanStore.create(tmp_path / "store")
    answers: list[ingest.Answer] = []
    jobs = [
        threading.Thread(target=lambda at=at: answers.append(run(folder, tmp_path / "store", out=str(tmp_path / at))))
        for at in ("one", "two")
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(answers) == 2
    store = ScanStore(tmp_path / "store")
    assert [row.subject for row in store.records()] == list(NAMES)
    assert all(len(list((tmp_path / "store/scans" / row.scan_id).iterdir())) == 2 for row in store.records())
    assert store.verify() == []


def test_a_file_that_changes_while_it_is_read_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read = ingest_steps.read_scan

    def read_and_change(path, **options):
        scan = read(path, **options)
        if path.name.startswith("bert"):
            write_image(folder, "bert", seed=5)
        return scan

    monkeypatch.setattr(ingest_steps, "read_scan", read_and_change)
    answer = run(folder, tmp_path / "store")
    assert [refusal.file for refusal in answer.refused] == ["bert_T1w.nii.gz"]
    assert "changed while it was read" in (answer.refused[0].reason["fault"] or "")


def test_what_trips_the_reader_is_one_refusal_and_not_the_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = ingest_steps.read_scan

    def read_or_trip(path, **options):
        if path.name.startswith("bert"):
            raise IndexError("an axis too many")
        return read(path, **options)

    monkeypatch.setattr(ingest_steps, "read_scan", read_or_trip)
    answer = run(folder, tmp_path / "store")
    assert (answer.num_stored, len(answer.refused)) == (2, 1)
    assert answer.refused[0].reason["given"] == "IndexError: an axis too many"


def test_a_run_without_a_table_keeps_the_labels_and_the_person_of_the_store(folder: Path, tmp_path: Path):
    (folder / "people.csv").write_text("id,file,age\nperson-7,anna_T1w.nii.gz,31\n")
    run(folder, tmp_path / "store")
    again = run(folder, tmp_path / "store", participants="none")
    assert (again.num_stored, again.num_relabelled) == (0, 0)
    row = ScanStore(tmp_path / "store").record("anna_T1w")
    assert (row.subject, row.age_years) == ("person-7", 31)


def test_another_profile_is_another_version_and_a_scan_of_the_wrong_kind_is_refused(folder: Path, tmp_path: Path):
    voxels = np.pad(np.random.default_rng(8).integers(100, 900, (5, 7, 6, 5), dtype=np.int16), [(1, 1)] * 3 + [(0, 0)])
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), folder / "dora_bold.nii.gz")
    first = run(folder, tmp_path / "store")
    again = run(folder, tmp_path / "store", profile="fmri_minimal")
    assert [refusal.file for refusal in again.refused] == [f"{name}_T1w.nii.gz" for name in NAMES]
    assert (again.num_stored, again.num_unchanged) == (1, 0)
    store = ScanStore(tmp_path / "store")
    assert store.record("dora_bold").profile == "fmri_minimal"
    assert ScanStore(tmp_path / "store", version=first.catalogue_version).record("dora_bold").profile == "native"
    assert run(folder, tmp_path / "store", profile="fmri_minimal").num_stored == 0

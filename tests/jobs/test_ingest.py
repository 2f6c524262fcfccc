"""`ingest`, `inspect` and `verify`: scans of a folder come in, every refusal is listed, nothing is done twice."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroray.jobs import ingest, inspect, verify
from neuroray.storage.participants import TableError
from neuroray.storage.store import ScanStore

DATA = Path(__file__).parents[1] / "data"


def ingest_folder(source: Path, store: Path, **options) -> ingest.Answer:
    return ingest.run(ingest.Args(source=str(source), store=str(store), **options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good scans, one cut short, one web page, and a table of the people."""
    source = tmp_path / "source"
    source.mkdir()
    generator = np.random.default_rng(0)
    for name in ("anna", "bert"):
        voxels = generator.integers(0, 900, (7, 9, 8), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), source / f"{name}_T1w.nii.gz")
    whole = gzip.compress(generator.bytes(5000))
    (source / "cut_T1w.nii.gz").write_bytes(whole[:2000])
    shutil.copy(DATA / "hard/html_error_page.nii.gz", source / "page_T1w.nii.gz")
    (tmp_path / "people.csv").write_text("MRID,Age,Sex\nanna,31.5,F\nbert,40,M\ncora,50,F\n")
    return source


def test_a_folder_with_bad_files_is_stored_but_for_those_and_each_is_listed(folder: Path, tmp_path: Path):
    answer = ingest_folder(folder, tmp_path / "store", participants=str(tmp_path / "people.csv"))
    assert (answer.num_stored, answer.exit_code) == (2, 0)
    assert [refusal.file for refusal in answer.refused] == ["cut_T1w.nii.gz", "page_T1w.nii.gz"]
    report = json.loads(Path(answer.report).read_text())
    assert "web page" in report["refused"][1]["reason"]["fault"]
    assert any("1 of 3 people" in notice for notice in answer.notices)
    assert {record.subject: record.age_years for record in ScanStore(tmp_path / "store").records()} == {
        "anna": 31.5,
        "bert": 40.0,
    }


def test_strict_makes_a_refusal_a_failure(folder: Path, tmp_path: Path):
    assert ingest_folder(folder, tmp_path / "store", strict=True).exit_code == 1


def test_a_second_run_stores_nothing_and_loses_no_label(folder: Path, tmp_path: Path):
    ingest_folder(folder, tmp_path / "store", participants=str(tmp_path / "people.csv"))
    version = ScanStore(tmp_path / "store").version
    again = ingest_folder(folder, tmp_path / "store")
    assert (again.num_stored, again.num_unchanged, again.catalogue_version) == (0, 2, version)
    assert ScanStore(tmp_path / "store").record("anna_T1w").sex == "F"


def test_a_faulty_table_stops_everything_before_a_store_is_made(folder: Path, tmp_path: Path):
    table = DATA / "hard/tables/path_traversal_ids.csv"
    with pytest.raises(TableError, match="row 4"):
        ingest_folder(folder, tmp_path / "store", participants=str(table))
    assert not (tmp_path / "store").exists()


def test_a_real_bids_folder_comes_in_with_labels_and_times_and_is_inspected(tmp_path: Path):
    ingest_folder(DATA / "pumi", tmp_path / "store")
    answer = inspect.run(inspect.Args(target=str(tmp_path / "store")))
    bold, t1w = (next(scan for scan in answer.scans if scan["modality"] == kind) for kind in ("bold", "T1w"))
    assert tuple(t1w["shape"]) == (96, 128, 128)
    assert t1w["age_years"] == 26
    assert tuple(bold["shape"]) == (20, 46, 46, 26)
    assert bold["repetition_time_s"] == pytest.approx(2.52)
    assert "26 y, F" in str(answer)


def test_a_sidecar_outranks_the_header_and_says_so(tmp_path: Path):
    bids = tmp_path / "bids/sub-1/func"
    bids.mkdir(parents=True)
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 9, (6, 5, 4, 7), dtype=np.int16), np.eye(4))
    image.header.set_zooms((1, 1, 1, 1.0))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, bids / "sub-1_task-rest_bold.nii.gz")
    (bids / "sub-1_task-rest_bold.json").write_text('{"RepetitionTime": 2.5}')
    answer = ingest_folder(tmp_path / "bids", tmp_path / "store")
    assert ScanStore(tmp_path / "store").record("sub-1_task-rest_bold").repetition_time_s == 2.5
    assert "header 1 s, sidecar 2.5 s" in answer.flagged["sub-1_task-rest_bold"][0]


def test_verify_finds_nothing_and_then_the_one_flipped_byte(folder: Path, tmp_path: Path):
    ingest_folder(folder, tmp_path / "store")
    clean = verify.run(verify.Args(store=str(tmp_path / "store")))
    assert (clean.exit_code, clean.num_scans) == (0, 2)
    chunk = max((tmp_path / "store/scans/bert_T1w").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    broken = verify.run(verify.Args(store=str(tmp_path / "store"), out=str(tmp_path / "verified")))
    assert broken.exit_code == 1
    assert {fault["scan_id"] for fault in broken.faults} == {"bert_T1w"}
    assert json.loads((tmp_path / "verified/run.json").read_text())["faults"]


@pytest.mark.skipif(
    not (DATA.parents[2] / "shared/data/hard").is_dir(), reason="needs the folder of hard files beside the checkout"
)
def test_all_hard_files_at_once_are_stored_or_listed(tmp_path: Path):
    answer = ingest_folder(DATA.parents[2] / "shared/data/hard", tmp_path / "store")
    assert answer.num_stored == 14
    assert [refusal.file for refusal in answer.refused] == [
        "T1_all_zero.nii.gz",
        "T1_gz_truncated60pct.nii.gz",
        "T1_huge_dims.nii",
        "T1_wrong_magic.nii",
        "gz_bomb_2GB_zeros.nii.gz",
        "html_error_page.nii.gz",
    ]

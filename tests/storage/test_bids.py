import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from faulty_scans import DATA, header_bytes
from volume_samples import stored_numbers, write_analyze, write_nifti

from neuroray.storage.bids import ScanFile, find_scans
from neuroray.storage.scan import ScanError

PUMI = DATA / "pumi"


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not looked into")


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _by_id(files: list[ScanFile]) -> dict[str, ScanFile]:
    assert len({file.scan_id for file in files}) == len(files)
    return {file.scan_id: file for file in files}


def test_a_real_bids_folder_gives_its_scans_with_inherited_sidecars() -> None:
    files = _by_id(find_scans(PUMI))
    assert list(files) == ["sub-001_T1w", "sub-001_task-rest_bold"]
    t1, bold = files.values()
    assert (t1.subject, t1.session, t1.datatype, t1.suffix) == ("001", None, "anat", "T1w")
    assert (bold.subject, bold.datatype, bold.suffix) == ("001", "func", "bold")
    assert bold.entities == {"sub": "001", "task": "rest"}
    assert bold.sidecar["TaskName"] == "resting-state"  # from the file at the top
    assert bold.sidecar["RepetitionTime"] == 2.52  # from the file beside the scan
    assert "TaskName" not in t1.sidecar


def test_field_maps_come_only_when_asked_for() -> None:
    files = find_scans(PUMI, field_maps=True)
    maps = [file for file in files if file.datatype == "fmap"]
    assert len(maps) == 6
    assert {(file.subject, file.suffix) for file in maps} == {("001", "fieldmap")}
    assert len(files) == 8


def test_sessions_and_entities_are_told_from_names(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "sub-02/ses-early/func/sub-02_ses-early_task-rest_run-2_bold.nii.gz",
        "sub-02/ses-late/anat/sub-02_ses-late_acq-mprage_T1w.nii",
        "sub-10/anat/sub-10_T1w.mgz",
    )
    files = _by_id(find_scans(tmp_path))
    bold = files["sub-02_ses-early_task-rest_run-2_bold"]
    assert (bold.subject, bold.session) == ("02", "early")
    assert bold.entities == {"sub": "02", "ses": "early", "task": "rest", "run": "2"}
    assert files["sub-02_ses-late_acq-mprage_T1w"].session == "late"
    assert files["sub-10_T1w"].session is None


def test_the_nearer_sidecar_overrides_and_strangers_do_not_apply(tmp_path: Path) -> None:
    scan = "sub-1/ses-a/func/sub-1_ses-a_task-rest_bold.nii.gz"
    _touch(tmp_path, scan)
    _write_json(tmp_path / "dataset_description.json", {"Name": "x"})
    _write_json(tmp_path / "bold.json", {"a": 0, "b": 0, "c": 0})
    _write_json(tmp_path / "task-rest_bold.json", {"b": 1})
    _write_json(tmp_path / "task-other_bold.json", {"a": "stranger"})
    _write_json(tmp_path / "T1w.json", {"a": "stranger"})
    _write_json(tmp_path / "sub-1/sub-1_task-rest_bold.json", {"c": 2, "d": 2})
    _write_json(tmp_path / "sub-1/ses-a/func/sub-1_ses-a_task-rest_bold.json", {"d": 3})
    expected = {"a": 0, "b": 1, "c": 2, "d": 3}
    assert find_scans(tmp_path)[0].sidecar == expected
    assert find_scans(tmp_path / scan)[0].sidecar == expected


def test_sidecars_above_the_data_set_do_not_apply(tmp_path: Path) -> None:
    root = tmp_path / "study"
    _touch(root, "sub-1/anat/sub-1_T1w.nii")
    _write_json(tmp_path / "T1w.json", {"a": "stranger"})
    assert find_scans(root)[0].sidecar == {}


@pytest.mark.parametrize("content", ["{broken", "[1, 2]", "\ud800"])
def test_a_broken_sidecar_is_left_out_and_told(content: str, tmp_path: Path) -> None:
    _touch(tmp_path, "sub-1/anat/sub-1_T1w.nii")
    (tmp_path / "sub-1/anat/sub-1_T1w.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    file = find_scans(tmp_path)[0]
    assert file.sidecar == {}
    assert file.notices == ("sub-1_T1w.json is not a JSON object and was left out",)


def test_hidden_derived_and_other_files_are_left_out(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/.sub-1_T2w.nii.gz",
        "sub-1/anat/._sub-1_T1w.nii.gz",
        "sub-1/.git/annex/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_T1w.json",
        "sub-1/fmap/sub-1_phasediff.nii.gz",
        "derivatives/fmriprep/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz",
        "sourcedata/sub-1/sub-1_T1w.nii.gz",
        "std/template.nii.gz",
    )
    (tmp_path / "sub-1/anat/sub-1_T1w.json").write_text("{}")
    assert [file.scan_id for file in find_scans(tmp_path)] == ["sub-1_T1w"]


def test_derivatives_can_be_listed_by_their_own_path(tmp_path: Path) -> None:
    _touch(tmp_path, "derivatives/fmriprep/sub-1/anat/sub-1_desc-preproc_T1w.nii.gz")
    files = find_scans(tmp_path / "derivatives/fmriprep")
    assert [file.entities["desc"] for file in files] == ["preproc"]


def test_a_scan_in_the_folder_of_another_person_is_noticed(tmp_path: Path) -> None:
    _touch(tmp_path, "sub-1/anat/sub-2_T1w.nii.gz")
    assert find_scans(tmp_path)[0].notices == ("sub-2_T1w.nii.gz lies in the folder of another person",)


def test_a_plain_folder_gives_subjects_from_names(tmp_path: Path) -> None:
    _touch(
        tmp_path,
        "IXI012-HH-1211-T1_ds.nii.gz",
        "deeper/person 7 (old).mgz",
        "scan-T1-001.nii",
        "scan-T1-002.nii",
        "M02101222_swc1t1avg.nii.gz",
        "readme.txt",
    )
    subjects = {file.name: file.subject for file in find_scans(tmp_path)}
    assert subjects == {
        "IXI012-HH-1211-T1_ds.nii.gz": "IXI012-HH-1211",
        "person 7 (old).mgz": "person-7-old",
        "scan-T1-001.nii": "scan-T1-001",  # not "scan", which would make two people one
        "scan-T1-002.nii": "scan-T1-002",
        "M02101222_swc1t1avg.nii.gz": "M02101222_swc1t1avg",
    }


def test_folders_tell_equal_names_apart(tmp_path: Path) -> None:
    _touch(tmp_path, "anna/T1.nii.gz", "bert/T1.nii.gz", "bert/other.nii.gz")
    files = _by_id(find_scans(tmp_path))
    assert list(files) == ["anna_T1", "bert_T1", "other"]
    assert [file.subject for file in files.values()] == ["anna", "bert", "other"]


def test_the_same_name_twice_in_a_folder_gives_two_ids(tmp_path: Path) -> None:
    _touch(tmp_path, "a.nii", "a.nii.gz", "a-2.nii")
    assert len(_by_id(find_scans(tmp_path))) == 3


def test_free_names_say_what_they_are_or_the_header_does(tmp_path: Path) -> None:
    write_nifti(tmp_path / "one.nii", stored_numbers("int16"))
    write_nifti(tmp_path / "two.nii.gz", stored_numbers("int16", (4, 4, 4, 3)))
    _touch(tmp_path, "three_rest_run.nii", "four-FLAIR.nii", "five_T2w.nii", "six_T1_rest.nii", "seven.nii")
    kinds = {file.name: (file.suffix, file.datatype) for file in find_scans(tmp_path)}
    assert kinds == {
        "one.nii": ("T1w", "anat"),
        "two.nii.gz": ("bold", "func"),
        "three_rest_run.nii": ("bold", "func"),
        "four-FLAIR.nii": ("FLAIR", "anat"),
        "five_T2w.nii": ("T2w", "anat"),
        "six_T1_rest.nii": ("T1w", "anat"),
        "seven.nii": ("T1w", "anat"),
    }
    assert {file.suffix for file in find_scans(tmp_path, modality="bold")} == {"bold"}


def test_the_modality_of_a_bids_name_stands(tmp_path: Path) -> None:
    _touch(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    assert find_scans(tmp_path, modality="bold")[0].suffix == "T1w"


def test_a_pair_counts_once(tmp_path: Path) -> None:
    write_analyze(tmp_path / "pair.hdr", stored_numbers("int16"))
    _touch(tmp_path, "lone.img")
    for root in (tmp_path, f"{tmp_path}/*"):
        assert [file.name for file in find_scans(root)] == ["lone.img", "pair.hdr"]
    assert [file.name for file in find_scans(tmp_path / "pair.img")] == ["pair.hdr"]


def test_globs_and_single_files_are_taken(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x1.nii", "a/x2.nii.gz", "b/x3.mgz", "b/y.nii", "b/x.txt")
    assert [file.name for file in find_scans(f"{tmp_path}/*/x*")] == ["x1.nii", "x2.nii.gz", "x3.mgz"]
    assert [file.name for file in find_scans(f"{tmp_path}/**/*.nii")] == ["x1.nii", "y.nii"]
    assert [file.scan_id for file in find_scans(tmp_path / "b/y.nii")] == ["y"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    _touch(tmp_path, "scan[1].nii")
    assert [file.subject for file in find_scans(tmp_path / "scan[1].nii")] == ["scan-1"]


@pytest.mark.parametrize("root", ["", "none", "*.nii", "empty"])
def test_nothing_found_is_a_scan_error(root: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ScanError, match=r"no scans found|no such file"):
        find_scans(tmp_path / root)


def test_damaged_files_are_listed_for_the_reader_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(header_bytes((9, 9, 9), np.uint8))[:60])
    _touch(tmp_path, "page.nii", "empty.mgz")
    assert [file.name for file in find_scans(tmp_path)] == ["cut.nii.gz", "empty.mgz", "page.nii"]


def test_links_that_go_round_end(tmp_path: Path) -> None:
    _touch(tmp_path, "a/x.nii")
    (tmp_path / "a/again").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert [file.name for file in find_scans(tmp_path)] == ["x.nii"]

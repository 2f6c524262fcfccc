"""Rows find their scans however ids are written, never another person's, and it is told how many in which way."""

from pathlib import Path

import pytest

from neuroray.storage.bids import ScanFile
from neuroray.storage.label_matching import match_labels
from neuroray.storage.participants import ParticipantTable, read_participants


def scans(*names: str) -> list[ScanFile]:
    return [
        ScanFile(
            path=Path(f"{name}.nii.gz"), scan_id=name, subject=name.partition("_T1w")[0], datatype="anat", suffix="T1w"
        )
        for name in names
    ]


def table(tmp_path: Path, text: str) -> ParticipantTable:
    (tmp_path / "people.csv").write_text(text)
    return read_participants(tmp_path / "people.csv")


def ages(files: list[ScanFile], people: ParticipantTable) -> tuple[list[float | None], list[str]]:
    found, notices = match_labels(files, people)
    assert all(scan.participant is None or scan.participant.subject == scan.file.subject for scan in found)
    return [scan.participant.age_years if scan.participant else None for scan in found], notices


def test_a_column_of_file_names_finds_scans_whatever_folder_and_ending_it_gives(tmp_path: Path):
    people = table(tmp_path, "niftifile,age\r\nM01_swc1.nii,30\r\ndata/site 1/M02_swc1.nii.gz,40\r\nM03_swc1,50\r\n")
    found, notices = ages(scans("M01_swc1", "M02_swc1", "M03_swc1", "M04_swc1"), people)
    assert found == [30, 40, 50, None]
    assert notices[0] == "labels: 3 of 4 scans were found in the table (3 by file name)"
    assert notices[1] == "1 of 4 people with scans are not in the participants table"


def test_a_table_with_ids_and_files_says_whose_each_scan_is(tmp_path: Path):
    people = table(tmp_path, "subject,file,age\nanna,x1.nii.gz,30\nanna,x2.nii.gz,31\nbert,x3.nii.gz,40\n")
    found, _ = match_labels(scans("x1", "x2", "x3"), people)
    assert [scan.file.subject for scan in found] == ["anna", "anna", "bert"]
    assert [scan.participant.age_years for scan in found if scan.participant] == [30, 31, 40]


def test_two_rows_of_one_person_label_no_scan_that_neither_names(tmp_path: Path):
    people = table(tmp_path, "subject,file,age\nanna,x1.nii.gz,30\nanna,x2.nii.gz,31\n")
    assert ages(scans("anna_T1w"), people)[0] == [None]


@pytest.mark.parametrize(
    ("name", "listed", "way"),
    [
        ("001_T1w", "1", "without leading zeros"),
        ("7_T1w", "0007", "without leading zeros"),
        ("Anna_T1w", "ANNA", "regard to case"),
        ("M01_swc1t1avg", "M01", "beginning of the name"),
        ("M01-visit", "m01", "beginning of the name"),
    ],
)
def test_an_id_written_in_another_way_is_found_and_told(name: str, listed: str, way: str, tmp_path: Path):
    found, notices = ages(scans(name), table(tmp_path, f"id,age\n{listed},30\nother,40\n"))
    assert found == [30]
    assert way in notices[0]


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["01_T1w", "001_T1w"], ["1"]),  # one row, two people
        (["1_T1w", "01_T1w"], ["1"]),  # the first is the row's own: the second is somebody else
        (["M1-2_x"], ["M1", "M1-2"]),  # one scan, two rows
        (["M012_T1w"], ["M01"]),  # the name goes on without a break
        (["12_T1w"], ["1"]),
    ],
)
def test_what_could_be_two_people_gets_no_label(names: list[str], listed: list[str], tmp_path: Path):
    people = table(tmp_path, "id,age\n" + "".join(f"{name},{30 + index}\n" for index, name in enumerate(listed)))
    found, _ = ages(scans(*names), people)
    exact = [
        30 + listed.index(name.partition("_T1w")[0]) if name.partition("_T1w")[0] in listed else None for name in names
    ]
    assert found == exact


def test_several_scans_of_one_person_may_begin_with_the_id(tmp_path: Path):
    assert ages(scans("M01_run1", "M01_run2"), table(tmp_path, "id,age\nM01,30\n"))[0] == [30, 30]


def test_people_without_scans_are_counted_not_named(tmp_path: Path):
    _, notices = ages(scans("anna_T1w"), table(tmp_path, "id,age\nanna,30\nbert,40\ncora,50\n"))
    assert notices[-1] == "2 of 3 people in the participants table have no scan here"
    assert not any("bert" in notice for notice in notices)

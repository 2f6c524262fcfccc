from pathlib import Path

import pytest
from faulty_scans import DATA
from hypothesis import given
from hypothesis import strategies as st

from neuroray.errors import NeurorayError
from neuroray.storage.participants import Participant, TableError, check_subject_id, read_participants

TABLES = DATA / "hard/tables"


def _table(folder: Path, text: str | bytes, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_real_table_is_read() -> None:
    assert list(read_participants(DATA / "pumi")) == [Participant(subject="001", sex="F", age_years=26.0)]
    assert read_participants(DATA / "pumi/participants.tsv").notices == ()


def test_a_byte_order_mark_and_windows_line_ends_are_taken() -> None:
    table = read_participants(TABLES / "bom_crlf.csv")
    assert len(table) == 23
    assert table.participants[0] == Participant(subject="Subj1", age_years=82.28336415, sex="M")
    assert table.participants[-1] == Participant(subject="Subj23", age_years=80.9555095, sex="M")
    assert table.notices == ()


def test_semicolons_with_decimal_commas_are_read_and_told() -> None:
    table = read_participants(TABLES / "semicolon_decimal_comma.csv")
    assert list(table) == list(read_participants(TABLES / "bom_crlf.csv"))
    assert any("semicolons" in notice for notice in table.notices)


def test_ids_listed_twice_are_refused_by_row_and_column() -> None:
    with pytest.raises(TableError) as caught:
        read_participants(TABLES / "duplicate_ids.csv")
    text = str(caught.value)
    assert text.startswith("duplicate_ids.csv: 2 faults")
    assert "row 25, column MRID: listed already in row 2" in text
    assert "row 26, column MRID: listed already in row 3" in text
    assert "Subj" not in text


def test_missing_ages_are_kept_as_unknown_and_told_by_row_and_column() -> None:
    table = read_participants(TABLES / "missing_and_na.csv")
    unknown = [row.subject for row in table if row.age_years is None]
    assert unknown == ["Subj1", "Subj5", "Subj9", "Subj13", "Subj17", "Subj21"]
    assert table.notices[0] == "missing_and_na.csv: row 2, column Age: no age (n/a)"
    assert len(table.notices) == 6


def test_an_id_that_leaves_the_folder_is_refused_by_row_and_column() -> None:
    with pytest.raises(TableError, match=r"path_traversal_ids\.csv: 1 fault .*row 4, column MRID") as caught:
        read_participants(TABLES / "path_traversal_ids.csv")
    assert "passwd" not in str(caught.value)
    assert isinstance(caught.value, NeurorayError)
    assert isinstance(caught.value, ValueError)


def test_all_columns_are_typed_and_the_rest_is_kept(tmp_path: Path) -> None:
    table = read_participants(
        _table(
            tmp_path,
            "Participant_ID\tAGE\tGender\tgroup\tcognition\tfamily_id\tsite\thandedness\tnote\n"
            "sub-a1\t 31.5 \tFemale\tpatient\t-0.25\tF7\tParis\tleft\tn/a\n",
            "participants.tsv",
        )
    )
    assert list(table) == [
        Participant(
            subject="a1",
            age_years=31.5,
            sex="F",
            diagnosis="patient",
            cognition=-0.25,
            family_id="F7",
            site="Paris",
            extra={"handedness": "left"},
        )
    ]


@pytest.mark.parametrize("column", ["participant_id", "MRID", "subject", "subject_id", "ID", "Subject_ID"])
def test_the_id_goes_by_many_names(column: str, tmp_path: Path) -> None:
    assert [row.subject for row in read_participants(_table(tmp_path, f"age,{column}\n5,x\n"))] == ["x"]


def test_where_two_columns_could_hold_the_id_bids_own_is_taken(tmp_path: Path) -> None:
    row = read_participants(_table(tmp_path, "ID,participant_id\n7,sub-x\n")).participants[0]
    assert (row.subject, row.extra) == ("x", {"ID": "7"})


@pytest.mark.parametrize(
    ("text", "sex"), [("m", "M"), ("F", "F"), ("male", "M"), ("Female", "F"), ("O", None), ("n/a", None), ("", None)]
)
def test_spellings_of_sex(text: str, sex: str | None, tmp_path: Path) -> None:
    table = read_participants(_table(tmp_path, f"id,sex\nx,{text}\n"))
    assert table.participants[0].sex == sex
    assert bool(table.notices) == (sex is None)
    assert all("row 2, column sex" in notice for notice in table.notices)


@pytest.mark.parametrize("text", ["1", "2", "0", "w", "femal"])
def test_codes_for_sex_are_refused_because_studies_disagree(text: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=rf"row 2, column sex: '{text}' is neither"):
        read_participants(_table(tmp_path, f"id,sex\nx,{text}\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("old", "'old' is not a number"),
        ('"31,5"', "a decimal comma"),
        ("-1", "an age of -1"),
        ("-999", "an age of -999"),
        ("121", "an age of 121"),
        ("inf", "'inf' is not a number"),
        ("1e400", "is not a number"),
        ("0x1f", "is not a number"),
        ("3 1", "is not a number"),
    ],
)
def test_an_age_that_nobody_has_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TableError) as caught:
        read_participants(_table(tmp_path, f"id,age\nx,{text}\n"))
    assert "row 2, column age" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("text", "age"), [("0", 0.0), ("120", 120.0), (".5", 0.5), ("2.6e1", 26.0), ("89+", 89.0)])
def test_ages_that_people_have_are_read(text: str, age: float, tmp_path: Path) -> None:
    table = read_participants(_table(tmp_path, f"id,age\nx,{text}\n"))
    assert table.participants[0].age_years == age
    assert bool(table.notices) == text.endswith("+")


def test_all_faults_are_told_at_once_the_first_in_full(tmp_path: Path) -> None:
    rows = "".join(f"p{index},x\n" for index in range(12))
    with pytest.raises(TableError) as caught:
        read_participants(_table(tmp_path, f"id,age\n,30\n{rows}"))
    text = str(caught.value)
    assert "13 faults" in text
    assert "row 2, column id: no id" in text
    assert "row 9, column age" in text
    assert "row 10" not in text
    assert "and 5 more" in text


def test_rows_are_counted_as_an_editor_counts_lines(tmp_path: Path) -> None:
    text = '\n\nid,age,note\n\na,30,"two\nlines"\nb,old,\n'
    with pytest.raises(TableError, match="row 7, column age"):
        read_participants(_table(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf \r\n", "empty"),
        (b"id,age\n", "no rows"),
        (b"name,age\nx,3\n", "names no column for the subject"),
        (b"id,age,Age\nx,3,4\n", "names a column twice"),
        (b"id,age\nx,3,4\n", "row 2: 3 cells under 2 columns"),
        (b"id,age\nx,3\ny\n", "row 3: 1 cells under 2 columns"),
        (b'id,age\n"x,3\n', "row 2 cannot be taken apart"),
        (b"id,age\nx,3\nM\xfcller,4\n", "row 3 is not UTF-8"),
        ("id,age\nx,3\n".encode("utf-16"), "not UTF-8"),
        (b"PK\x03\x04 and so on", "spreadsheet"),
        (b"<!DOCTYPE html><html></html>\nx\n", "names no column"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=words) as caught:
        read_participants(_table(tmp_path, content))
    assert str(caught.value).startswith("people.csv: ")
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_table_is_a_table_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tsv", tmp_path):
        with pytest.raises(TableError, match="there is no such table"):
            read_participants(path)


def test_commas_in_a_tsv_are_read_and_told(tmp_path: Path) -> None:
    table = read_participants(_table(tmp_path, "id,age\nx,3\n", "participants.tsv"))
    assert table.participants[0].age_years == 3
    assert table.notices == ("participants.tsv: cells are set apart by commas, unlike the file's name says",)


def test_visits_override_what_is_known_of_the_person(tmp_path: Path) -> None:
    _table(tmp_path, "participant_id\tsex\tage\tsite\nsub-1\tF\t60\tA\nsub-2\tM\t40\tB\n", "participants.tsv")
    (tmp_path / "sub-1").mkdir()
    visits = "session_id\tage\tscanner\nses-early\t60.5\tX\nses-late\t64\tn/a\n"
    _table(tmp_path / "sub-1", visits, "sub-1_sessions.tsv")
    table = read_participants(tmp_path)
    late = table.find("sub-1", "ses-late")
    assert late == Participant(subject="1", session="late", age_years=64.0, sex="F", site="A")
    early = table.find("1", "early")
    assert early is not None
    assert (early.age_years, early.extra) == (60.5, {"scanner": "X"})
    assert table.find("1") == Participant(subject="1", sex="F", age_years=60.0, site="A")
    assert table.find("2", "early") == Participant(subject="2", sex="M", age_years=40.0, site="B")
    assert table.find("3") is None


def test_one_table_may_hold_several_visits_of_a_person(tmp_path: Path) -> None:
    table = read_participants(_table(tmp_path, "subject,session,age\nx,1,30\nx,2,32\ny,1,50\n"))
    visits = [table.find("x", "1"), table.find("x", "2"), table.find("x"), table.find("y")]
    assert [visit and visit.age_years for visit in visits] == [30.0, 32.0, None, 50.0]
    with pytest.raises(TableError, match="row 3, column subject: listed already in row 2"):
        read_participants(_table(tmp_path, "subject,session,age\nx,1,30\nx,1,32\n"))


@pytest.mark.parametrize("text", ["sub-001", "001", "IXI012-HH-1211", "a.b_c-d", "x" * 128])
def test_safe_ids_are_taken(text: str) -> None:
    assert check_subject_id(text) == text.removeprefix("sub-")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sub-",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "/etc",
        "a..b",
        "a.",
        "-a",
        "C:x",
        "a b",
        "a\n",
        "a\0",
        "é",
        "x" * 129,
    ],
)
def test_unsafe_ids_are_refused(text: str) -> None:
    with pytest.raises(TableError, match="cannot be part of a path"):
        check_subject_id(text)


@given(st.text(max_size=20))
def test_no_accepted_id_leaves_its_folder(text: str) -> None:
    try:
        label = check_subject_id(text)
    except TableError:
        return
    assert Path("store", label).resolve().parent == Path("store").resolve()
    assert label.isascii()
    assert label.isprintable()


def test_months_by_the_columns_name_become_years_and_are_told(tmp_path: Path) -> None:
    table = read_participants(_table(tmp_path, "participant_id,age_months\na,540\nb,6\nc,n/a\n"))
    assert [row.age_years for row in table] == [45.0, 0.5, None]
    assert table.notices[0] == "people.csv: the column age_months: ages are in months; they were divided by 12"
    both = read_participants(_table(tmp_path, "participant_id,age,age_months\na,45,540\n", "both.csv"))
    assert both.participants[0].age_years == 45.0
    assert both.participants[0].extra == {"age_months": "540"}
    assert both.notices == ()


@pytest.mark.parametrize(
    ("unit", "cell", "years"),
    [
        ("months", "18", 1.5),
        ("Weeks", "104.355", 2.0),
        ("days", "3652.425", 10.0),
        ("years", "18", 18.0),
        ("", "7", 7.0),
    ],
)
def test_the_unit_beside_the_table_is_followed(tmp_path: Path, unit: str, cell: str, years: float) -> None:
    (tmp_path / "participants.json").write_text(f'{{"age": {{"Description": "at the scan", "Units": "{unit}"}}}}')
    _table(tmp_path, f"participant_id\tage\nsub-a\t{cell}\n", "participants.tsv")
    table = read_participants(tmp_path)
    assert table.participants[0].age_years == pytest.approx(years)
    assert (table.notices == ()) == (unit in ("years", ""))


def test_a_unit_that_ages_do_not_have_and_a_broken_description_are_refused(tmp_path: Path) -> None:
    path = _table(tmp_path, "participant_id\tage\nsub-a\t30\n", "participants.tsv")
    (tmp_path / "participants.json").write_text('{"age": {"Units": "mm"}}')
    with pytest.raises(TableError, match=r"participants\.json gives ages a unit that they do not have; given mm"):
        read_participants(path)
    (tmp_path / "participants.json").write_text("{")
    with pytest.raises(TableError, match=r"participants\.json cannot be read"):
        read_participants(path)
    (tmp_path / "participants.json").write_text('["a list"]')
    assert read_participants(path).participants[0].age_years == 30.0


def test_months_too_many_for_a_life_are_refused_in_their_own_unit(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="an age of 1500 months, outside 0 to 120 years"):
        read_participants(_table(tmp_path, "participant_id,age_months\na,1500\n"))

"""Who was scanned: a table of people (and of their visits) as typed labels, every fault named by row and column."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from neuroray.storage.age_unit import AgeUnit, find_age_unit
from neuroray.storage.participant_row import COLUMNS, RowReader, Sex, check_subject_id
from neuroray.storage.table_file import TableError, TextTable, raise_faults, read_text_table

__all__ = ["Participant", "ParticipantTable", "TableError", "check_subject_id", "read_participants"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """What is known of one person, or of one person at one visit; None where it is not known.

    Attributes:
        subject: The id, without BIDS's `sub-`.
        session: The visit, without BIDS's `ses-`; None for what holds at every visit.
        age_years: Age at the scan.
        sex: "M" or "F", as the study recorded it.
        diagnosis: The study's own word for the group.
        cognition: A score, in the study's own units.
        family_id: Relatives share it.
        site: Where the person was scanned.
        extra: Every other column of the table.
    """

    subject: str
    session: str | None = None
    age_years: float | None = None
    sex: Sex | None = None
    diagnosis: str | None = None
    cognition: float | None = None
    family_id: str | None = None
    site: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantTable:
    """The people of a cohort, and what is missing of them.

    Attributes:
        participants: In the table's order; what is known of single visits follows the people.
        notices: Cells that were taken as "not known" or in a way worth knowing, by file, row and column.
        files: For tables that name scans: the participant by the stem of the scan's file.
    """

    participants: tuple[Participant, ...]
    notices: tuple[str, ...] = ()
    files: Mapping[str, Participant] = field(default_factory=dict)
    _by_subject: dict[str, dict[str | None, Participant | None]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_subject: dict[str, dict[str | None, Participant | None]] = {}
        for row in self.participants:
            rows = by_subject.setdefault(row.subject, {})
            # Two rows of one person at one visit tell scans apart by their files: the person alone names neither.
            rows[row.session] = row if rows.get(row.session, row) == row else None
        object.__setattr__(self, "_by_subject", by_subject)  # the dataclass is frozen

    def __iter__(self) -> Iterator[Participant]:
        return iter(self.participants)

    def __len__(self) -> int:
        return len(self.participants)

    def find(self, subject: str, session: str | None = None) -> Participant | None:
        """What is known of a person at a visit; `sub-` and `ses-` may be left out.

        Where the table tells no visits apart, what holds at all of them. A scan without a visit's name is that of the
        only visit where the table has just one.
        """
        rows = self._by_subject.get(subject.removeprefix("sub-"), {})
        visit = None if session is None else session.removeprefix("ses-")
        only = next(iter(rows.values())) if session is None and len(rows) == 1 else None
        return rows.get(visit) or rows.get(None) or only


def read_participants(path: str | Path) -> ParticipantTable:
    """Reads a table of people: one file, or `participants.tsv` of a BIDS folder with its `*_sessions.tsv`.

    Tabs, commas or semicolons (then with decimal commas); a byte order mark and any line ends are taken. Columns are
    found by name, in any case: participant_id, subject_id, subject, MRID or id; niftifile, filename or file;
    session_id; age; sex or gender; diagnosis, dx or group; cognition; family_id; site. All others are kept in `extra`.
    A table that names files may do without ids: then they follow from the files' names, as `find_scans` has them.

    Sex is M, male, F, female in any case; "other" and "unknown" become None, with a notice. Numbers for sex are a
    fault: studies disagree on which is which. An age that is missing becomes None, with a notice; "89+" is read as 89,
    with one. Ages are in years, unless the column is called age_months, or a JSON file of the table's name gives it
    another unit (BIDS: `{"age": {"Units": "months"}}`): then they are turned into years, with a notice.

    Raises:
        TableError: names file, row and column of all faults at once: an id that is missing, listed twice or unsafe as
            part of a path; an age that is no number or not within 0 to 120; a sex or a score that cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_table(path)
    people = _read_table(path / "participants.tsv")
    visits = list(people.participants)
    notices = list(people.notices)
    for file in sorted(path.glob("sub-*/sub-*_sessions.tsv")):
        subject = check_subject_id(file.parent.name)
        table = _read_table(file, subject=subject)
        known = people.find(subject)
        visits += [_fill_in(visit, known) for visit in table]
        notices += table.notices
    return ParticipantTable(participants=tuple(visits), notices=tuple(notices), files=people.files)


def _read_table(path: Path, *, subject: str | None = None) -> ParticipantTable:
    """Types all rows; `subject` is given for a table of one person's visits, which has no column for it."""
    table = read_text_table(path)
    places = _find_columns(table, needed="subject" if subject is None else "session")
    faults: list[str] = []
    notices = list(table.notices)
    unit = find_age_unit(path, table.columns[places["age_years"]]) if "age_years" in places else AgeUnit()
    notices += [unit.notice] if unit.notice else []
    reader = RowReader(table, places, faults, notices, unit)
    first_rows: dict[tuple[str | None, ...], int] = {}
    participants, files = [], {}
    for number, cells in table.rows:
        reader.move_to(number, cells)
        participant, file = _parse_row(reader, subject, has_ids="subject" in places), reader.file()
        key = (participant.subject, participant.session, file)
        if participant.subject and first_rows.setdefault(key, number) != number:
            column = table.columns[places["session" if subject is not None else next(iter(places))]]
            faults.append(f"row {number}, column {column}: listed already in row {first_rows[key]}")
        participants.append(participant)
        files |= {} if file is None else {file: participant}
    raise_faults(table.name, faults)
    return ParticipantTable(participants=tuple(participants), notices=tuple(notices), files=files)


def _parse_row(reader: RowReader, subject: str | None, *, has_ids: bool) -> Participant:
    if subject is None:
        subject = reader.subject() if has_ids else reader.subject_of_file()
    return Participant(
        subject=subject,
        session=reader.session(),
        age_years=reader.age_years(),
        sex=reader.sex(),
        diagnosis=reader.text("diagnosis"),
        cognition=reader.number("cognition"),
        family_id=reader.text("family_id"),
        site=reader.text("site"),
        extra=reader.extra(),
    )


def _find_columns(table: TextTable, *, needed: str) -> dict[str, int]:
    lowered = [column.lower() for column in table.columns]
    places = {
        key: lowered.index(next(name for name in names if name in lowered))
        for key, names in COLUMNS.items()
        if any(name in lowered for name in names)
    }
    if needed not in places and not (needed == "subject" and "file" in places):
        raise TableError(
            f"{table.name}: row 1 names no column for the {needed}",
            given=", ".join(table.columns)[:200],
            expected=f"one of {', '.join(COLUMNS[needed])}",
            fix="rename the column; if the columns look glued together, set them apart by tabs or commas",
        )
    return places


def _fill_in(visit: Participant, person: Participant | None) -> Participant:
    """What the visit's row leaves open, from the person's."""
    if person is None:
        return visit
    names = ("age_years", "sex", "diagnosis", "cognition", "family_id", "site")
    open_names = [name for name in names if getattr(visit, name) is None]
    known = {name: getattr(person, name) for name in open_names}
    return dataclasses.replace(visit, **known, extra={**person.extra, **visit.extra})

"""Which row of a table belongs to which scan: by the scan's file, by the id, or by an id written in another way.

Ids are written in many ways: a spreadsheet makes 1 of 001, a file is called `M01_swc1t1avg.nii.gz` where the table says
M01. Another way of writing is taken only where it leaves one person on either side, and it is told how often it was.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from neuroray.storage.bids import ScanFile
from neuroray.storage.participants import Participant, ParticipantTable
from neuroray.storage.scan_names import name_stem

_SEPARATORS: Final = "_-."


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledScan:
    """A scan file with the person that it belongs to; None where the table has no such person."""

    file: ScanFile
    participant: Participant | None


def match_labels(files: Sequence[ScanFile], table: ParticipantTable) -> tuple[list[LabelledScan], list[str]]:
    """Finds each scan's row, and tells how many were found in which way.

    A scan found by another way of writing, or by its file, is from then on the person that the table names.

    Args:
        files: The scans.
        table: The people.

    Returns:
        The scans in the same order, and sentences with counts; nobody is named.
    """
    renamed = _Renaming(table, {file.subject for file in files})
    found = [_find(file, table, renamed) for file in files]
    scans = [
        LabelledScan(file=dataclasses.replace(file, subject=person.subject) if person else file, participant=person)
        for file, (person, _) in zip(files, found, strict=True)
    ]
    return scans, list(_tell([way for _, way in found], renamed, table, scans))


def _find(file: ScanFile, table: ParticipantTable, renamed: _Renaming) -> tuple[Participant | None, str]:
    named = table.files.get(name_stem(file.name))
    if named is not None:
        return named, "file name"
    person = table.find(file.subject, file.session)
    if person is not None:
        return person, "id"
    subject, way = renamed.find(file.subject)
    return (None, "") if subject is None else (table.find(subject, file.session), way)


class _Renaming:
    """Ids of scans that the table writes in another way, and how."""

    def __init__(self, table: ParticipantTable, subjects: set[str]) -> None:
        known = {participant.subject for participant in table}
        self._pairs: dict[str, tuple[str, str]] = {}
        self.num_ambiguous = 0
        open_subjects = sorted(subjects - known)
        ways: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
            ("id without regard to case", lambda subject, listed: subject.lower() == listed.lower()),
            ("id without leading zeros", _same_number),
            ("beginning of the name", _begins_with),
        )
        for way, agrees in ways:
            self._add(way, [s for s in open_subjects if s not in self._pairs], sorted(known), agrees, subjects)

    def find(self, subject: str) -> tuple[str | None, str]:
        """The table's id for a scan's subject, and the way that it was found."""
        return self._pairs.get(subject, (None, ""))

    def _add(
        self, way: str, subjects: list[str], known: list[str], agrees: Callable[[str, str], bool], scanned: set[str]
    ) -> None:
        candidates = _candidates(subjects, known, agrees)
        claims = collections.Counter(listed[0] for listed in candidates.values() if len(listed) == 1)
        for subject, listed in candidates.items():
            # Several scans of one person may begin with the id; written otherwise, one id is one person.
            is_shared = way != "beginning of the name" and (claims[listed[0]] > 1 or listed[0] in scanned)
            if len(listed) > 1 or is_shared:
                self.num_ambiguous += 1
            else:
                self._pairs[subject] = (listed[0], way)


def _candidates(
    subjects: Iterable[str], known: Sequence[str], agrees: Callable[[str, str], bool]
) -> dict[str, list[str]]:
    """The listed ids that agree with each subject, for those with any."""
    by_start = collections.defaultdict(list)
    for listed in known:
        by_start[_start(listed)].append(listed)
    found = {
        subject: [listed for listed in by_start[_start(subject)] if agrees(subject, listed)] for subject in subjects
    }
    return {subject: listed for subject, listed in found.items() if listed}


def _start(subject: str) -> str:
    """What ids that agree have in common, so that a large table need not be gone through for each scan."""
    bare = subject.lower().lstrip("0")
    return bare[:1]


def _same_number(subject: str, listed: str) -> bool:
    return subject.isdecimal() and listed.isdecimal() and int(subject) == int(listed)


def _begins_with(subject: str, listed: str) -> bool:
    return subject.lower().startswith(listed.lower()) and subject[len(listed) : len(listed) + 1] in tuple(_SEPARATORS)


def _tell(ways: list[str], renamed: _Renaming, table: ParticipantTable, scans: Sequence[LabelledScan]) -> Iterator[str]:
    counts = collections.Counter(way for way in ways if way)
    by_way = ", ".join(f"{count} by {way}" for way, count in counts.items())
    num_found = sum(counts.values())
    yield f"labels: {num_found} of {len(ways)} scans were found in the table" + (f" ({by_way})" if by_way else "")
    unknown = {scan.file.subject for scan in scans if scan.participant is None}
    people = {scan.file.subject for scan in scans}
    if unknown:
        yield f"{len(unknown)} of {len(people)} people with scans are not in the participants table"
    if renamed.num_ambiguous:
        yield f"{renamed.num_ambiguous} ids agree with several rows of the table; they got no labels"
    num_people = len({participant.subject for participant in table})
    num_without = len({participant.subject for participant in table} - people)
    if num_without:
        yield f"{num_without} of {num_people} people in the participants table have no scan here"

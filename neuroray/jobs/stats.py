"""`neuroray stats`: what a store holds: people, visits, ages, labels, grids, bytes; from its catalogue alone."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import tyro

from neuroray.jobs.run_record import record_answer
from neuroray.storage.store import ScanRecord, ScanStore

_MOST_GRIDS = 8
_BAR_LENGTH = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Args:
    """Counts and spreads of a store's people and scans; nobody is named."""

    store: Annotated[str, tyro.conf.Positional]
    """A store: a folder or s3://bucket/prefix."""

    version: int | None = None
    """The catalogue version to look at; the newest when not given."""

    out: str | None = None
    """A folder for run.json with the answer; none is written when not given."""

    json: bool = False
    """Answer as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A measured label over scans or people; all None where nobody has it."""

    known: int
    missing: int
    lowest: float | None
    median: float | None
    highest: float | None
    mean: float | None
    deviation: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the catalogue says; counts of people are of people, with their newest label."""

    store: str
    catalogue_version: int
    num_people: int
    num_families: int | None
    num_scans: int
    num_people_with_several_visits: int
    size_bytes: int
    values_bytes: int
    modalities: dict[str, int]
    people: dict[str, dict[str, int]]
    age_years: Spread
    cognition: Spread
    ages_by_decade: dict[str, int]
    grids: dict[str, int]
    repetition_times_s: dict[str, int]
    frames: dict[str, int]
    flags: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        families = "" if self.num_families is None else f" of {self.num_families} families"
        lines = [
            f"{self.store}: {self.num_scans} scans of {self.num_people} people{families}, "
            f"{self.num_people_with_several_visits} seen more than once (catalogue version {self.catalogue_version})",
            f"  stored     {self.size_bytes / 1e6:.1f} MB, {self.values_bytes / max(self.size_bytes, 1):.1f} times "
            "as much once read",
            f"  kinds      {_list_counts(self.modalities)}",
            *(f"  {label:<10} {_list_counts(counts)}" for label, counts in self.people.items() if counts),
            *_describe("age", self.age_years, "years"),
            *_draw(self.ages_by_decade),
            *_describe("cognition", self.cognition, ""),
            f"  grids      {_list_counts(dict(list(self.grids.items())[:_MOST_GRIDS]))}",
        ]
        for label, counts in (("TR", self.repetition_times_s), ("frames", self.frames), ("flagged", self.flags)):
            lines += [f"  {label:<10} {_list_counts(counts)}"] if counts else []
        return "\n".join(lines)


def run(args: Args) -> Answer:
    """Reads the catalogue."""
    return record_answer(args.out, job="stats", args=args, look=lambda: _summarise(args))


def _summarise(args: Args) -> Answer:
    store = ScanStore(args.store, version=args.version)
    records = store.records()
    visits = {(record.subject, record.session) for record in records}
    people = {record.subject: record for record in sorted(records, key=lambda record: record.written_at)}
    families = {record.family_id for record in people.values() if record.family_id is not None}
    return Answer(
        store=store.uri,
        catalogue_version=store.version,
        num_people=len(people),
        num_families=len(families) or None,
        num_scans=len(records),
        num_people_with_several_visits=sum(n > 1 for n in Counter(subject for subject, _ in visits).values()),
        size_bytes=sum(record.size_bytes for record in records),
        values_bytes=sum(math.prod(record.shape) * np.dtype(record.dtype).itemsize for record in records),
        modalities=_count(record.modality for record in records),
        people={name: _count(getattr(one, name) for one in people.values()) for name in ("sex", "diagnosis", "site")},
        age_years=_spread([record.age_years for record in records]),
        cognition=_spread([record.cognition for record in people.values()]),
        ages_by_decade=_count_decades(record.age_years for record in records),
        grids=_count(_name_grid(record) for record in records),
        repetition_times_s=_count(_name(record.repetition_time_s) for record in records if len(record.shape) == 4),
        frames=_count(str(record.shape[0]) for record in records if len(record.shape) == 4),
        flags=_count(_shorten(flag) for record in records for flag in record.flags),
    )


def _count(values: Iterable[str | None]) -> dict[str, int]:
    """The commonest first; what is not known is not counted."""
    return dict(Counter(value for value in values if value is not None).most_common())


def _spread(values: Sequence[float | None]) -> Spread:
    known = [value for value in values if value is not None]
    return Spread(
        known=len(known),
        missing=len(values) - len(known),
        lowest=min(known, default=None),
        median=statistics.median(known) if known else None,
        highest=max(known, default=None),
        mean=statistics.fmean(known) if known else None,
        deviation=statistics.stdev(known) if len(known) > 1 else None,
    )


def _count_decades(ages: Iterable[float | None]) -> dict[str, int]:
    decades = Counter(int(age // 10) * 10 for age in ages if age is not None)
    span = range(min(decades), max(decades) + 1, 10) if decades else range(0)
    return {f"{decade}-{decade + 9}": decades[decade] for decade in span}


def _name_grid(record: ScanRecord) -> str:
    shape = " x ".join(map(str, record.shape[-3:]))
    return f"{shape} at {' x '.join(f'{zoom:.3g}' for zoom in record.zooms_mm)} mm"


def _name(time_s: float | None) -> str:
    return "not known" if time_s is None else f"{time_s:g} s"


def _shorten(flag: str) -> str:
    """A flag without its numbers, so that equal faults are counted together."""
    return flag.partition(":")[0].partition("(")[0].strip()


def _list_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _describe(label: str, spread: Spread, unit: str) -> list[str]:
    if not spread.known:
        return []
    missing = f", {spread.missing} not known" if spread.missing else ""
    deviation = "" if spread.deviation is None else f", {spread.mean:.1f} ± {spread.deviation:.1f}"
    text = f"{spread.lowest:.3g} to {spread.highest:.3g} {unit}".rstrip()
    return [f"  {label:<10} {text}, median {spread.median:.3g}{deviation}{missing}"]


def _draw(counts: dict[str, int]) -> list[str]:
    highest = max(counts.values(), default=0)
    return [f"  {name:>10} {'█' * round(_BAR_LENGTH * n / highest):<{_BAR_LENGTH}} {n}" for name, n in counts.items()]

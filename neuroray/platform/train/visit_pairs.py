"""Pairs of visits of one person, side by side of a split, dealt as bins of the years between them."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import permutations
from typing import Literal

from neuroray.platform.data.splits import SIDES, Side, Split
from neuroray.platform.data.tokens import TokenPair
from neuroray.platform.train.recipe import RecipeError
from neuroray.storage.store import ScanRecord

logger = logging.getLogger(__name__)

Direction = Literal["forward", "both"]
Pairs = Mapping[Side, Sequence[TokenPair]]


def pair_sides(records: Sequence[ScanRecord], split: Split, direction: Direction, *, with_same: bool) -> Pairs:
    """The pairs of each side; see `pair_visits`. People with one scan, and scans without an age, are in none.

    Raises:
        RecipeError: there are none to train on, or none to select by.
    """
    sides: dict[Side, set[str]] = {side: set(split.side(side)) for side in SIDES}
    pairs: dict[Side, list[TokenPair]] = {
        side: pair_visits([one for one in records if one.scan_id in chosen], direction, with_same=with_same)
        for side, chosen in sides.items()
    }
    visits = Counter(record.subject for record in records if record.age_years is not None)
    needed: tuple[Side, ...] = ("train", "val")
    empty = [side for side in needed if not any(pair.gap_years for pair in pairs[side])]
    if empty:
        several = sum(count > 1 for count in visits.values())
        raise RecipeError(
            f"the {' and the '.join(empty)} side {'have' if len(empty) > 1 else 'has'} no two visits of one person",
            given=f"{len(visits)} people with an age, {several} of them with two scans or more",
            expected="people who were scanned twice, at different ages, on each side",
            fix="other --split fields, or gather more visits",
        )
    single, unknown = sum(count == 1 for count in visits.values()), sum(one.age_years is None for one in records)
    if single or unknown:
        logger.warning("%d people have one scan alone, %d scans have no age: left out", single, unknown)
    return pairs


def pair_visits(records: Iterable[ScanRecord], direction: Direction, *, with_same: bool) -> list[TokenPair]:
    """All ordered pairs of scans of one person with an age, in order of their names.

    Args:
        records: Of one side.
        direction: `forward`: from the younger to the older; `both`: and back. Visits at the same age are no pair.
        with_same: Each scan of these people with itself besides.
    """
    people: dict[str, list[ScanRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda one: one.scan_id):
        if record.age_years is not None:
            people[record.subject].append(record)
    found = []
    for visits in people.values():
        pairs = [_pair(one, other) for one, other in permutations(visits, 2)]
        wanted = [pair for pair in pairs if pair.gap_years > 0 or (pair.gap_years < 0 and direction == "both")]
        found += wanted
        if wanted and with_same:
            found += [_pair(one, one) for one in visits]
    return found


def split_pairs(split: Split, pairs: Pairs) -> Split:
    """The split with pairs in place of scans, dealt as bins of their gaps; scans in no pair are left out."""
    sides = {side: tuple(pair.name for pair in found) for side, found in pairs.items()}
    everything = [pair for found in pairs.values() for pair in found]
    alone = {*split.train, *split.val, *split.test} - scans_of(everything)
    return dataclasses.replace(
        split,
        **sides,
        labels={pair.name: name_gap(pair.gap_years) for pair in everything},
        bins={},
        left_out=tuple(sorted({*split.left_out, *alone})),
    )


def name_gap(gap_years: float) -> str:
    """The bin of a gap, of which `--data.sampling balanced` draws all equally often."""
    if gap_years == 0:
        return "same age"
    size = abs(gap_years)
    how_far = "up to 2 years" if size <= 2 else "2 to 5 years" if size <= 5 else "over 5 years"
    return f"{how_far} {'later' if gap_years > 0 else 'earlier'}"


def count_diagnoses(records: Iterable[ScanRecord], scan_ids: Collection[str]) -> dict[str, int]:
    """People by diagnosis, those of some scans; "" where none was recorded."""
    people = {record.subject: record.diagnosis or "" for record in records if record.scan_id in scan_ids}
    return dict(sorted(Counter(people.values()).items()))


def scans_of(pairs: Iterable[TokenPair]) -> set[str]:
    """All scans in some pair."""
    return {scan_id for pair in pairs for scan_id in (pair.previous, pair.target)}


def _pair(previous: ScanRecord, target: ScanRecord) -> TokenPair:
    ages = (float(previous.age_years or 0), float(target.age_years or 0))
    return TokenPair(previous=previous.scan_id, target=target.scan_id, ages_years=ages)

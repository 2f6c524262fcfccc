"""The same picture on two sides of a split, under two names: what was trained on must not be judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from neuroray.platform.data.splits import SIDES, Split
from neuroray.storage.records import ScanRecord

_MOST_TOLD = 3


def find_duplicates(records: Iterable[ScanRecord], split: Split) -> list[tuple[str, ...]]:
    """Scans with the same voxels, or from the same file, that lie on different sides; each group sorted.

    Equal copies on one side are no leak; `neuroray qc` tells of them.
    """
    side_of = {scan_id: side for side in SIDES for scan_id in split.side(side)}
    holders: dict[str, set[str]] = {}
    for record in records:
        if record.scan_id in side_of:
            for digest in {record.voxels_sha256, record.source_sha256} - {""}:
                holders.setdefault(digest, set()).add(record.scan_id)
    leaks = {tuple(sorted(held)) for held in holders.values() if len({side_of[one] for one in held}) > 1}
    return sorted(leaks)


def tell_duplicates(leaks: list[tuple[str, ...]], split: Split) -> str:
    """The first few of them, each with its side."""
    side_of: Mapping[str, str] = {scan_id: side for side in SIDES for scan_id in split.side(side)}
    told = [" = ".join(f"{scan_id} ({side_of[scan_id]})" for scan_id in leak[:4]) for leak in leaks[:_MOST_TOLD]]
    more = f", and {len(leaks) - _MOST_TOLD} more" if len(leaks) > _MOST_TOLD else ""
    return "; ".join(told) + more

"""Visits of held-out people, paired: scans as the model takes them, with their tokens, out of a run's own split."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int

from neuroray.platform.data.brain_volumes import BrainVolumeReader, Grid
from neuroray.platform.data.plan import ReadItem
from neuroray.platform.data.splits import Side
from neuroray.platform.evaluate.number_evidence import name_group
from neuroray.platform.evaluate.run import RunFold
from neuroray.platform.models.neuroar.vqvae import VQVAE
from neuroray.storage.records import ScanRecord
from neuroray.storage.store import ScanStore

Volume = Float32[np.ndarray, "x y z"]

_KEPT_BYTES = 2**29


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One scan on the model's grid.

    Attributes:
        record: Its row of the catalogue.
        volume: In [-1, 1].
        brain: What counts as brain.
        tokens: `1 token`, by the run's tokenizer, on the model's device.
    """

    record: ScanRecord
    volume: Volume
    brain: Bool[np.ndarray, "x y z"]
    tokens: Int[torch.Tensor, "1 token"]

    @property
    def age_years(self) -> float:
        """At the scan."""
        assert self.record.age_years is not None  # pairs have ages
        return self.record.age_years


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitPair:
    """Two visits of one person.

    Attributes:
        previous: The scan that is given.
        target: The scan that is to be told.
    """

    previous: ScanRecord
    target: ScanRecord

    @property
    def ages_years(self) -> tuple[float, float]:
        """At either."""
        return float(self.previous.age_years or 0), float(self.target.age_years or 0)

    @property
    def gap_years(self) -> float:
        """From the previous scan to the target; negative where the target is the earlier one."""
        return self.ages_years[1] - self.ages_years[0]

    @property
    def group(self) -> str:
        """The family or the person: what a bootstrap draws or leaves as a whole."""
        return name_group(self.previous.subject, self.previous.family_id)


class VisitReader:
    """Reads scans of a store as a tokenizer's training did, and encodes them; the scans read last are kept.

    Args:
        store: Of the scans, at the version that is read.
        tokenizer: In eval mode.
        grid: Of the volumes.
    """

    def __init__(self, store: ScanStore, tokenizer: VQVAE, grid: Grid) -> None:
        self._reader = BrainVolumeReader(store.uri, store.version, grid, cache_bytes=_KEPT_BYTES)
        self._tokenizer = tokenizer

    def __call__(self, record: ScanRecord) -> Visit:
        """The visit.

        Raises:
            PlanError: no volume, one without spread, or larger than the grid.
            StoreError: it cannot be read.
        """
        row = self._reader(ReadItem(scan_id=record.scan_id))
        volume = np.array(row["volume"])
        device = next(self._tokenizer.parameters()).device
        tokens = self._tokenizer.encode(torch.from_numpy(volume)[None].to(device))
        return Visit(record=record, volume=volume, brain=np.array(row["brain"]), tokens=tokens)


def name_scans(fold: RunFold) -> RunFold:
    """The fold of a run on pairs, whose split names two scans where others name one, with scans in their place."""
    sides: dict[Side, tuple[str, ...]] = {
        side: tuple(sorted({scan_id for name in fold.split.side(side) for scan_id in name.split(" ")}))
        for side in ("train", "val", "test")
    }
    return dataclasses.replace(fold, split=dataclasses.replace(fold.split, **sides, labels={}, bins={}))


def pair_records(records: Sequence[ScanRecord], *, backward: bool) -> list[VisitPair]:
    """All pairs of scans of one person, from the younger to the older, or the other way round.

    Visits at the same age are no pair, and scans without an age are in none.
    """
    people: dict[str, list[ScanRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda one: one.scan_id):
        if record.age_years is not None:
            people[record.subject].append(record)
    pairs = [VisitPair(previous=one, target=two) for some in people.values() for one, two in permutations(some, 2)]
    return [pair for pair in pairs if (pair.gap_years < 0 if backward else pair.gap_years > 0)]


def place_grid(record: ScanRecord, grid: Grid) -> Float[np.ndarray, "4 4"]:
    """Voxels of the model's grid to world mm: the scan's own affine, moved by what was padded or cut."""
    affine = np.array(record.affine, dtype=np.float64).reshape(4, 4)
    start = [_offset(size, length) for size, length in zip(record.shape, grid, strict=True)]
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ np.array(start) + affine[:3, 3]
    return moved


def _offset(size: int, length: int) -> int:
    """Which of the scan's voxels the grid begins with, as `fit_grid` places it; negative where it was padded."""
    both = min(size, length)
    return (size - both) // 2 - (length - both) // 2

"""The read plan: which item is read at which step, a pure function of items, labels, seed, epoch and step.

No random state is carried along: the order of an epoch is a keyed permutation that can be asked for any position, so
that a run starts at any step, on any number of workers, and reads what an uninterrupted run would have read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol

from neuroray.config import Config
from neuroray.errors import NeurorayError

_MASK_64 = (1 << 64) - 1
_NUM_ROUNDS = 8
_MIN_HALF_BITS = 3  # with halves of 1 or 2 bits too few permutations can be reached


class PlanError(NeurorayError, ValueError):
    """A read plan that cannot be made: no items, labels that do not fit them, a step outside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadItem:
    """One thing to read: a scan, or of one the frames `start` to `stop` (exclusive) and `padding` frames of nothing."""

    scan_id: str
    start: int | None = None
    stop: int | None = None
    padding: int = 0

    def __post_init__(self) -> None:
        if (self.start is None) != (self.stop is None):
            raise PlanError(
                "a window has a first frame and an end", given=self, expected="both start and stop, or none"
            )
        if self.start is not None and self.stop is not None and not 0 <= self.start < self.stop:
            raise PlanError("a window of no frames", given=self, expected="0 <= start < stop")
        if self.padding < 0 or (self.padding and self.start is None):
            raise PlanError("only a window is padded, by 0 frames or more", given=self)

    @property
    def num_frames(self) -> int | None:
        """Frames of the row, padding included; None: a whole scan, however many it has."""
        return None if self.start is None or self.stop is None else self.stop - self.start + self.padding


class Sampler(Protocol):
    """Items that are others in each epoch; their number, and the scan that each is of, stay."""

    def __len__(self) -> int:
        """How many there are in every epoch."""
        ...

    def item(self, index: int, epoch: int) -> ReadItem:
        """One of them: a pure function of both numbers."""
        ...


Items = tuple[ReadItem, ...] | Sampler
"""What a plan reads: the same in every epoch, or drawn anew for each."""


def item_at(items: Items, index: int, epoch: int) -> ReadItem:
    """The item with this index in this epoch."""
    return items[index] if isinstance(items, tuple) else items.item(index, epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig(Config):
    """How items are drawn into batches.

    Attributes:
        batch_size: Items per step, over all ranks together.
        seed: Key of every permutation.
        sampling: `shuffled`: every item once per epoch, the last batch short where it does not come out even.
            `balanced`: every class equally often in every batch (a class that is used up starts over in a new order).
            `in_order`: as given.
    """

    batch_size: int
    seed: int = 0
    sampling: Literal["shuffled", "balanced", "in_order"] = "shuffled"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise PlanError("a batch needs an item", given=f"batch_size {self.batch_size}", expected="1 or more")


class KeyedPermutation(Sequence[int]):
    """A permutation of `0 .. size-1` chosen by a key; any position is found in constant time and memory.

    A balanced Feistel network over the next even number of bits, walked until it falls back into the range (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002). The round function is splitmix64's finaliser on keys drawn
    with BLAKE2b, so that the order is the same on every machine and under every version of Python and NumPy.
    """

    def __init__(self, size: int, *key: Hashable) -> None:
        self._size = size
        self._half_bits = max(_MIN_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
        text = "\x1f".join(str(part) for part in key)
        digest = hashlib.blake2b(text.encode(), digest_size=8 * _NUM_ROUNDS).digest()
        self._round_keys = tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, position: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]: no slices, one position at a time
        if not 0 <= position < self._size:
            raise IndexError(position)
        value = self._encipher(position)
        while value >= self._size:
            value = self._encipher(value)
        return value

    def _encipher(self, value: int) -> int:
        bits = self._half_bits
        mask = (1 << bits) - 1
        left, right = value >> bits, value & mask
        for key in self._round_keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return (left << bits) | right


class PlannedBatch(NamedTuple):
    """The items of one step: indices into the plan's items of that epoch, in the order in which they are read."""

    epoch: int
    indices: list[int]


class StepRead(NamedTuple):
    """What one rank reads at one step: the items, and their indices into the plan's."""

    step: int
    indices: list[int]
    items: list[ReadItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is read at each step of a run; the same for every number of workers.

    Attributes:
        items: What there is to read: fixed, or windows that are drawn anew each epoch; batches hold indices into it.
        config: How batches are drawn.
        num_epochs: Passes over the items.
        labels: One class per item; needed for `balanced` sampling only.
    """

    items: Items
    config: PlanConfig
    num_epochs: int = 1
    labels: tuple[Hashable, ...] | None = None
    _members: tuple[tuple[int, ...], ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        if len(self.items) == 0:
            raise PlanError("a plan over nothing", expected="at least one item to read")
        if self.num_epochs < 1:
            raise PlanError("a plan without an epoch", given=f"num_epochs {self.num_epochs}", expected="1 or more")
        if self.config.sampling == "balanced":
            object.__setattr__(self, "_members", _class_members(self.labels, len(self.items)))

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, a last short one included."""
        return -(-len(self.items) // self.config.batch_size)

    @property
    def num_steps(self) -> int:
        """Batches of all epochs."""
        return self.steps_per_epoch * self.num_epochs

    def item(self, index: int, epoch: int) -> ReadItem:
        """What an index of a batch stands for."""
        return item_at(self.items, index, epoch)

    def reads(self, epoch: int) -> list[ReadItem]:
        """All that an epoch reads, in order, whatever the number of workers."""
        first = epoch * self.steps_per_epoch
        batches = (self.batch(step) for step in range(first, first + self.steps_per_epoch))
        return [self.item(index, epoch) for batch in batches for index in batch.indices]

    def batch(self, step: int) -> PlannedBatch:
        """The items of one step.

        Raises:
            PlanError: no such step.
        """
        if not 0 <= step < self.num_steps:
            raise PlanError("no such step in the plan", given=step, expected=f"0 to {self.num_steps - 1}")
        epoch, batch_index = divmod(step, self.steps_per_epoch)
        if self.config.sampling == "balanced":
            return PlannedBatch(epoch, _balanced_batch(self._members, self.config, epoch, batch_index))
        return PlannedBatch(epoch, _plain_batch(len(self.items), self.config, epoch, batch_index))

    def rank_batch(self, step: int, rank: int, world_size: int) -> list[int]:
        """What one of `world_size` ranks reads at a step; nothing where a short batch has fewer items than ranks."""
        return rank_slice(self.batch(step).indices, rank, world_size)


def steps(plan: Plan, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, PlannedBatch]]:
    """Every step from `start` up to `stop` (exclusive; None: the end) with its batch."""
    for step in range(start, plan.num_steps if stop is None else stop):
        yield step, plan.batch(step)


def plan_reads(
    plan: Plan, rank: int = 0, world_size: int = 1, start: int = 0, stop: int | None = None
) -> Iterator[StepRead]:
    """One rank's part of the steps from `start` up to `stop` (None: the end), without those that leave it nothing."""
    for step, batch in steps(plan, start, stop):
        indices = rank_slice(batch.indices, rank, world_size)
        if indices:
            yield StepRead(step, indices, [plan.item(index, batch.epoch) for index in indices])


def epoch_batches(items: Items, labels: Sequence[Hashable] | None, config: PlanConfig, epoch: int) -> list[list[int]]:
    """All batches of one epoch, as indices into `items`."""
    known = None if labels is None else tuple(labels)
    plan = Plan(items=items, config=config, num_epochs=epoch + 1, labels=known)
    return [batch.indices for _, batch in steps(plan, epoch * plan.steps_per_epoch)]


def rank_slice(batch: Sequence[int], rank: int, world_size: int) -> list[int]:
    """One rank's run of a batch: the runs of all ranks, one after the other, are the batch."""
    if not 0 <= rank < world_size:
        raise PlanError("no such rank", given=f"rank {rank} of {world_size}", expected=f"0 to {world_size - 1}")
    return list(batch[rank * len(batch) // world_size : (rank + 1) * len(batch) // world_size])


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    value &= _MASK_64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


@lru_cache(maxsize=256)
def _permutation(size: int, *key: Hashable) -> KeyedPermutation:
    return KeyedPermutation(size, *key)


def _plain_batch(num_items: int, config: PlanConfig, epoch: int, batch_index: int) -> list[int]:
    start = batch_index * config.batch_size
    positions = range(start, min(start + config.batch_size, num_items))
    if config.sampling == "in_order":
        return list(positions)
    order = _permutation(num_items, "items", config.seed, epoch)
    return [order[position] for position in positions]


def _balanced_batch(
    members: tuple[tuple[int, ...], ...], config: PlanConfig, epoch: int, batch_index: int
) -> list[int]:
    """One batch with equal shares of the classes, taking turns so that every rank's run of it is balanced too."""
    seats = _permutation(len(members), "classes", config.seed, epoch)
    drawn = []
    for class_index, seat in enumerate(seats):
        first = _seats_before(seat, batch_index, len(members), config.batch_size)
        last = _seats_before(seat, batch_index + 1, len(members), config.batch_size)
        draws = [_draw(members[class_index], config.seed, epoch, class_index, number) for number in range(first, last)]
        drawn.append((seat, draws))
    drawn.sort()
    rounds = max(len(draws) for _, draws in drawn)
    return [draws[turn] for turn in range(rounds) for _, draws in drawn if turn < len(draws)]


def _seats_before(seat: int, batch_index: int, num_classes: int, batch_size: int) -> int:
    """How many items the class on this seat has given to the batches before `batch_index`.

    Seats are dealt like cards, going on from one batch to the next: no class is ever ahead of another by more than one.
    """
    dealt = batch_index * batch_size
    return dealt // num_classes + (seat < dealt % num_classes)


def _draw(members: tuple[int, ...], seed: int, epoch: int, class_index: int, number: int) -> int:
    cycle, position = divmod(number, len(members))
    return members[_permutation(len(members), "class", seed, epoch, class_index, cycle)[position]]


def _class_members(labels: tuple[Hashable, ...] | None, num_items: int) -> tuple[tuple[int, ...], ...]:
    """The items of each class, classes in the order of their first item's appearance."""
    if labels is None or len(labels) != num_items:
        given = "no labels" if labels is None else f"{len(labels)} labels for {num_items} items"
        raise PlanError("balanced batches need one label per item", given=given)
    if any(label is None for label in labels):
        raise PlanError("balanced batches need every label", given=f"{labels.count(None)} items without one")
    members: dict[Hashable, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return tuple(tuple(indices) for indices in members.values())

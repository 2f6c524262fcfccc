"""Rows of arrays into one batch, and a batch of arrays into tensors; nothing here is an object array."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from neuroray.errors import NeurorayError
from neuroray.platform.data.plan import ReadItem

if TYPE_CHECKING:
    from torch import Tensor

Row = dict[str, np.ndarray]
"""One item as arrays by name; a scalar is an array without axes."""

ITEM = "item"
"""The column that says which item of the plan a row is: its index, int64."""


STEP = "step"
"""The column of a block, on its way through Ray, that says which step of the plan it is."""


class RowError(NeurorayError, ValueError):
    """Rows that do not fit together: other columns, other shapes, other types."""


def stack_rows(rows: Sequence[Row], items: Sequence[ReadItem], indices: Sequence[int]) -> Row:
    """Stacks rows along a new first axis, and adds which item each of them is.

    Raises:
        RowError: two rows differ in columns, shape or type.
    """
    for row, item in zip(rows[1:], items[1:], strict=True):
        _compare(rows[0], items[0], row, item)
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return {**batch, ITEM: np.asarray(indices, dtype=np.int64)}


def empty_batch(row: Mapping[str, np.ndarray]) -> Row:
    """A batch of no rows like this one: what a rank gets of a batch with fewer rows than ranks."""
    batch = {name: np.empty((0, *values.shape), values.dtype) for name, values in row.items()}
    return {**batch, ITEM: np.empty(0, np.int64)}


def size_bytes(row: Mapping[str, np.ndarray]) -> int:
    """Bytes of a row in memory."""
    return sum(values.nbytes for values in row.values())


def to_torch(batch: Mapping[str, np.ndarray], *, pin_memory: bool = False, share: bool = False) -> dict[str, Tensor]:
    """A batch as tensors, with one copy at most.

    Arrays that nobody else holds become tensors as they are. What Ray hands out is read-only, shared and must be given
    back: it is copied, straight into page-locked memory where that is asked for.

    Args:
        batch: Arrays by name.
        pin_memory: Copy into page-locked memory.
        share: Leave arrays of integers where Ray has put them: to write into such a tensor ends the process. Stored
            voxels become values by arithmetic, which writes elsewhere.
    """
    import torch  # here, because the processes that read import this module, and torch takes them seconds

    def convert(values: np.ndarray) -> Tensor:
        if pin_memory:
            return torch.from_numpy(values).pin_memory()
        is_own = values.flags.writeable or (share and values.dtype.kind in "iu")
        return torch.from_numpy(values if is_own else np.array(values))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return {name: convert(np.asarray(values)) for name, values in batch.items()}


def _compare(first: Row, first_item: ReadItem, row: Row, item: ReadItem) -> None:
    if first.keys() != row.keys():
        raise RowError(
            f"{item.scan_id} has other columns than {first_item.scan_id}", given=sorted(row), expected=sorted(first)
        )
    for name, values in row.items():
        if values.shape != first[name].shape or values.dtype != first[name].dtype:
            raise RowError(
                f"{name} of {item.scan_id} does not fit {first_item.scan_id} in the same batch",
                given=f"{values.dtype} {values.shape}",
                expected=f"{first[name].dtype} {first[name].shape}",
                fix="bring the scans to one grid, read windows of one size, or use batch_size 1",
            )

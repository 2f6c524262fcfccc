"""Scans of every kind that a store keeps, and crashes at a chosen step: what tests of the store write and compare."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import obstore
import pytest

from neuroray.storage.participants import Participant
from neuroray.storage.profiles.prepared import Prepared
from neuroray.storage.profiles.profile import find_profile
from neuroray.storage.scan import Encoding, Scan, SourceGrid
from neuroray.storage.store import ScanRecord, ScanStore

AFFINE = np.array([[0.0, 2.1, 0.1, -90.0], [-1.9, 0.0, 0.0, 120.5], [0.0, -0.3, 2.5, 1 / 3], [0.0, 0.0, 0.0, 1.0]])


def make_scan(kind: str = "scaled run", seed: int = 0) -> Scan:
    """A small scan of odd shape; each kind is stored in another way."""
    draw = np.random.default_rng(seed)
    source = SourceGrid(
        format="nifti1",
        header=draw.integers(0, 256, 352, dtype=np.uint8).tobytes(),
        affine=np.diag([-2.0, 2.0, 2.0, 1.0]),
        axis_order=(1, 0, 2),
        axis_flip=(True, False, False),
        had_time_axis=True,
    )
    if kind == "scaled run":
        numbers = draw.integers(-3000, 3000, (13, 5, 7, 3), dtype=np.int16)
        encoding = Encoding(dtype=">i2", slope=0.0137, intercept=-7.25)
        voxels = (numbers.astype(np.float64) * encoding.slope + encoding.intercept).astype(np.float32)
        flags = ("TR was given in ms",)
        return Scan(voxels=voxels, affine=AFFINE, repetition_time_s=0.72, encoding=encoding, source=source, flags=flags)
    volumes = {
        "int16 volume": draw.integers(-3000, 3000, (7, 65, 3)).astype(np.int16),
        "big-endian volume": draw.integers(0, 60000, (3, 4, 5)).astype(">u2"),
        "float32 with NaN": np.where(draw.random((7, 5, 3)) < 0.2, np.nan, draw.normal(size=(7, 5, 3))).astype("f4"),
        "float64 volume": draw.normal(size=(1, 7, 3)),
        "mask": draw.random((7, 5, 3)) < 0.5,
        "zeros": np.zeros((7, 5, 3), np.uint8),
    }
    if kind == "values off the encoding's steps":
        encoding = Encoding(dtype="int16", slope=0.5)
        return Scan(voxels=draw.normal(size=(4, 3, 2)).astype("f4"), affine=AFFINE, encoding=encoding, source=source)
    return Scan(voxels=volumes[kind], affine=AFFINE, source=source if kind == "int16 volume" else None)


KINDS = (
    "scaled run",
    "int16 volume",
    "big-endian volume",
    "float32 with NaN",
    "float64 volume",
    "mask",
    "zeros",
    "values off the encoding's steps",
)


def assert_same_scan(found: Scan, expected: Scan) -> None:
    """Every field equal, voxels bit for bit."""
    assert found.voxels.dtype == expected.voxels.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found.voxels, expected.voxels, strict=False)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert found.repetition_time_s == expected.repetition_time_s
    assert found.encoding == expected.encoding
    assert found.flags == expected.flags
    assert (found.source is None) == (expected.source is None)
    if found.source is not None and expected.source is not None:
        for field in dataclasses.fields(SourceGrid):
            np.testing.assert_array_equal(getattr(found.source, field.name), getattr(expected.source, field.name))


def make_masked() -> Prepared:
    """The scaled run with a brain mask: a group with every kind of array that there is."""
    scan = make_scan()
    mask = np.random.default_rng(1).random(scan.grid_shape) < 0.5
    return Prepared(scan=scan, profile=find_profile("native"), mask=mask)


def write(scans: ScanStore, scan: Scan | Prepared, scan_id: str = "sub-01_T1w", **details: Any) -> ScanRecord:
    """Writes with the details that a test does not care about filled in."""
    return scans.write(scan, **{"scan_id": scan_id, "subject": "sub-01", "modality": "T1w", **details})


def make_person(**labels: Any) -> Participant:
    """Labels of the participant that `write` writes of, unknown but for those given."""
    return Participant(**{"subject": "01", **labels})


class FailingWrites:
    """Lets the object-store library write so many objects, then fail: a crash at a chosen step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: float = float("inf")
        put, put_async = obstore.put, obstore.put_async

        def failing_put(*args: Any, **kwargs: Any) -> Any:
            self._count()
            return put(*args, **kwargs)

        def failing_put_async(*args: Any, **kwargs: Any) -> Any:
            self._count()
            return put_async(*args, **kwargs)

        monkeypatch.setattr(obstore, "put", failing_put)
        monkeypatch.setattr(obstore, "put_async", failing_put_async)

    def _count(self) -> None:
        if self.left <= 0:
            raise OSError("no space left (made by the test)")
        self.left -= 1

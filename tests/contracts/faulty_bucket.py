"""What is done with a store in a bucket, operation by operation, and what each has to give whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from contracts.stored_scans import assert_same_scan, make_scan, write

from neuroray.storage.features import FeatureSet, FeatureStore
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

_seeds = itertools.count(100)
FINGERPRINT = "f" * 64
SCAN, OTHER = "sub-01_T1w", "sub-02_bold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something done with a store.

    Attributes:
        act: Does it at an address, in a fresh store, and raises an AssertionError where the answer is wrong.
        writes: Whether it changes the store.
    """

    act: Callable[[str], None]
    writes: bool = False


def fill(uri: str) -> None:
    """One run, one volume, features of the run."""
    scans = ScanStore.create(uri)
    write(scans, make_scan(), SCAN)
    write(scans, make_scan("int16 volume"), OTHER)
    FeatureStore(scans, FINGERPRINT).write(scans.record(SCAN), make_features())


def check_intact(uri: str) -> None:
    """All that `fill` wrote is there, whole, and nothing damaged beside it."""
    scans = ScanStore(uri)
    assert_same_scan(scans.read(SCAN), make_scan())
    assert_same_scan(scans.read(OTHER), make_scan("int16 volume"))
    read_features(uri)
    assert scans.verify() == []


def make_features() -> FeatureSet:
    """Two slices of three channels."""
    return FeatureSet(
        features=np.arange(6, dtype=np.float32).reshape(2, 3),
        mask=np.array([True, False]),
        position_mm=np.array([1.5, -2.5], np.float32),
        slice_index=np.array([4, -1]),
    )


def read_whole(uri: str) -> None:
    """A run, with its header."""
    assert_same_scan(ScanStore(uri).read(SCAN), make_scan())


def read_window(uri: str) -> None:
    """Frames of a run, at a pinned version."""
    version = ScanStore(uri).version
    window = ScanStore(uri, version=version).read_window(SCAN, 3, 8)
    np.testing.assert_array_equal(window, make_scan().voxels[3:8], strict=True)


def read_features(uri: str) -> None:
    """What an encoder made of a run."""
    found = FeatureStore(ScanStore(uri), FINGERPRINT).read(SCAN)
    for name in ("features", "mask", "position_mm", "slice_index"):
        np.testing.assert_array_equal(getattr(found, name), getattr(make_features(), name))


def verify(uri: str) -> None:
    """Every byte of every scan."""
    assert ScanStore(uri).verify() == []


def add_scan(uri: str) -> None:
    """A scan that is new or has changed, read back."""
    scan = make_scan("mask", next(_seeds))
    write(ScanStore(uri), scan, "new")
    assert_same_scan(ScanStore(uri).read("new"), scan)


def commit_several(uri: str) -> None:
    """As an ingest does: several scans written, then committed together."""
    scans = ScanStore(uri)
    changed = {name: make_scan("int16 volume", next(_seeds)) for name in ("new-1", "new-2")}
    written = scans.commit([write(scans, scan, name, commit=False) for name, scan in changed.items()])
    assert [ScanStore(uri).record(name) for name in changed] == written


def make_store(uri: str) -> None:
    """An empty store beside the other."""
    assert ScanStore.create(f"{uri}-new").records() == []


def take_a_lock(uri: str) -> None:
    """An object that nobody may have made before."""
    Location(uri).write_bytes("lock", b"mine", create_only=True)
    assert Location(uri).read_bytes("lock") == b"mine"


OPERATIONS: dict[str, Operation] = {
    "read whole": Operation(act=read_whole),
    "read window": Operation(act=read_window),
    "read features": Operation(act=read_features),
    "verify": Operation(act=verify),
    "add a scan": Operation(act=add_scan, writes=True),
    "commit several": Operation(act=commit_several, writes=True),
    "make a store": Operation(act=make_store, writes=True),
    "create an object": Operation(act=take_a_lock, writes=True),
}


def clear_new(uri: str) -> None:
    """Takes away what an operation put beside the store, so that it can be done again."""
    Location(uri).delete("lock")
    beside = Location(f"{uri}-new")
    for key, _ in beside.list():
        beside.delete(key)


def count_requests(proxy: Any, operation: Operation, uri: str) -> int:
    """How many requests an operation makes when all goes well."""
    proxy.clear()
    operation.act(uri)
    return len(proxy.requests)

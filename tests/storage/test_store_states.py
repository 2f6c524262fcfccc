"""A store in a folder against a model in memory: whatever is done in whatever order, crashes among it, they agree."""

from __future__ import annotations

import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import obstore
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from neuroray.storage import catalogue
from neuroray.storage.faults import StoreError
from neuroray.storage.locations import Location
from neuroray.storage.participants import Participant
from neuroray.storage.scan import Scan
from neuroray.storage.store import ScanStore
from neuroray.storage.withdrawal import withdraw

PEOPLE = ("ann", "bob", "eve")
SCANS = st.sampled_from([f"{person}-{number}" for person in PEOPLE for number in (1, 2)])
SEEDS = st.integers(0, 3)
LABELS = st.sampled_from([None, "AD", "CN"])
Entry = tuple[int, str | None]  # seed of the voxels, diagnosis


def make_scan(scan_id: str, seed: int) -> Scan:
    """A run of five frames that no other scan or seed gives."""
    draw = np.random.default_rng([seed, *scan_id.encode()])
    return Scan(voxels=draw.integers(-99, 99, (5, 3, 2, 1)).astype(np.int16), affine=np.eye(4), repetition_time_s=1.5)


class PowerCutError(OSError):
    """The machine went off."""


@contextmanager
def power_cut(owner: Any, names: tuple[str, ...], after: int, *, is_late: bool = False) -> Iterator[None]:
    """Lets so many calls of these functions through, then fails for ever: the call itself, or its answer (late)."""
    count = itertools.count()

    def dying(plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            number = next(count)
            if number > after or (number == after and not is_late):
                raise PowerCutError("no power (made by the test)")
            result = plain(*args, **kwargs)
            if number == after:
                raise PowerCutError("no power (made by the test)")
            return result

        return run

    with mock.patch.multiple(owner, **{name: dying(getattr(owner, name)) for name in names}):
        yield


class StoreMachine(RuleBasedStateMachine):
    """`now` is what the store should hold; `history` what each version of its catalogue should."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = ScanStore.create(f"{self.folder.name}/store")
        self.now: dict[str, Entry] = {}
        self.history: dict[int, dict[str, Entry]] = {self.store.version: {}}

    def teardown(self) -> None:
        self.folder.cleanup()

    def write(self, scan_id: str, entry: Entry, *, commit: bool = True) -> Any:
        seed, diagnosis = entry
        subject = scan_id.partition("-")[0]
        return self.store.write(
            make_scan(scan_id, seed),
            scan_id=scan_id,
            subject=subject,
            modality="bold",
            participant=Participant(subject=subject, diagnosis=diagnosis),
            commit=commit,
        )

    def expect(self, changes: dict[str, Entry]) -> None:
        """A new version where something differs, else none."""
        if any(self.now.get(scan_id) != entry for scan_id, entry in changes.items()):
            self.now = {**self.now, **changes}
            self.history[max(self.history) + 1] = self.now
        assert self.store.version == max(self.history)

    @rule(scan_id=SCANS, seed=SEEDS, diagnosis=LABELS)
    def ingest(self, scan_id: str, seed: int, diagnosis: str | None) -> None:
        self.write(scan_id, (seed, diagnosis))
        self.expect({scan_id: (seed, diagnosis)})

    @rule(scans=st.dictionaries(SCANS, SEEDS, min_size=2, max_size=3))
    def ingest_several(self, scans: dict[str, int]) -> None:
        changes: dict[str, Entry] = {scan_id: (seed, None) for scan_id, seed in scans.items()}
        self.store.commit([self.write(scan_id, entry, commit=False) for scan_id, entry in changes.items()])
        self.expect(changes)

    @rule(scan_id=SCANS, seed=SEEDS, after=st.integers(0, 6))
    def crash_while_writing(self, scan_id: str, seed: int, after: int) -> None:
        cut = power_cut(obstore, ("put", "put_async"), after)
        try:
            with cut, mock.patch.object(catalogue, "write_deltalake", side_effect=PowerCutError("no power")):
                self.write(scan_id, (seed, "lost"))
        except StoreError:
            self.reopen()
            self.expect({})
        else:
            self.expect({scan_id: (seed, "lost")})  # nothing had to be written, for it was there

    @rule(scan_id=SCANS, seed=SEEDS)
    def crash_after_the_commit(self, scan_id: str, seed: int) -> None:
        entry: Entry = (seed, "kept")
        try:
            with power_cut(catalogue, ("write_deltalake",), 0, is_late=True):
                self.write(scan_id, entry)
        except StoreError:
            assert self.now.get(scan_id) != entry
        self.reopen()
        self.expect({scan_id: entry})

    @rule(person=st.sampled_from(PEOPLE), after=st.one_of(st.none(), st.integers(0, 12)))
    def remove(self, person: str, after: int | None) -> None:
        was_here = any(f"{person}-{number}" in held for held in self.history.values() for number in (1, 2))
        if after is not None:
            try:
                with power_cut(Location, ("write_bytes", "delete"), after):
                    withdraw(self.store, {person})
            except (StoreError, PowerCutError):
                pass
            else:
                was_here = False  # it got to its end
            self.reopen()
        try:
            withdraw(self.store, {person})
        except StoreError as error:
            assert not was_here or after is not None
            assert "never in" in error.fault  # noqa: PT017
        self.history = {
            version: {scan_id: entry for scan_id, entry in held.items() if not scan_id.startswith(f"{person}-")}
            for version, held in self.history.items()
        }
        self.now = self.history[max(self.history)]
        self.reopen()
        content = b"".join(self.store.location.read_bytes(key) for key, _ in self.store.location.list())
        assert f'"{person}-'.encode() not in content
        assert f"/{person}-".encode() not in content

    @rule()
    def reopen(self) -> None:
        self.store = pickle.loads(pickle.dumps(ScanStore(self.store.uri)))

    @precondition(lambda self: self.now)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        scan_id = data.draw(st.sampled_from(sorted(self.now)))
        expected = make_scan(scan_id, self.now[scan_id][0])
        found = self.store.read(scan_id)
        np.testing.assert_array_equal(found.voxels, expected.voxels, strict=True)
        assert found.repetition_time_s == 1.5

    @precondition(lambda self: self.now)
    @rule(data=st.data(), start=st.integers(0, 4), length=st.integers(1, 5))
    def read_window(self, data: st.DataObject, start: int, length: int) -> None:
        scan_id = data.draw(st.sampled_from(sorted(self.now)))
        stop = min(start + length, 5)
        expected = make_scan(scan_id, self.now[scan_id][0]).voxels[start:stop]
        np.testing.assert_array_equal(self.store.read_window(scan_id, start, stop), expected, strict=True)

    @rule(data=st.data())
    def read_an_old_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.history)))
        old, expected = ScanStore(self.store.uri, version=version), self.history[version]
        assert {record.scan_id: record.diagnosis for record in old.records()} == {
            scan_id: diagnosis for scan_id, (_, diagnosis) in expected.items()
        }
        for scan_id, (seed, _) in expected.items():
            np.testing.assert_array_equal(old.read(scan_id).voxels, make_scan(scan_id, seed).voxels)

    @rule()
    def verify(self) -> None:
        assert self.store.verify() == []

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        found = {record.scan_id: record.diagnosis for record in self.store.records()}
        assert found == {scan_id: diagnosis for scan_id, (_, diagnosis) in self.now.items()}


def run(num_examples: int, num_steps: int) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    limits = settings(
        max_examples=num_examples,
        stateful_step_count=num_steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=checks,
    )
    run_state_machine_as_test(StoreMachine, settings=limits)


def test_a_store_agrees_with_its_model():
    run(12, 15)


@pytest.mark.slow
def test_a_store_agrees_with_its_model_for_long():
    run(40, 30)

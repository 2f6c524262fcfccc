"""Every fault of a bucket at every request: the right answer after a while, or an error that says so; nothing wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

import pytest
from contracts.fault_proxy import Fault, FaultProxy
from contracts.faulty_bucket import FINGERPRINT, OPERATIONS, SCAN, check_intact, clear_new, count_requests, fill

from neuroray.storage import locations, retries
from neuroray.storage.faults import ForbiddenError, ObjectExistsError, StoreError, UnreachableError
from neuroray.storage.features import FeatureStore
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

pytestmark = pytest.mark.s3

# What goes away when asked again.
PASSING: tuple[Fault, ...] = (
    "slow down",
    "internal error",
    "reset",
    "reset after",
    "truncate",
    "lengthen",
    "stall",
    "stall in body",
)
# What HTTP has no means to notice: checksums have to.
SILENT: tuple[Fault, ...] = ("shorten", "flip")
REFUSALS = {"expired token": "have run out", "clock skew": "clock", "access denied": "rights", "invalid key": "AWS_"}
READS = [name for name, operation in OPERATIONS.items() if not operation.writes]
WRITES = [name for name, operation in OPERATIONS.items() if operation.writes]


@pytest.fixture
def proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of the server, known to every client; pauses are short here."""
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NEURORAY_STALL_S", "0.4")
    with FaultProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def filled(proxy: FaultProxy, s3_bucket: str) -> str:
    uri = f"{s3_bucket}/store"
    fill(uri)
    proxy.clear()
    return uri


@pytest.mark.parametrize(
    ("name", "num_positions"),
    [
        *((name, len(PASSING)) for name in OPERATIONS),
        pytest.param("read window", 24, marks=pytest.mark.slow),
        pytest.param("commit several", 24, marks=pytest.mark.slow),
    ],
)
def test_one_fault_at_any_request_changes_nothing(proxy: FaultProxy, filled: str, name: str, num_positions: int):
    operation = OPERATIONS[name]
    num_requests = count_requests(proxy, operation, filled)
    clear_new(filled)
    positions = sorted({number * num_requests // num_positions for number in range(num_positions)})
    for number, position in enumerate(positions):
        proxy.clear()
        # Another at each: over all operations each fault meets each kind of request.
        rule = proxy.add(PASSING[number % len(PASSING)], skip=position, times=1)
        operation.act(filled)
        assert rule.met == 1
        proxy.clear()
        clear_new(filled)
    check_intact(filled)


@pytest.mark.parametrize("name", ["read window", "add a scan"])
def test_each_fault_twice_in_a_row_changes_nothing(proxy: FaultProxy, filled: str, name: str):
    for fault in PASSING:
        proxy.clear()
        rule = proxy.add(fault, path="scans/", times=2)
        OPERATIONS[name].act(filled)
        assert rule.met == 2
    proxy.clear()
    check_intact(filled)


@pytest.mark.parametrize("name", ["read whole", "read features", "add a scan"])
def test_an_answer_that_is_wrong_is_no_voxels(
    proxy: FaultProxy, filled: str, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "2")  # what looks as if it would pass is not waited for
    operation = OPERATIONS[name]
    num_requests = count_requests(proxy, operation, filled)
    for position in range(0, num_requests, 8 if operation.writes else 1):
        for fault in SILENT:
            proxy.clear()
            proxy.add(fault, skip=position, times=1)
            # What it gives is right, by its own assertions, or it gives an error.
            with suppress(StoreError):
                operation.act(filled)
    proxy.clear()
    check_intact(filled)


def test_verify_tells_what_is_damaged_and_not_what_was_spoiled_on_its_way(proxy: FaultProxy, filled: str):
    for path in ("manifest.json", "voxels/c/", "header/c/", "voxels/zarr.json"):
        proxy.clear()
        rule = proxy.add("flip", path=path, times=1)
        assert ScanStore(filled).verify() == []
        assert rule.met == 1


@pytest.mark.parametrize(("name", "fault"), zip(OPERATIONS, [*REFUSALS, *REFUSALS], strict=True))
def test_a_refusal_is_told_at_once_with_what_to_do(proxy: FaultProxy, filled: str, name: str, fault: str):
    operation = OPERATIONS[name]
    num_requests = count_requests(proxy, operation, filled)
    clear_new(filled)
    for position in {0, num_requests // 2, num_requests - 1}:
        proxy.clear()
        rule = proxy.add(fault, skip=position)  # type: ignore[arg-type]
        with pytest.raises(ForbiddenError, match=REFUSALS[fault]) as caught:
            operation.act(filled)
        # Several objects are asked for at once, and the first refusal ends it; tried again it would be dozens.
        assert rule.met <= 8, "it was tried again"
        assert "s3://" in caught.value.fault
        proxy.clear()
        clear_new(filled)
    check_intact(filled)


def test_a_server_that_stays_busy_is_given_up_with_all_that_is_known(proxy: FaultProxy, filled: str):
    scans = ScanStore(filled)
    rule = proxy.add("slow down", path="voxels/c/")
    with pytest.raises(UnreachableError) as caught:
        scans.read_window(SCAN, 0, 2)
    bucket = re.escape(filled)
    tried = rule.met
    assert re.fullmatch(
        rf"scan {SCAN} cannot be read: cannot read c/0/0/0/0 in {bucket}/scans/{SCAN}/[0-9a-f]+/voxels: "
        rf"tried {tried} times in \d\.\d s",
        caught.value.fault,
    )
    assert tried > 2
    assert caught.value.given == "GenericError: 503 Service Unavailable, SlowDown, Please reduce your request rate."


@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_cannot_be_made_leaves_no_half(proxy: FaultProxy, filled: str, name: str):
    # The commit too: whatever is put last.
    for path in ("_delta_log", "scans/|neuroray.json|lock"):
        proxy.clear()
        rule = proxy.add("internal error", method="PUT|POST", path=path)
        try:
            OPERATIONS[name].act(filled)
        except StoreError:
            assert rule.met
        else:
            assert not rule.met
        proxy.clear()
        if name != "make a store":
            assert {record.scan_id for record in ScanStore(filled).records()} == {SCAN, "sub-02_bold"}
        check_intact(filled)
    clear_new(filled)
    OPERATIONS[name].act(filled)


def test_a_commit_whose_answer_is_lost_is_made_once(proxy: FaultProxy, filled: str):
    version = ScanStore(filled).version
    rule = proxy.add("reset after", method="PUT", path="_delta_log/.*json", times=1)
    OPERATIONS["commit several"].act(filled)
    assert rule.met == 1
    assert ScanStore(filled).version == version + 1


def test_an_object_created_by_a_try_whose_answer_was_lost_is_ours(proxy: FaultProxy, filled: str):
    place = Location(filled)
    proxy.add("reset after", method="PUT", times=1)
    place.write_bytes("lock", b"mine", create_only=True)
    with pytest.raises(ObjectExistsError):
        place.write_bytes("lock", b"mine", create_only=True)


def test_an_object_created_by_another_meanwhile_is_theirs(proxy: FaultProxy, filled: str, s3_server: str):
    place = Location(filled)
    place.write_bytes("lock", b"theirs")
    proxy.add("reset", method="PUT", times=1)
    with pytest.raises(ObjectExistsError):
        place.write_bytes("lock", b"mine", create_only=True)
    assert place.read_bytes("lock") == b"theirs"


def test_a_silent_server_is_found_by_its_silence_and_a_slow_one_is_not(proxy: FaultProxy, filled: str):
    proxy.latency_s = 0.1
    OPERATIONS["read features"].act(filled)
    proxy.latency_s = 0.0
    scans = ScanStore(filled)
    proxy.add("stall", path="voxels/c/")
    with pytest.raises(UnreachableError, match="cannot read c/0/0/0/0 in"):
        scans.read(SCAN)


def test_reading_needs_no_right_to_write(proxy: FaultProxy, filled: str):
    rule = proxy.add("access denied", method="PUT|POST|DELETE|PATCH")
    for name in READS:
        OPERATIONS[name].act(filled)
    scans = ScanStore(filled)
    assert FeatureStore(scans, FINGERPRINT).missing([SCAN]) == []
    assert rule.met == 0, "something was written"
    with pytest.raises(ForbiddenError, match="cannot write"):
        OPERATIONS["create an object"].act(filled)


def test_the_library_below_does_not_multiply_the_tries(proxy: FaultProxy, filled: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "0")
    rule = proxy.add("slow down", path="neuroray.json")
    with pytest.raises(UnreachableError, match="tried once"):
        Location(filled).read_bytes("neuroray.json")
    assert rule.met == 1
    assert locations._RETRIES_OF_A_LOOK < 5

"""A writer that dies at every step, two at once, a disk that is full: the old state stays whole, the next run mends."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contracts.fault_proxy import FaultProxy, Request
from contracts.stored_scans import assert_same_scan, make_masked, make_scan, write

from neuroray.storage import group, retries
from neuroray.storage.faults import StoreError
from neuroray.storage.store import ScanStore
from neuroray.storage.withdrawal import withdraw

SCAN, OTHER = "sub-01_T1w", "other"
_LOG = "catalogue/_delta_log/"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards in a tiny scan."""
    frame_bytes = 5 * 7 * 3 * 2
    monkeypatch.setattr(group, "_MAX_CHUNK_BYTES", 2 * frame_bytes)
    monkeypatch.setattr(group, "_MAX_SHARD_BYTES", 6 * frame_bytes)


def fill(uri: str | Path) -> None:
    """A run that is about to change, and a volume that is not."""
    scans = ScanStore.create(uri)
    write(scans, make_scan(seed=7), SCAN)
    write(scans, make_scan("int16 volume"), OTHER)


def rewrite(uri: str | Path) -> None:
    """The run changes: other voxels, and a mask."""
    write(ScanStore(uri), make_masked(), SCAN)


def check(uri: str | Path, *, may_be_new: bool, may_be_old: bool = True) -> None:
    """Old or new, but one of them whole; the rest as it was; no scan that should not be there."""
    scans = ScanStore(uri)
    assert [record.scan_id for record in scans.records()] == [OTHER, SCAN]
    assert scans.verify() == []
    assert_same_scan(scans.read(OTHER), make_scan("int16 volume"))
    is_new = scans.read_mask(SCAN) is not None
    assert may_be_new if is_new else may_be_old
    assert_same_scan(scans.read(SCAN), make_scan() if is_new else make_scan(seed=7))


def list_files(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of the last change of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_ctime_ns) for path in files}


# A local folder: every state that a crash could leave is built from what a whole write leaves


def test_after_a_crash_between_any_two_files_the_store_is_old_or_new(tmp_path: Path, small_pieces: None):
    whole, old = tmp_path / "whole", tmp_path / "old"
    fill(whole)
    shutil.copytree(whole, old)
    before = list_files(whole)
    rewrite(whole)
    after = list_files(whole)
    assert all(after[name][0] == content for name, (content, _) in before.items()), "a file that was there has changed"
    new = sorted(after.keys() - before.keys(), key=lambda name: after[name][1])
    assert [name for name in new if name.startswith(_LOG)] == [new[-1]], "the commit is not the last file"
    assert sum("/voxels/c/" in name for name in new) == 3
    for count in range(len(new) + 1):
        crashed = tmp_path / "crashed"
        shutil.copytree(old, crashed)
        for name in new[:count]:
            (crashed / name).parent.mkdir(parents=True, exist_ok=True)
            (crashed / name).write_bytes(after[name][0])
        if count < len(new):  # and the next one half written, as the object-store library names it till it is done
            half = crashed / f"{new[count]}#1"
            half.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(after[new[count]][0][: len(after[new[count]][0]) // 2])
        is_committed = count == len(new)
        check(crashed, may_be_new=is_committed, may_be_old=not is_committed)
        rewrite(crashed)
        check(crashed, may_be_new=True, may_be_old=False)
        shutil.rmtree(crashed)


@pytest.mark.parametrize("num_puts", [0, 1, 4, 9])
def test_a_process_that_is_killed_leaves_the_old_state(tmp_path: Path, num_puts: int):
    fill(tmp_path / "store")
    script = textwrap.dedent("""
        import os, signal, sys
        import obstore
        left = int(sys.argv[2])
        def dying(put):
            def run(*args, **kwargs):
                global left
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
                return put(*args, **kwargs)
            return run
        obstore.put, obstore.put_async = dying(obstore.put), dying(obstore.put_async)
        from contracts.stored_scans import make_masked, write
        from neuroray.storage.store import ScanStore
        write(ScanStore(sys.argv[1]), make_masked(), "sub-01_T1w")
    """)
    died = run_script(script, str(tmp_path / "store"), str(num_puts))
    # A group has three chunks or shards, four zarr.json, a manifest: with nine puts it gets through.
    assert died == (0 if num_puts == 9 else -signal.SIGKILL)
    check(tmp_path / "store", may_be_new=num_puts == 9, may_be_old=num_puts != 9)
    rewrite(tmp_path / "store")
    check(tmp_path / "store", may_be_new=True, may_be_old=False)


def run_script(script: str, *arguments: str) -> int:
    """Runs Python in a process of its own; its exit status, negative for the signal it died of."""
    roots = [str(Path(group.__file__).parents[2]), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    return subprocess.run([sys.executable, "-c", script, *arguments], env=environment, timeout=120).returncode


# A bucket: from some request on nothing gets through, which is all that the world sees of a dead writer


@pytest.fixture
def proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.01)
    with FaultProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def die_at(proxy: FaultProxy, position: int, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """From this request on all connections break, and nothing is tried again."""
    proxy.clear()
    proxy.add("reset", skip=position)
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "0")
    return monkeypatch


def revive(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is back."""
    proxy.clear()
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "2")


@pytest.mark.s3
@pytest.mark.slow
def test_a_writer_cut_off_at_any_request_leaves_old_or_new(
    proxy: FaultProxy, s3_bucket: str, small_pieces: None, monkeypatch: pytest.MonkeyPatch
):
    fill(f"{s3_bucket}/count")
    proxy.clear()
    rewrite(f"{s3_bucket}/count")
    num_requests = len(proxy.requests)
    num_writes = sum(request.method in ("PUT", "POST") for request in proxy.requests)
    assert num_writes >= 3 + 1 + 1 + 4 + 1 + 2  # shards, mask, header, metadata, manifest, rows and commit
    fill(f"{s3_bucket}/store")
    num_old = 0
    for position in range(num_requests):
        die_at(proxy, position, monkeypatch)
        with pytest.raises(StoreError):
            rewrite(f"{s3_bucket}/store")
        revive(proxy, monkeypatch)
        check(f"{s3_bucket}/store", may_be_new=True)
        if ScanStore(f"{s3_bucket}/store").read_mask(SCAN) is not None:
            break  # committed: what came after is looking only
        num_old += 1
    assert num_old > num_writes
    rewrite(f"{s3_bucket}/store")
    check(f"{s3_bucket}/store", may_be_new=True, may_be_old=False)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("path", "is_done", "is_new"),
    [("voxels/c/", False, False), ("catalogue/part-", True, False), (_LOG, False, False), (_LOG, True, True)],
)
def test_a_process_killed_while_it_asks_leaves_old_or_new(
    proxy: FaultProxy, s3_bucket: str, path: str, is_done: bool, is_new: bool
):
    fill(f"{s3_bucket}/store")
    script = textwrap.dedent("""
        import os, sys
        from contracts.stored_scans import make_masked, write
        from neuroray.storage.store import ScanStore
        print(os.getpid(), flush=True)
        write(ScanStore(sys.argv[1]), make_masked(), "sub-01_T1w")
    """)
    roots = [str(Path(group.__file__).parents[2]), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    process = subprocess.Popen([sys.executable, "-c", script, f"{s3_bucket}/store"], env=environment)

    def kill(request: Request) -> bool:
        process.kill()
        process.wait()
        return True

    # The request was sent; the server has done what it asks, or has never seen it.
    proxy.add("reset after" if is_done else "reset", method="PUT", path=path, when=kill, times=1)
    assert process.wait(timeout=120) == -signal.SIGKILL
    proxy.clear()
    check(f"{s3_bucket}/store", may_be_new=is_new, may_be_old=not is_new)
    rewrite(f"{s3_bucket}/store")
    check(f"{s3_bucket}/store", may_be_new=True, may_be_old=False)


@pytest.mark.s3
@pytest.mark.slow
def test_a_withdrawal_cut_off_at_any_request_is_finished_by_the_next(
    proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
):
    def fill_two(uri: str) -> None:
        scans = ScanStore.create(uri)
        write(scans, make_scan("int16 volume"), OTHER, subject="stays")
        write(scans, make_scan("mask"), SCAN, subject="leaves")

    fill_two(f"{s3_bucket}/count")
    proxy.clear()
    withdraw(ScanStore(f"{s3_bucket}/count"), {"leaves"})
    num_requests = len(proxy.requests)
    assert num_requests > 20
    for position in range(num_requests):
        uri = f"{s3_bucket}/store-{position}"
        fill_two(uri)
        die_at(proxy, position, monkeypatch)
        with pytest.raises(StoreError):
            withdraw(ScanStore(uri), {"leaves"})
        revive(proxy, monkeypatch)
        scans = ScanStore(uri)
        assert_same_scan(scans.read(OTHER), make_scan("int16 volume"))
        try:
            withdraw(scans, {"leaves"})
        except StoreError as error:
            assert "never in" in error.fault  # noqa: PT017  it had got to its end
        assert [record.scan_id for record in ScanStore(uri).records()] == [OTHER]
        content = b"".join(scans.location.read_bytes(key) for key, _ in scans.location.list())
        assert b"leaves" not in content
        assert ScanStore(uri).verify() == []


# A disk that is full


def test_a_disk_that_fills_at_any_block_leaves_the_old_state(small_disk: Path):
    store, ballast = small_disk / "store", small_disk / "ballast"
    fill(store)
    block_bytes = os.statvfs(small_disk).f_frsize
    num_failed = 0
    while True:
        with ballast.open("wb") as file:
            free = os.statvfs(small_disk).f_bavail
            assert free > num_failed, "the disk is too small for this test"
            file.write(bytes((free - num_failed) * block_bytes))
        try:
            rewrite(store)
        except StoreError as error:
            told = str(error)
        else:
            break
        assert "No space left" in told or os.strerror(errno.ENOSPC) in told
        check(store, may_be_new=False)  # readable with the disk still full
        ballast.unlink()
        num_failed += 1
    assert num_failed >= 4  # each attempt gets further, for what fitted stays
    check(store, may_be_new=True, may_be_old=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here; the test of the file size below needs none")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("limit_bytes", [1, 300, 700, 1500, 2500, 4000])
def test_a_file_that_cannot_grow_leaves_the_old_state(tmp_path: Path, limit_bytes: int):
    fill(tmp_path / "store")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, unlimited[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot (write|commit)"):
            rewrite(tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    check(tmp_path / "store", may_be_new=False)
    rewrite(tmp_path / "store")
    check(tmp_path / "store", may_be_new=True, may_be_old=False)


# A catalogue that is not what was written


def test_a_catalogue_that_was_changed_gives_no_wrong_scan(tmp_path: Path):
    fill(tmp_path / "store")
    folder, draw = tmp_path / "store" / "catalogue", np.random.default_rng(0)
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        intact = path.read_bytes()
        for offset in draw.integers(0, len(intact), 12):
            damaged = bytearray(intact)
            damaged[offset] ^= 1 << draw.integers(8)
            path.write_bytes(bytes(damaged))
            try:
                scans = ScanStore(tmp_path / "store")
                faults = scans.verify()
                found = {record.scan_id: scans.read(record.scan_id) for record in scans.records() if not faults}
            except StoreError:
                continue
            for scan_id, expected in ((SCAN, make_scan(seed=7)), (OTHER, make_scan("int16 volume"))):
                if scan_id in found:
                    assert_same_scan(found[scan_id], expected)
        path.write_bytes(intact)
    check(tmp_path / "store", may_be_new=False)


def test_a_commit_that_a_reader_would_pass_over_is_found(tmp_path: Path):
    fill(tmp_path / "store")
    commit = tmp_path / "store" / _LOG / f"{2:020d}.json"
    intact = commit.read_bytes()
    at = intact.index(b'{"add"')
    for offset in range(at, at + len(b'{"add"')):
        for bit in range(8):
            damaged = bytearray(intact)
            damaged[offset] ^= 1 << bit
            commit.write_bytes(bytes(damaged))
            try:
                scans = ScanStore(tmp_path / "store")
                is_found = bool(scans.verify())
            except StoreError:
                continue
            assert is_found or len(scans.records()) == 2
    commit.write_bytes(intact)
    check(tmp_path / "store", may_be_new=False)

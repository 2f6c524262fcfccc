"""What every store of scans has to keep: written once, run on a local folder and on S3."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from contracts.stored_scans import (
    AFFINE,
    KINDS,
    FailingWrites,
    assert_same_scan,
    make_masked,
    make_person,
    make_scan,
    write,
)

from neuroray.storage import catalogue, group, store
from neuroray.storage.scan import Encoding
from neuroray.storage.store import ScanStore, StoreError


class StoreContract:
    """Subclasses give a `store_uri` fixture: an address where nothing is yet."""

    num_flips = 8  # per object, besides its first, middle and last byte

    @pytest.fixture
    def scans(self, store_uri: str) -> ScanStore:
        return ScanStore.create(store_uri)

    @pytest.fixture
    def small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Chunks of two frames of the scaled run, shards of three chunks: several of both in a tiny scan."""
        frame_bytes = 5 * 7 * 3 * 2
        monkeypatch.setattr(group, "_MAX_CHUNK_BYTES", 2 * frame_bytes)
        monkeypatch.setattr(group, "_MAX_SHARD_BYTES", 6 * frame_bytes)

    # What was written is read back

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_scan_is_read_back_as_it_was_written(self, scans: ScanStore, kind: str):
        scan = make_scan(kind)
        record = write(scans, scan)
        assert_same_scan(ScanStore(scans.uri).read("sub-01_T1w"), scan)
        assert scans.verify() == []
        assert (record.shape, record.zooms_mm) == (scan.voxels.shape, scan.zooms_mm)
        np.testing.assert_array_equal(np.reshape(record.affine, (4, 4)), AFFINE)

    def test_pieces_of_a_run_make_the_whole(self, scans: ScanStore, small_pieces: None):
        scan = make_scan()
        record = write(scans, scan)
        shards = [key for key, _ in scans.location.list(record.path) if "/voxels/c/" in key]
        assert len(shards) == 3
        assert_same_scan(scans.read("sub-01_T1w"), scan)
        assert scans.verify() == []

    def test_windows_are_slices_of_the_run(self, scans: ScanStore, small_pieces: None):
        scan = make_scan()
        write(scans, scan)
        for start in range(13):
            for stop in range(start + 1, 14):
                window = scans.read_window("sub-01_T1w", start, stop)
                np.testing.assert_array_equal(window, scan.voxels[start:stop], strict=True)

    def test_a_volume_is_a_run_of_one_frame(self, scans: ScanStore):
        scan = make_scan("int16 volume")
        write(scans, scan)
        np.testing.assert_array_equal(scans.read_window("sub-01_T1w", 0, 1), scan.voxels[np.newaxis], strict=True)

    @pytest.mark.parametrize("kind", ["scaled run", "int16 volume"])
    def test_slices_are_taken_along_a_world_axis(self, scans: ScanStore, small_pieces: None, kind: str):
        scan = make_scan(kind)
        write(scans, scan)
        for axis, position in (("x", -3), ("y", -2), ("z", -1)):
            indices = [2, 0, 1, 1]
            expected = scan.voxels.take(indices, axis=position)
            np.testing.assert_array_equal(scans.read_slices("sub-01_T1w", axis, indices), expected, strict=True)

    def test_frames_and_slices_that_are_not_there_are_refused(self, scans: ScanStore):
        write(scans, make_scan())
        for start, stop in ((0, 14), (-1, 2), (3, 3), (5, 4)):
            with pytest.raises(StoreError, match="no such frames"):
                scans.read_window("sub-01_T1w", start, stop)
        with pytest.raises(StoreError, match="no such slices"):
            scans.read_slices("sub-01_T1w", "z", [3])
        with pytest.raises(StoreError, match="unknown name"):
            scans.read_slices("sub-01_T1w", "t", [0])  # type: ignore[arg-type]

    def test_plain_zarr_reads_the_numbers_of_the_file(self, scans: ScanStore):
        scan = make_scan()
        record = write(scans, scan)
        options = None if scans.location.is_local else {"endpoint_url": os.environ.get("AWS_ENDPOINT_URL")}
        opened = zarr.open_group(f"{scans.uri}/{record.path}", mode="r", storage_options=options)
        voxels = opened["voxels"]
        assert isinstance(voxels, zarr.Array)
        assert voxels.dtype == np.int16
        assert voxels.metadata.dimension_names == ("time", "x", "y", "z")  # pyright: ignore
        meaning: dict[str, Any] = dict(voxels.attrs)
        values = np.asarray(voxels[...]).astype(np.float64) * meaning["slope"] + meaning["intercept"]
        np.testing.assert_array_equal(values.astype(np.float32), scan.voxels, strict=True)
        np.testing.assert_array_equal(meaning["affine"], AFFINE)
        assert meaning["repetition_time_s"] == 0.72
        assert np.asarray(opened["header"][...]).tobytes() == scan.source.header  # pyright: ignore

    def test_labels_are_kept_and_unknown_ones_are_none(self, scans: ScanStore):
        person = make_person(age_years=63.5, sex="F", diagnosis="AD", cognition=-0.25, extra={"hand": "left", "x": ""})
        write(scans, make_scan(), session="ses-2", participant=person, source_name="a.nii.gz", source_sha256="ab" * 32)
        record = ScanStore(scans.uri).record("sub-01_T1w")
        assert (record.session, record.age_years, record.sex, record.diagnosis) == ("ses-2", 63.5, "F", "AD")
        assert (record.cognition, record.family_id, record.site) == (-0.25, None, None)
        assert (record.extra, record.source_name) == ({"hand": "left", "x": ""}, "a.nii.gz")
        assert (record.source_sha256, record.flags) == ("ab" * 32, ("TR was given in ms",))

    def test_records_are_sorted_and_one_per_scan(self, scans: ScanStore):
        batch = [write(scans, make_scan("zeros"), scan_id, commit=False) for scan_id in ("b", "a10", "a9")]
        assert scans.records() == []
        scans.commit(batch)
        write(scans, make_scan("mask"), "a9")
        assert [record.scan_id for record in scans.records()] == ["a10", "a9", "b"]
        assert scans.record("a9").dtype == "bool"

    def test_a_pickled_store_reads_and_carries_no_credentials(self, scans: ScanStore):
        write(scans, make_scan())
        scans.read("sub-01_T1w")
        frozen = pickle.dumps(scans)
        assert os.environ.get("AWS_SECRET_ACCESS_KEY", "AWS_SECRET").encode() not in frozen
        assert_same_scan(pickle.loads(frozen).read("sub-01_T1w"), make_scan())
        assert pickle.loads(pickle.dumps(ScanStore(scans.uri, version=0))).records() == []

    # The same again, another, an older

    def test_the_same_scan_again_changes_nothing(self, scans: ScanStore):
        first = write(scans, make_scan())
        version, objects = scans.version, scans.location.list("scans")
        assert write(ScanStore(scans.uri), make_scan()) == first
        assert (scans.version, scans.location.list("scans")) == (version, objects)

    def test_new_labels_are_a_new_row_and_no_new_voxels(self, scans: ScanStore):
        first = write(scans, make_scan())
        second = write(scans, make_scan(), participant=make_person(diagnosis="AD"))
        assert (second.path, second.voxels_sha256) == (first.path, first.voxels_sha256)
        assert [record.diagnosis for record in scans.records()] == ["AD"]

    def test_what_changes_a_value_changes_the_digest(self, scans: ScanStore):
        scan = make_scan()
        other_scale = dataclasses.replace(
            scan, encoding=Encoding(dtype="int16", slope=0.5), voxels=np.rint(scan.voxels)
        )
        changed = [
            scan,
            dataclasses.replace(scan, affine=np.diag([2.0, 2.0, 2.0, 1.0])),
            dataclasses.replace(scan, repetition_time_s=2.0),
            dataclasses.replace(scan, voxels=-scan.voxels),
            other_scale,
            dataclasses.replace(
                other_scale, encoding=Encoding(dtype="int16", slope=0.25), voxels=other_scale.voxels / 2
            ),
        ]
        records = [write(scans, item, f"s{number}", commit=False) for number, item in enumerate(changed)]
        assert len({record.voxels_sha256 for record in records}) == len(changed)

    def test_a_pinned_version_stays_readable(self, scans: ScanStore, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(catalogue, "_MANY_FILES", 3)
        write(scans, make_scan())
        pinned = ScanStore(scans.uri, version=scans.version)
        before = pinned.records()
        for seed in range(1, 6):
            write(scans, make_scan(seed=seed))
            write(scans, make_scan("zeros"), f"other-{seed}")
        reopened = ScanStore(scans.uri, version=pinned.version)
        assert reopened.records() == pinned.records() == before
        assert_same_scan(reopened.read("sub-01_T1w"), make_scan())
        assert_same_scan(scans.read("sub-01_T1w"), make_scan(seed=5))
        assert len(scans.records()) == 6
        with pytest.raises(StoreError, match="never changes"):
            write(pinned, make_scan(seed=9))

    def test_a_version_that_is_not_there_is_refused(self, scans: ScanStore):
        with pytest.raises(StoreError, match="given 7; expected 0 to 0"):
            ScanStore(scans.uri, version=7)

    def test_a_wrong_clock_does_not_bring_back_the_old(self, scans: ScanStore, monkeypatch: pytest.MonkeyPatch):
        write(scans, make_scan(seed=1))
        monkeypatch.setattr(store, "utc_now", lambda: "1999-01-01T00:00:00.000000+00:00")
        write(ScanStore(scans.uri), make_scan(seed=2))
        assert_same_scan(scans.read("sub-01_T1w"), make_scan(seed=2))
        assert_same_scan(ScanStore(scans.uri).read("sub-01_T1w"), make_scan(seed=2))

    # A crash leaves nothing half there

    def test_a_crash_at_any_object_leaves_no_scan(
        self, scans: ScanStore, small_pieces: None, monkeypatch: pytest.MonkeyPatch
    ):
        failing = FailingWrites(monkeypatch)
        write(scans, make_scan(), "older")
        crashes = 0
        while True:
            failing.left = crashes
            try:
                write(scans, make_scan(seed=1), "older")
            except StoreError:
                crashes += 1
            else:
                break
            failing.left = float("inf")
            fresh = ScanStore(scans.uri)
            assert_same_scan(fresh.read("older"), make_scan())
            assert fresh.verify() == []
        assert crashes >= 3 + 1 + 3 + 1  # shards of the run, header, metadata, manifest
        failing.left = float("inf")
        assert_same_scan(ScanStore(scans.uri).read("older"), make_scan(seed=1))
        assert scans.verify() == []

    def test_a_crash_at_the_commit_leaves_no_scan(self, scans: ScanStore, monkeypatch: pytest.MonkeyPatch):
        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError("connection reset (made by the test)")

        with monkeypatch.context() as patch:
            patch.setattr(catalogue, "write_deltalake", fail)
            with pytest.raises(StoreError, match="connection reset"):
                write(scans, make_scan())
        assert ScanStore(scans.uri).records() == []
        write(scans, make_scan())
        assert_same_scan(scans.read("sub-01_T1w"), make_scan())
        assert scans.verify() == []

    def test_a_crash_while_a_store_is_made_leaves_none(self, store_uri: str, monkeypatch: pytest.MonkeyPatch):
        failing = FailingWrites(monkeypatch)
        failing.left = 0
        with pytest.raises(StoreError, match="no space left"):
            ScanStore.create(store_uri)
        with pytest.raises(StoreError, match="no store"):
            ScanStore(store_uri)
        failing.left = float("inf")
        assert ScanStore.create(store_uri).records() == []

    # Damage is an error, never voxels

    def test_a_flipped_bit_anywhere_is_found(self, scans: ScanStore, small_pieces: None):
        record = write(scans, make_masked())
        draw = random.Random(1)
        manifest = group.manifest_key(record.path)
        for key, size_bytes in scans.location.list(f"scans/{record.scan_id}"):
            intact = scans.location.read_bytes(key)
            offsets = {0, size_bytes // 2, size_bytes - 1, *(draw.randrange(size_bytes) for _ in range(self.num_flips))}
            for offset in offsets:
                damaged = bytearray(intact)
                damaged[offset] ^= 1 << draw.randrange(8)
                scans.location.write_bytes(key, bytes(damaged))
                assert [fault.object for fault in scans.verify()] == [key], f"byte {offset} of {key}"
                self._assert_error_or_same(scans, must_fail=key == manifest or "/c/" in key)
            scans.location.write_bytes(key, intact)
        assert scans.verify() == []

    def test_a_missing_object_is_found(self, scans: ScanStore, small_pieces: None):
        record = write(scans, make_masked())
        manifest = group.manifest_key(record.path)
        for key, _ in scans.location.list(f"scans/{record.scan_id}"):
            intact = scans.location.read_bytes(key)
            scans.location.delete(key)
            assert [(fault.object, fault.problem) for fault in scans.verify()] == [(key, "missing")]
            self._assert_error_or_same(scans, must_fail=key == manifest or "/c/" in key, named=key)
            scans.location.write_bytes(key, intact)
        assert scans.verify() == []

    def test_a_truncated_chunk_or_shard_is_found(self, scans: ScanStore):
        record = write(scans, make_masked())
        keys = [key for key, _ in scans.location.list(record.path) if "/c/" in key]
        assert {key.removeprefix(f"{record.path}/").partition("/")[0] for key in keys} == {"voxels", "mask", "header"}
        for key in keys:
            intact = scans.location.read_bytes(key)
            for kept in (0, 1, len(intact) // 2, len(intact) - 1):
                scans.location.write_bytes(key, intact[:kept])
                faults = [(fault.object, fault.problem) for fault in scans.verify()]
                assert faults == [(key, f"{kept} bytes instead of {len(intact)}")]
                self._assert_error_or_same(scans, must_fail=True, named=key)
            scans.location.write_bytes(key, intact)

    def test_a_store_out_of_reach_is_no_fault_of_a_scan(self, scans: ScanStore, monkeypatch: pytest.MonkeyPatch):
        write(scans, make_scan())

        def fail(*args: Any, **kwargs: Any) -> None:
            raise obstore.exceptions.GenericError("connection refused (made by the test)")

        monkeypatch.setattr(obstore, "get", fail)
        with pytest.raises(StoreError, match="connection refused"):
            scans.verify()

    def test_an_object_too_many_is_found(self, scans: ScanStore):
        record = write(scans, make_scan())
        scans.location.write_bytes(f"{record.path}/voxels/c/9/0/0/0", b"stray")
        assert [fault.problem for fault in scans.verify(["sub-01_T1w"])] == ["not part of the group"]

    def test_another_scans_shard_is_no_substitute(self, scans: ScanStore):
        record, other = write(scans, make_scan()), write(scans, make_scan(seed=1), "other")
        key = "voxels/c/0/0/0/0"
        scans.location.write_bytes(f"{record.path}/{key}", scans.location.read_bytes(f"{other.path}/{key}"))
        assert [fault.object for fault in scans.verify()] == [f"{record.path}/{key}"]

    @pytest.mark.parametrize("damage", ["flipped", "missing"])
    def test_writing_again_mends(self, scans: ScanStore, small_pieces: None, damage: str):
        record = write(scans, make_scan())
        # The last shard is not full: it must be replaced, not read and added to.
        key = max(key for key, _ in scans.location.list(record.path) if "/voxels/c/" in key)
        if damage == "missing":
            scans.location.delete(key)
        else:
            intact = scans.location.read_bytes(key)
            scans.location.write_bytes(key, intact[:-1] + bytes([intact[-1] ^ 1]))
        assert write(scans, make_scan(), rewrite=damage == "flipped") == record
        assert scans.verify() == []

    def _assert_error_or_same(self, scans: ScanStore, *, must_fail: bool, named: str = "") -> None:
        # A fresh store: one that has read the scan before may know enough to do without an object.
        fresh, expected = ScanStore(scans.uri), make_masked()
        try:
            found, mask = fresh.read("sub-01_T1w"), fresh.read_mask("sub-01_T1w")
        except StoreError as error:
            fault = error.fault
        else:
            assert not must_fail
            assert_same_scan(found, expected.scan)
            np.testing.assert_array_equal(mask, expected.mask)  # type: ignore[arg-type]
            return
        assert "sub-01_T1w" in fault
        assert named in fault

    # Two writers do not collide

    def test_threads_that_write_at_once_lose_nothing(self, scans: ScanStore, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(catalogue, "_MANY_FILES", 4)
        faults: list[Exception] = []

        def ingest(writer: int) -> None:
            try:
                own = ScanStore(scans.uri)
                for number in range(4):
                    write(own, make_scan("mask", seed=number), f"w{writer}-{number}")
            except Exception as error:
                faults.append(error)

        threads = [threading.Thread(target=ingest, args=(writer,)) for writer in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert [record.scan_id for record in scans.records()] == [f"w{w}-{n}" for w in range(3) for n in range(4)]
        assert scans.verify() == []

    def test_threads_that_write_the_same_scan_agree(self, scans: ScanStore):
        barrier = threading.Barrier(3)

        def ingest() -> None:
            own = ScanStore(scans.uri)
            barrier.wait()
            write(own, make_scan())

        threads = [threading.Thread(target=ingest) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(scans.records()) == 1
        assert_same_scan(scans.read("sub-01_T1w"), make_scan())
        assert scans.verify() == []

    def test_writers_of_one_scan_that_differ_leave_one_of_them_whole(self, scans: ScanStore):
        barrier = threading.Barrier(3)
        left: list[BaseException] = []

        def ingest(seed: int) -> None:
            try:
                own = ScanStore(scans.uri)
                barrier.wait()
                write(own, make_scan("int16 volume", seed=seed))
            except Exception as error:
                left.append(error)

        threads = [threading.Thread(target=ingest, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert left == []
        (record,) = ScanStore(scans.uri).records()
        assert scans.verify() == []
        found = scans.read(record.scan_id).voxels
        assert sum(np.array_equal(found, make_scan("int16 volume", seed=seed).voxels) for seed in range(3)) == 1
        # The others stand in the history, whole.
        versions = {version: ScanStore(scans.uri, version=version) for version in range(1, scans.version + 1)}
        assert all(pinned.verify() == [] for pinned in versions.values())

    def test_processes_that_write_at_once_lose_nothing(self, store_uri: str):
        # Each makes the store, too: only one of them can be first.
        script = textwrap.dedent("""
            import sys
            import numpy as np
            from neuroray.storage.scan import Scan
            from neuroray.storage.store import ScanStore
            scans = ScanStore.create(sys.argv[1])
            for number in range(3):
                voxels = np.full((3, 4, 5), number, np.int16)
                # Of its own, and the same as the other's.
                for name in (f"p{sys.argv[2]}-{number}", f"shared-{number}"):
                    scans.write(Scan(voxels=voxels, affine=np.eye(4)), scan_id=name, subject=name, modality="T1w")
        """)
        root = str(Path(store.__file__).parents[2])
        processes = [
            subprocess.Popen([sys.executable, "-c", script, store_uri, str(number)], cwd=root) for number in range(2)
        ]
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
        scans = ScanStore(store_uri)
        names = [f"{who}-{number}" for who in ("p0", "p1", "shared") for number in range(3)]
        assert [record.scan_id for record in scans.records()] == names
        assert scans.verify() == []

    # What is no store, and what may not go in

    def test_what_is_no_store_is_told(self, store_uri: str):
        with pytest.raises(StoreError, match=r"no store in .*likely fix"):
            ScanStore(store_uri)

    def test_a_newer_format_is_refused(self, scans: ScanStore):
        scans.location.write_bytes("neuroray.json", b'{"format": "neuroray-store", "version": 99}')
        with pytest.raises(StoreError, match=r"another format.*newer neuroray"):
            ScanStore(scans.uri)

    def test_a_folder_with_other_things_is_not_taken(self, scans: ScanStore):
        with pytest.raises(StoreError, match="not empty and not a store"):
            ScanStore.create(f"{scans.uri}/catalogue")

    def test_making_a_store_again_opens_it(self, scans: ScanStore):
        write(scans, make_scan())
        assert len(ScanStore.create(scans.uri).records()) == 1

    def test_an_id_that_is_no_part_of_a_path_is_refused(self, scans: ScanStore):
        for name in ("", "..", "a/b", "../a", "a/../b", "/a", ".a", "a b", "a\n", "ä", "a" * 201, "a."):
            for details in ({"scan_id": name}, {"subject": name}, {"modality": name}, {"session": name}):
                with pytest.raises(StoreError, match="cannot be part of a path"):
                    write(scans, make_scan("zeros"), **{"scan_id": "good", **details})
        assert scans.location.list("scans") == []

    def test_a_scan_that_is_not_there_is_told(self, scans: ScanStore):
        with pytest.raises(StoreError, match="no scan 'nobody'"):
            scans.read("nobody")
        with pytest.raises(StoreError, match="no scan 'nobody'"):
            scans.verify(["nobody"])

    def test_nobody_gets_the_labels_of_another(self, scans: ScanStore):
        with pytest.raises(StoreError, match=r"another person's labels; given 02; expected sub-01"):
            write(scans, make_scan("zeros"), participant=make_person(subject="02"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"voxels": np.zeros((0, 3, 2), np.int16)},
            {"voxels": np.zeros((2, 3, 2), np.complex64)},
            {"affine": np.full((4, 4), np.nan)},
            {"repetition_time_s": float("inf")},
            {"encoding": Encoding(dtype="int16", slope=float("nan"))},
        ],
    )
    def test_what_cannot_be_kept_is_refused(self, scans: ScanStore, changes: dict[str, Any]):
        with pytest.raises(StoreError, match="cannot be stored"):
            write(scans, dataclasses.replace(make_scan("int16 volume"), **changes))
        assert scans.records() == []

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import obstore
import pytest

from neuroray.storage.faults import MissingObjectError, ObjectExistsError, StoreError, UnreachableError
from neuroray.storage.locations import Location, check_id


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "folder":
        return Location(tmp_path / "not yet" / "there")
    return Location(request.getfixturevalue("s3_bucket") + "/deep/prefix")


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("s3://bucket", "s3://bucket"),
        ("S3://bucket/a", "s3://bucket/a"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("file:///data/my%20scans", "/data/my scans"),
        ("file://localhost/data", "/data"),
        ("/data/100%/x", "/data/100%/x"),
    ],
)
def test_an_address_has_one_form(given: str, uri: str):
    assert Location(given).uri == uri
    assert Location(uri) == Location(given)
    assert pickle.loads(pickle.dumps(Location(given))) == Location(given)


def test_a_relative_path_stays_where_it_was_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    place = Location("store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    place.write_bytes("a", b"1")
    assert (tmp_path / "store" / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    "given", ["", "ftp://host/a", "s3:///a", "file://host/a", "hdfs://x", "s3://bucket/a b", "s3://b/../c"]
)
def test_an_address_that_means_nothing_is_told(given: str):
    with pytest.raises(StoreError, match=r"expected|likely fix"):
        Location(given)


@pytest.mark.parametrize("given", ["s3://AKIA:verysecret@bucket/a", "s3://bucket/a?secret=verysecret"])
def test_credentials_in_an_address_are_refused_and_not_repeated(given: str):
    with pytest.raises(StoreError, match="credentials") as caught:
        Location(given)
    assert "verysecret" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "..", "../a", "a/../b", "/a", "a//b", "a/", "./a", "a\\b", "a\nb", "~a", "a#1"])
def test_a_key_cannot_leave_its_location(tmp_path: Path, key: str):
    place = Location(tmp_path / "in")
    for use in (place.child, place.read_bytes, place.exists, place.delete, place.digest):
        with pytest.raises(StoreError, match="a key cannot be used"):
            use(key)
    with pytest.raises(StoreError, match="a key cannot be used"):
        place.write_bytes(key, b"")
    assert list(tmp_path.iterdir()) == []


def test_objects_are_written_read_listed_and_deleted(place: Location):
    assert (place.list(), place.names(), place.exists("a/b")) == ([], [], False)
    place.write_bytes("a/b", b"one")
    place.write_bytes("a/bc/d", b"")
    place.write_bytes("e", b"12345")
    assert place.list() == [("a/b", 3), ("a/bc/d", 0), ("e", 5)]
    assert place.list("a") == [("a/b", 3), ("a/bc/d", 0)]
    assert place.list("a/bc") == [("a/bc/d", 0)]
    assert place.names() == ["a", "e"]
    assert place.child("a").read_bytes("b") == b"one"
    place.write_bytes("a/b", b"two")
    assert place.read_bytes("a/b") == b"two"
    place.delete("a/b")
    place.delete("a/b")
    assert not place.exists("a/b")
    assert place.exists("a/bc/d")


def test_a_digest_is_that_of_all_bytes(place: Location):
    data = os.urandom(3_000_001)
    place.write_bytes("large", data)
    assert place.digest("large") == (len(data), hashlib.sha256(data).hexdigest())


def test_what_is_created_is_never_replaced(place: Location):
    place.write_bytes("a", b"first", create_only=True)
    with pytest.raises(ObjectExistsError, match="cannot write a"):
        place.write_bytes("a", b"second", create_only=True)
    assert place.read_bytes("a") == b"first"


def test_what_is_not_there_is_told_with_its_address(place: Location):
    for use in (place.read_bytes, place.digest):
        with pytest.raises(MissingObjectError, match="cannot read nothing in .*" + place.uri):
            use("nothing")
    with pytest.raises(FileNotFoundError):
        place.read_bytes("nothing")


def test_looking_makes_no_folder(tmp_path: Path):
    place = Location(tmp_path / "new")
    assert (place.exists("a"), place.list(), place.names()) == (False, [], [])
    place.delete("a")
    assert list(tmp_path.iterdir()) == []


def test_half_written_objects_of_a_crash_are_not_listed(tmp_path: Path):
    place = Location(tmp_path)
    place.write_bytes("a", b"1")
    (tmp_path / "a#1").write_bytes(b"ha")  # how the object-store library names what it has not finished
    assert place.list() == [("a", 1)]


def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write a"):
        Location(tmp_path / "file" / "below").write_bytes("a", b"1")


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_told(s3_bucket: str):
    with pytest.raises(StoreError, match="cannot write a in s3://no-such-bucket"):
        Location("s3://no-such-bucket").write_bytes("a", b"1")


@pytest.mark.s3
def test_a_server_that_is_not_there_is_told_in_time(s3_bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "0.5")
    with pytest.raises(UnreachableError, match="cannot read a in s3://bucket: tried"):
        Location("s3://bucket").read_bytes("a")


def test_an_error_of_the_network_names_neither_keys_nor_pages_of_debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise obstore.exceptions.GenericError("Generic S3 error: 503 SlowDown\n\nDebug source:\nsecret header")

    monkeypatch.setattr(obstore, "put", fail)
    with pytest.raises(StoreError, match="503 SlowDown") as caught:
        Location(tmp_path).write_bytes("a", b"1")
    assert "Debug" not in str(caught.value)


def test_a_path_that_the_delta_library_would_misread_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match="% and two digits"):
        Location(tmp_path / "a%20b").delta_uri()


@pytest.mark.parametrize("name", ["sub-01", "sub-01_ses-2_task-rest_bold", "0", "a.b"])
def test_ids_of_bids_are_fine(name: str):
    assert check_id(name, what="an id") == name


def test_an_object_is_fetched_into_a_file_with_its_digest(place: Location, tmp_path: Path):
    content = bytes(range(256)) * 99
    place.write_bytes("a/b", content)
    assert place.fetch("a/b", tmp_path / "here") == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "here").read_bytes() == content
    with pytest.raises(MissingObjectError):
        place.fetch("a/c", tmp_path / "there")

"""Whose keys a bucket is asked with, by every library; and that no secret is told, logged or pickled."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from contracts.fault_proxy import FaultProxy
from contracts.faulty_bucket import FINGERPRINT, OPERATIONS, SCAN, fill

from neuroray.storage import retries
from neuroray.storage.credentials import find_keys
from neuroray.storage.faults import ForbiddenError, StoreError
from neuroray.storage.features import FeatureStore
from neuroray.storage.locations import Location
from neuroray.storage.store import ScanStore

pytestmark = pytest.mark.s3

PROFILES = """
[default]
aws_access_key_id = AKIADEFAULTDEFAULT00
aws_secret_access_key = planted-default-secret

[lab]
aws_access_key_id = AKIALABLABLABLABLAB0
aws_secret_access_key = planted-lab-secret
aws_session_token = planted-lab-token
"""


@pytest.fixture
def proxy(s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultProxy]:
    """In front of the server; no keys in the environment, two profiles in a file."""
    (tmp_path / "credentials").write_text(PROFILES)
    (tmp_path / "config").write_text("[profile lab]\nregion = eu-central-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.01)
    with FaultProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def use_all(proxy: FaultProxy, uri: str) -> set[str]:
    """The keys that all operations on a store were signed with."""
    fill(uri)
    for operation in OPERATIONS.values():
        operation.act(uri)
    return {request.access_key for request in proxy.requests}


def test_a_named_profile_is_used_by_every_library(proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_PROFILE", "lab")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    assert use_all(proxy, f"{s3_bucket}/store") == {"AKIALABLABLABLABLAB0"}
    assert {request.headers.get("x-amz-security-token") for request in proxy.requests} == {"planted-lab-token"}
    assert all("/eu-central-1/s3/" in request.headers["authorization"] for request in proxy.requests)


def test_without_a_name_it_is_the_default_profile(proxy: FaultProxy, s3_bucket: str):
    assert use_all(proxy, f"{s3_bucket}/store") == {"AKIADEFAULTDEFAULT00"}


def test_keys_in_the_environment_come_first(proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT00000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    assert use_all(proxy, f"{s3_bucket}/store") == {"AKIAENVIRONMENT00000"}


def test_a_profile_that_is_not_there_is_told(proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_PROFILE", "labb")
    with pytest.raises(ForbiddenError, match=r"\(labb\) could not be found; .*AWS_PROFILE"):
        ScanStore(f"{s3_bucket}/store")


@pytest.mark.parametrize("kind", ["container", "machine"])
def test_a_role_is_used_by_every_library(
    proxy: FaultProxy, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
):
    (tmp_path / "credentials").unlink()
    with serve_role() as url:
        if kind == "container":
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/keys")
        else:
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"{url}/")
            monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        assert use_all(proxy, f"{s3_bucket}/store") == {"ASIAROLEROLEROLE0000"}
    assert {request.headers.get("x-amz-security-token") for request in proxy.requests} == {"planted-role-token"}


def test_keys_that_are_about_to_run_out_are_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    answers = iter(["ASIAFIRST", "ASIASECOND"])
    with serve_role(answers, valid_s=30) as url:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/keys")
        keys = find_keys()
        assert keys is not None
        assert keys()["access_key_id"] == "ASIASECOND"  # the first ones had half a minute left


class serve_role:  # noqa: N801  used as a function
    """The addresses at which AWS gives a container or a machine the keys of its role."""

    def __init__(self, key_ids: Iterator[str] | None = None, valid_s: float = 3600.0) -> None:
        def answer(path: str) -> bytes:
            if path.endswith("security-credentials/"):
                return b"role"
            if "api/token" in path:
                return b"imds-token"
            keys = {
                "AccessKeyId": next(key_ids) if key_ids else "ASIAROLEROLEROLE0000",
                "SecretAccessKey": "planted-role-secret",
                "Token": "planted-role-token",
                "Expiration": (datetime.now(UTC) + timedelta(seconds=valid_s)).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "Code": "Success",
            }
            return json.dumps(keys).encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = answer(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_GET  # noqa: N815

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.parametrize("source", ["environment", "profile"])
def test_no_secret_is_told_logged_or_pickled(
    proxy: FaultProxy,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    source: str,
):
    secrets = ["planted-lab-secret", "planted-lab-token", "AKIALABLABLABLABLAB0"]
    if source == "profile":
        monkeypatch.setenv("AWS_PROFILE", "lab")
    else:
        names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
        for name, value in zip(names, secrets, strict=True):
            monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG, logger="neuroray")
    uri = f"{s3_bucket}/store"
    fill(uri)
    scans = ScanStore(uri)
    scans.read(SCAN)
    told = []
    for fault in ("invalid key", "expired token", "slow down", "reset", "truncate"):
        for operation in OPERATIONS.values():
            proxy.clear()
            proxy.add(fault)
            monkeypatch.setenv("NEURORAY_DEADLINE_S", "0.02")
            try:
                operation.act(uri)
            except StoreError as error:
                told += [str(error), repr(error), "".join(traceback.format_exception(error))]
                told += [repr(pickle.loads(pickle.dumps(error)))]
    proxy.clear()
    monkeypatch.setenv("NEURORAY_DEADLINE_S", "2")
    assert len(told) > 40
    with scans._reader.open(scans.record(SCAN)) as group:
        arrays = [group.array(name) for name in group.array_names]
    kept = [scans, scans.location, FeatureStore(scans, FINGERPRINT), *arrays, scans.location.zarr_store(read_only=True)]
    told += [repr(pickle.dumps(thing)) + repr(thing) for thing in kept]
    told += [repr(scans.location.read_bytes(key)) for key, _ in scans.location.list()]
    told += [caplog.text, *capfd.readouterr()]
    for secret in secrets:
        for text in told:
            assert secret not in text
    keys = find_keys()
    assert (keys is None) == (source == "environment")
    if keys is not None:
        with pytest.raises(TypeError, match="not to be pickled"):
            pickle.dumps(keys)
    assert Location(uri).uri in told[0]

"""OpenStack Swift with its S3 interface, on loopback, in a folder of its own: a second opinion on what S3 is.

It checks signatures and keeps what it is given on disk; moto, by which most tests run, does neither. Swift lives in an
environment of its own (`make test-s3` makes it), whose Python `NEURORAY_SWIFT_PYTHON` names.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PYTHON = "NEURORAY_SWIFT_PYTHON"
ACCESS_KEY, SECRET_KEY = "test:tester", "secret-of-the-tests"
_KINDS = ("account", "container", "object")

_STORAGE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
log_level = ERROR
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
recon_cache_path = {folder}
"""
_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
log_level = ERROR
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats s3api tempauth bulk copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = secret-of-the-tests .admin
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


@contextmanager
def serve_swift(folder: Path) -> Iterator[str]:
    """Serves an empty Swift until the block ends; yields the address of its S3 interface.

    Raises:
        RuntimeError: it does not answer, with what it wrote.
    """
    python = Path(os.environ[PYTHON])
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    ports = dict(zip((*_KINDS, "proxy"), find_ports(4), strict=True))
    for kind in _KINDS:
        _make_ring(python, folder, kind, ports[kind])
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("wb"))
        for kind, port in ports.items():
            template = _PROXY if kind == "proxy" else _STORAGE
            conf = folder / f"{kind}-server.conf"
            conf.write_text(template.format(kind=kind, port=port, folder=folder, user=getpass.getuser()))
            command = [python, python.parent / f"swift-{kind}-server", conf]
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        url = f"http://127.0.0.1:{ports['proxy']}"
        _wait_for(f"{url}/healthcheck", folder / "log")
        yield url


def create_bucket(endpoint_url: str, name: str) -> None:
    """Makes a bucket, with a signature that the server checks."""
    from botocore.config import Config
    from botocore.session import Session

    client = Session().create_client(
        "s3",
        endpoint_url=endpoint_url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=name)


def find_ports(count: int) -> list[int]:
    """Free ports of loopback, all different."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]


def _make_ring(python: Path, folder: Path, kind: str, port: int) -> None:
    builder = [python, python.parent / "swift-ring-builder", folder / f"{kind}.builder"]
    for arguments in (("create", "4", "1", "0"), ("add", f"r1z1-127.0.0.1:{port}/disk", "1"), ("rebalance",)):
        # It answers 1 for a warning, 2 for an error.
        done = subprocess.run([*builder, *arguments], capture_output=True, text=True)
        if done.returncode > 1:
            raise RuntimeError(f"swift-ring-builder: {done.stdout}{done.stderr}")


def _wait_for(url: str, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        try:
            with opener.open(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"Swift does not answer: {log.read_text()[-2000:]}")

"""A real Ray head for these tests: loopback, free ports, a token of its own, and gone afterwards."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 180
_JOB_TIMEOUT_S = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A running head.

    Attributes:
        address: The dashboard's URL, where jobs are submitted.
        environment: What a client needs around it, the token's path included.
        log: What the head itself printed.
    """

    address: str
    environment: dict[str, str]
    log: Path

    def submit(self, *entrypoint: str) -> str:
        """Runs `ray job submit` with the repository as the working dir; gives the output of a job that succeeded."""
        command = ["ray", "job", "submit", "--address", self.address, "--working-dir", "."]
        job = subprocess.run(
            [*command, "--runtime-env", "runtime_env.yaml", "--", *entrypoint],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_JOB_TIMEOUT_S,
            check=False,
        )
        assert job.returncode == 0, f"{job.stdout}\n{job.stderr}\nthe head:\n{self.log.read_text()}"
        return job.stdout

    def open(self, path: str, *, with_token: bool = True) -> http.client.HTTPResponse:
        """Asks the dashboard's HTTP interface, as a client of one's own would."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        headers = {"Authorization": f"Bearer {token}"} if with_token else {}
        # Straight to it, whatever proxy the environment names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(urllib.request.Request(f"{self.address}{path}", headers=headers), timeout=10)


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    # Ray puts sockets below this folder, and their paths end at 107 characters: pytest's own folders are too deep.
    folder = Path(tempfile.mkdtemp(prefix="nr-"))
    environment = _environment(folder)
    ports = _free_ports(6)
    log = folder / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            _start_command(folder, ports),
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Head(address=f"http://127.0.0.1:{ports[1]}", environment=environment, log=log)
    try:
        _wait_until_up(started, process)
        yield started
    finally:
        _end(process, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path) -> dict[str, str]:
    home = folder / "home"
    home.mkdir()
    token = folder / "auth_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    return kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # A busy machine is not a dead node: ten minutes of silence are borne, not fifteen seconds.
        "RAY_health_check_failure_threshold": "200",
    }


def _start_command(folder: Path, ports: list[int]) -> list[str]:
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("metrics-export-port", "ray-client-server-port")
    return [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"),
        f"--object-store-memory={256 * 2**20}",
        *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        # All are held at once, so that no two are the same.
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [held.getsockname()[1] for held in sockets]


def _wait_until_up(head: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), head.open("/api/jobs/"):
            return
        time.sleep(0.5)
    pytest.fail(f"the head did not come up:\n{head.log.read_text()}")


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Ends the head and all that it started, by id: ours are those that name our folder. There is nothing to save."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if str(folder).encode() in told:
                os.kill(int(entry.name), signal.SIGKILL)
    process.wait(timeout=20)

"""A real Ray head for these tests: loopback, free ports, a token of its own, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 90
_JOB_TIMEOUT_S = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A running head.

    Attributes:
        address: The dashboard's URL, where jobs are submitted.
        environment: What a client needs around it, the token's path included.
    """

    address: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """Runs `ray job submit` with the repository as the working dir, and waits for the job's end."""
        command = ["ray", "job", "submit", "--address", self.address, "--working-dir", "."]
        return subprocess.run(
            [*command, "--runtime-env", "runtime_env.yaml", "--", *entrypoint],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_JOB_TIMEOUT_S,
            check=False,
        )


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
    started = Head(address=f"http://127.0.0.1:{ports[1]}", environment=environment)
    try:
        _wait_until_up(started, process, log)
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
    }


def _start_command(folder: Path, ports: list[int]) -> list[str]:
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names += ("metrics-export-port", "ray-client-server-port")
    return [
        *("ray", "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"),
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


def _wait_until_up(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        answer = subprocess.run(
            ["ray", "job", "list", "--address", head.address], env=head.environment, capture_output=True, check=False
        )
        if answer.returncode == 0:
            return
        time.sleep(1)
    pytest.fail(f"the head did not come up:\n{log.read_text()}")


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

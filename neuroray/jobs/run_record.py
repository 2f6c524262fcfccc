"""run.json: what ran, with what, when, and on which versions; written beside everything that a job makes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import neuroray
from neuroray.storage.whole_file import replace_file

_PACKAGES = ("ray", "torch", "timm", "zarr", "nibabel", "numpy", "deltalake", "triton")


class RunRecord:
    """The open record of one job: written when it starts, and again with all facts when it ends, failed or not."""

    def __init__(self, path: Path, job: str, args: dict[str, Any], seed: int | None) -> None:
        self._path = path
        self._started = time.monotonic()
        self.facts: dict[str, Any] = {
            "job": job,
            "args": args,
            "seed": seed,
            "status": "running",
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_commit": git_commit(),
            "versions": package_versions(),
            "machine": {"system": platform.system(), "processor": platform.machine(), "num_cpus": os.cpu_count()},
        }

    def add(self, **facts: Any) -> None:
        """Adds facts (a catalogue version, sizes) to what will be written."""
        self.facts.update(facts)

    def finish(self, status: str) -> None:
        """Writes how it ended, and how long it took."""
        self.facts["status"] = status
        self.facts["seconds"] = round(time.monotonic() - self._started, 3)
        self.write()

    def write(self) -> None:
        """Writes the file whole; a reader never sees half of it."""
        replace_file(self._path, (json.dumps(self.facts, indent=2, default=str) + "\n").encode())


@contextlib.contextmanager
def record_run(out: str | Path, *, job: str, args: Any, seed: int | None = None, **facts: Any) -> Iterator[RunRecord]:
    """Keeps `OUT/run.json` for the block; on an error its status is `failed` and the error goes on its way.

    Args:
        out: The folder of the job's results; made if it is not there.
        job: The job's name on the command line.
        args: Its arguments, a dataclass or a dict.
        seed: The seed, where the job draws.
        facts: Anything else that a reader must know.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(folder / "run.json", job, _as_dict(args), seed)
    record.add(**facts)
    record.write()  # a job that is killed leaves word of itself: its status stays `running`
    try:
        yield record
    except BaseException as error:
        record.add(error=f"{type(error).__name__}: {error}")
        record.finish("failed")
        raise
    record.finish("done")


class _Answer(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def record_answer[T: _Answer](out: str | None, *, job: str, args: Any, look: Callable[[], T]) -> T:
    """What `look` finds; with `out` it is also kept in `OUT/run.json`, for jobs that only look at things."""
    if out is None:
        return look()
    with record_run(out, job=job, args=args) as record:
        answer = look()
        record.add(**answer.to_json())
        return answer


def package_versions() -> dict[str, str]:
    """Versions of Python, this package and what it computes with."""
    versions = {"python": platform.python_version(), "neuroray": neuroray.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_commit() -> str | None:
    """The commit of the checkout that the package runs from, with `+changes` where it was edited; None outside one."""
    root = Path(neuroray.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def _as_dict(args: Any) -> dict[str, Any]:
    if isinstance(args, dict):
        return args
    return dataclasses.asdict(args)

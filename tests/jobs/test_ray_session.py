"""A Ray of one's own leaves no trace: not in the environment, not in the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from neuroray.jobs.ray_session import start_local_ray

_SCRIPT = """
import os
from neuroray.jobs.ray_session import ensure_ray
before = dict(os.environ)
for _ in range(2):
    with ensure_ray(num_cpus=3):
        import ray
        with ensure_ray():
            assert ray.cluster_resources()["CPU"] >= 5
        assert ray.is_initialized()
        answer = ray.get(ray.remote(lambda: (os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]))).remote())
        assert answer == ("token", 64), answer
    assert not ray.is_initialized()
    assert dict(os.environ) == before
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_of_ones_own_is_closed_and_leaves_no_trace(tmp_path: Path):
    """Twice in a process of its own, because Ray reads its environment once, when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    subprocess.run([sys.executable, "-c", _SCRIPT], env={**environment, "HOME": str(tmp_path)}, check=True)
    assert not (tmp_path / ".ray").exists()


def test_a_machine_that_is_too_busy_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    started = []

    def start(**options: object) -> None:
        started.append(options)
        if len(started) < 3:
            raise Exception("The current node timed out during startup. This could ...")  # noqa: TRY002 - as Ray does

    monkeypatch.setattr(ray, "init", start)
    start_local_ray(num_cpus=5)
    assert started == [{"address": "local", "num_cpus": 5}] * 3


def test_any_other_fault_of_the_start_is_told_at_once(monkeypatch: pytest.MonkeyPatch):
    started = []

    def start(**options: object) -> None:
        started.append(options)
        raise ValueError("no such option")

    monkeypatch.setattr(ray, "init", start)
    with pytest.raises(ValueError, match="no such option"):
        start_local_ray(num_cpu=5)
    assert len(started) == 1

"""Settings that every test relies on, and the two servers that several share: a local Ray and an S3 on loopback.

At the top it needs pytest and torch alone, so that the kernel suites run on a bare GPU machine; all else is imported by
the fixture that uses it.
"""

from __future__ import annotations

import os
import random
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read by Ray and Hugging Face when they are imported, so they stand before every other import.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_V2_ENABLED="1",
    RAY_raylet_start_wait_time_s="180",
    HF_HUB_OFFLINE="1",
    MPLBACKEND="Agg",
    # What is made to fail for ever in a test is given up soon.
    NEURORAY_DEADLINE_S="2",
    NEURORAY_STALL_S="5",
)

# Beside other test processes each keeps to one thread: OpenMP's threads wait by spinning, and two processes of two
# threads on two cores have been seen to take a hundred times as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

# Last on the path, so that `tests/platform` never stands in front of the standard library's `platform`.
sys.path.append(str(Path(__file__).parent))
pytest.register_assert_rewrite("contracts")

# Memory that no kernel wrote must not look like an answer: `torch.empty` holds NaN (the largest number, for integers).
# Torch fills only in deterministic mode; `warn_only` keeps operations without a deterministic form usable.
torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """A local Ray with four CPUs, started once; gives the `ray` module."""
    import ray

    from neuroray.jobs.ray_session import start_local_ray

    start_local_ray(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server on a free port of loopback: moto, or Swift where `make test-s3` asks for it; gives its address."""
    from contracts.s3_server import serve_s3
    from contracts.swift_server import PYTHON, serve_swift

    with serve_swift(tmp_path_factory.mktemp("swift")) if os.environ.get(PYTHON) else serve_s3() as endpoint_url:
        yield endpoint_url


@pytest.fixture
def s3_bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A fresh bucket as `s3://name`, with the environment set so that every S3 client finds it.

    With `NEURORAY_TEST_BUCKET=s3://name/prefix` it is a new folder there, found by the environment as it is.
    """
    real = os.environ.get("NEURORAY_TEST_BUCKET", "")
    name = f"neuroray-{uuid.uuid4().hex[:12]}"
    if real:
        from contracts.s3_server import delete_all

        monkeypatch.setenv("NEURORAY_DEADLINE_S", "60")
        yield f"{real.rstrip('/')}/{name}"
        delete_all(f"{real.rstrip('/')}/{name}")
        return
    from contracts import s3_server, swift_server

    server: str = request.getfixturevalue("s3_server")
    kind = swift_server if os.environ.get(swift_server.PYTHON) else s3_server
    settings = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": kind.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": kind.SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    for setting, value in settings.items():
        monkeypatch.setenv(setting, value)
    for setting in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(setting, raising=False)
    kind.create_bucket(server, name)
    yield f"s3://{name}"

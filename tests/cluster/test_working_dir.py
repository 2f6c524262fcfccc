"""The repository as a Ray working dir: small, without scans, and in nobody's way on a worker's path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

# Names that our folders have inside the package, and that other packages or the standard library have at the top.
NAMES = ("platform", "kernels", "datasets", "storage", "jobs", "serve", "models", "data", "train", "tests")

# Runs in the job's driver and, the same function, on a worker: their paths differ.
PROBE = f"""
import json, ray

def look():
    import importlib.util, os, pathlib, platform, sys
    import neuroray.platform
    root = pathlib.Path(neuroray.__file__).parent.parent
    files = [path for path in root.rglob('*') if path.is_file()]
    origins = {{}}
    for name in {NAMES!r}:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else [spec.origin or '', *(spec.submodule_search_locations or [])]
        origins[name] = [place for place in places if place.startswith(str(root))]
    return dict(
        system=platform.system(), stdlib=platform.__file__ == os.path.join(os.path.dirname(os.__file__), 'platform.py'),
        unpacked='runtime_resources' in str(root), ours=[name for name, places in origins.items() if places],
        size_bytes=sum(path.stat().st_size for path in files), process=os.getpid(),
        files=[str(path.relative_to(root)) for path in files],
        start_timeout_s=os.environ.get('RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S'),
    )

ray.init()
print('PROBE', json.dumps(dict(driver=look(), worker=ray.get(ray.remote(look).remote()))))
"""


@pytest.fixture(scope="module")
def seen(head: Any) -> dict[str, Any]:
    output = head.submit("python", "-c", PROBE)
    (line,) = [line for line in output.splitlines() if line.startswith("PROBE ")]
    return json.loads(line.removeprefix("PROBE "))


@pytest.mark.parametrize("place", ["driver", "worker"])
def test_the_standard_platform_is_imported(seen: dict[str, Any], place: str) -> None:
    assert seen[place]["system"] == "Linux"
    assert seen[place]["stdlib"]


@pytest.mark.parametrize("place", ["driver", "worker"])
def test_the_package_comes_from_the_working_dir(seen: dict[str, Any], place: str) -> None:
    assert seen[place]["unpacked"]


def test_the_worker_is_a_process_of_its_own(seen: dict[str, Any]) -> None:
    assert seen["driver"]["process"] != seen["worker"]["process"]


@pytest.mark.parametrize("place", ["driver", "worker"])
def test_no_name_of_ours_shadows_another(seen: dict[str, Any], place: str) -> None:
    assert seen[place]["ours"] == []


@pytest.mark.parametrize("place", ["driver", "worker"])
def test_the_runtime_env_arrives(seen: dict[str, Any], place: str) -> None:
    written = yaml.safe_load((Path(__file__).parents[2] / "runtime_env.yaml").read_text())
    assert seen[place]["start_timeout_s"] == written["env_vars"]["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]


def test_the_upload_is_small(seen: dict[str, Any]) -> None:
    # Ray refuses 100 MiB. Code and configuration are far below it; whatever makes this fail should be in .rayignore.
    assert seen["driver"]["size_bytes"] < 10 * 2**20


def test_scans_and_environments_stay_behind(seen: dict[str, Any]) -> None:
    files = seen["driver"]["files"]
    assert "neuroray/__main__.py" in files
    assert "pyproject.toml" in files
    assert [name for name in files if name.endswith((".nii", ".gz", ".mgz", ".safetensors"))] == []
    assert [name for name in files if name.startswith((".git/", ".venv/", "tests/", "runs/", "demo/"))] == []

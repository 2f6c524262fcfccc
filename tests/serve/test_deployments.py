"""The Ray Serve application without a cluster: what it is made of, and how it hears what replicas say."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import ServeDeploySchema

from neuroray.config import ConfigError
from neuroray.errors import NeurorayError
from neuroray.serve.app import ask_replica, build_app
from neuroray.serve.config import ServeConfig
from neuroray.serve.predictor import PredictorError
from neuroray.serve.question import Question
from neuroray.serve.routes import LateError, OverloadedError, UnavailableError
from neuroray.storage.scan import Scan, ScanError

SCAN = cast(Scan, object())


def describe(application: Any) -> dict[str, dict[str, Any]]:
    """The deployments of an application by name, the ingress first, as Serve would start them."""
    # Serve offers no public way to look into an application that is not running.
    ingress = application._bound_deployment
    models = [bound._bound_deployment for bound in ingress.init_args[2].values()]
    return {
        deployment.name: {
            "actor": deployment.ray_actor_options,
            "scaling": deployment._deployment_config.autoscaling_config,
            "ongoing": deployment.max_ongoing_requests,
            "queued": deployment._deployment_config.max_queued_requests,
            "grace_s": deployment._deployment_config.graceful_shutdown_timeout_s,
        }
        for deployment in [ingress, *models]
    }


def test_deployments_carry_what_the_config_says(model_folder: Path) -> None:
    config = ServeConfig(
        models={"one": str(model_folder), "two": str(model_folder)},
        num_gpus=0.5,
        num_cpus=3.0,
        min_replicas=0,
        max_replicas=4,
        target_ongoing_requests=1.5,
        max_ongoing_requests=3,
        max_queued_requests=7,
        shutdown_timeout_s=200.0,
    )
    parts = describe(build_app(config))
    assert list(parts) == ["ingress", "model-one", "model-two"]
    for name in ("model-one", "model-two"):
        assert parts[name]["actor"] == {"num_cpus": 3.0, "num_gpus": 0.5}
        scaling = parts[name]["scaling"]
        assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (0, 4, 1.5)
        assert (parts[name]["ongoing"], parts[name]["queued"], parts[name]["grace_s"]) == (3, 7, 200.0)
    # Unbounded queues are Serve's default.
    assert parts["ingress"]["queued"] > 0
    assert parts["ingress"]["grace_s"] == 200.0
    assert "num_gpus" not in parts["ingress"]["actor"]


def test_the_documented_yaml_file_builds_it(model_folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/serve.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert application.import_path == "neuroray.serve.app:build_app"
    arguments = application.args | {"models": {"dinoatten3d": str(model_folder)}}
    built = call_user_app_builder_with_args_if_necessary(build_app, arguments)
    assert describe(built)["model-dinoatten3d"]["actor"]["num_gpus"] == 1


def test_a_mistake_in_the_yaml_file_is_named(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="ServeConfig has no field num_gpu"):
        build_app({"models": {"one": str(model_folder)}, "num_gpu": 1})


def test_a_folder_without_a_model_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(PredictorError, match="there is no model"):
        build_app(ServeConfig(models={"one": str(tmp_path)}))


class FakeResponse:
    def __init__(self, fault: Exception | None) -> None:
        self.fault = fault
        self.was_cancelled = False

    def __await__(self) -> Any:
        if self.fault is None:
            yield from asyncio.sleep(30).__await__()
        else:
            raise self.fault

    def cancel(self) -> None:
        self.was_cancelled = True


class FakeHandle:
    """Answers `handle.predict.remote(scan)` with a fault, or with nothing for longer than any test waits."""

    def __init__(self, fault: Exception | None) -> None:
        self.response = FakeResponse(fault)
        self.predict = self

    def remote(self, scan: Scan, question: Question) -> FakeResponse:
        return self.response


def ask(handle: FakeHandle, timeout_s: float = 10.0) -> None:
    asyncio.run(ask_replica(cast(Any, handle), SCAN, Question(), name="tiny", timeout_s=timeout_s))


@pytest.mark.parametrize(
    ("fault", "heard"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=8), OverloadedError),
        (ActorDiedError(), UnavailableError),
        (RayTaskError("predict", "a traceback", ScanError("a time series")).as_instanceof_cause(), ScanError),
        (RayTaskError("predict", "a traceback", KeyError("a bug")).as_instanceof_cause(), KeyError),
    ],
)
def test_what_a_replica_says_is_heard(fault: Exception, heard: type[Exception]) -> None:
    with pytest.raises(heard) as caught:
        ask(FakeHandle(fault))
    if isinstance(caught.value, NeurorayError):
        assert "traceback" not in str(caught.value)


def test_a_late_request_is_withdrawn() -> None:
    handle = FakeHandle(None)
    with pytest.raises(LateError, match=r"within 0\.05 s"):
        ask(handle, timeout_s=0.05)
    assert handle.response.was_cancelled

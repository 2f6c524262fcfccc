"""Runs the training loop on Ray Train workers, and again from the newest checkpoint when one of them dies."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from neuroray.errors import NeurorayError
from neuroray.platform.train.loop import Run, train_worker
from neuroray.platform.train.recipe import RecipeError, ScalingConfig
from neuroray.platform.train.run_folder import FitResult
from neuroray.platform.train.step import TrainingError

logger = logging.getLogger(__name__)

# Nodes that an autoscaler has yet to start take minutes; Ray gives a group of workers one, unless told otherwise.
_START_TIMEOUT, _START_TIMEOUT_S = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900"


def train_on_ray(run: Run) -> FitResult:
    """Trains on the workers that the recipe asks for; the process must be connected to Ray.

    Ray's own record of the run lies in a folder that ends with it. All state is in the run folder's checkpoints, each
    complete or absent, so whoever starts the workers again, Ray or a person, has them continue at the same place.

    Raises:
        RecipeError: this process is not connected to Ray.
        TrainingError: a loss that is no number, or workers that died more often than `scaling.max_failures` allows.
    """
    if not ray.is_initialized():
        raise RecipeError("training on workers needs Ray", fix="call ray.init() first, or set scaling.num_workers to 0")
    scaling = run.recipe.scaling
    _tell_if_waiting(scaling)
    with tempfile.TemporaryDirectory(prefix="neuroray-ray-train-") as scratch, _patience():
        trainer = TorchTrainer(
            _train_in_worker,
            train_loop_config={"run": run},
            torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scaling.num_workers, use_gpu=scaling.use_gpu, resources_per_worker=_resources(scaling)
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=scratch,
                failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
            ),
        )
        try:
            outcome = trainer.fit().return_value
        except ray.train.TrainingFailedError as error:
            raise _explain(error, scaling) from error
    if isinstance(outcome, FitResult):
        return outcome
    if isinstance(outcome, NeurorayError):
        raise outcome
    raise TrainingError("the workers ended without a result", given=outcome)


def _train_in_worker(config: dict[str, Any]) -> FitResult | NeurorayError:
    set_up_worker_log()
    # Returned, not raised: Ray would start the workers again, and these faults come back each time.
    try:
        return train_worker(config["run"])
    except (RecipeError, TrainingError) as fault:
        return fault


def set_up_worker_log() -> None:
    """Lets this package speak on a worker, and Ray Data be silent; Ray brings it to the driver's terminal."""
    logging.getLogger("neuroray").setLevel(logging.INFO)
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def _resources(scaling: ScalingConfig) -> dict[str, float]:
    return {"CPU": scaling.cpus_per_worker, **({"GPU": 1.0} if scaling.use_gpu else {})}


def _tell_if_waiting(scaling: ScalingConfig) -> None:
    """No error, for an autoscaler may bring what is missing; without one a person must know why nothing happens."""
    has, fewest = ray.cluster_resources(), scaling.worker_range[0]
    lacking = [
        f"{name} {has.get(name, 0):g} of {share * fewest:g}"
        for name, share in _resources(scaling).items()
        if has.get(name, 0) < share * fewest
    ]
    if lacking:
        logger.warning("waiting for the cluster to grow: it has %s", ", ".join(lacking))


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    if _START_TIMEOUT in os.environ:
        yield
        return
    os.environ[_START_TIMEOUT] = _START_TIMEOUT_S
    try:
        yield
    finally:
        os.environ.pop(_START_TIMEOUT, None)


def _explain(error: Exception, scaling: ScalingConfig) -> TrainingError:
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = [f"worker {rank}: {_last_line(cause)}" for rank, cause in sorted(failures.items())]
    return TrainingError(
        f"training failed on the workers more often than scaling.max_failures ({scaling.max_failures}) allows",
        given="; ".join(causes) or _last_line(error),
        fix="mend the cause and start the same command again: it continues from the newest checkpoint",
    )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
